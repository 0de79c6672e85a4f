import type {
  JupyterFrontEnd,
  JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { IRouter } from '@jupyterlab/application';
import { Notification } from '@jupyterlab/apputils';
import { PathExt } from '@jupyterlab/coreutils';

import { asks, drop, notebookOf } from '../address';
import { asProblem } from '../request';
import { IWorkbench } from '../workbench';

const WISH = 'fresh';

/** `…/lab/tree/notebook.ipynb?fresh=1` opens a notebook with a fresh kernel, once. */
export const freshLinkPlugin: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-runtime-checkpoints:fresh-link',
  description: 'Opens a notebook with ?fresh=1 without its saved kernel.',
  autoStart: true,
  requires: [IWorkbench, IRouter],
  activate: async (
    app: JupyterFrontEnd,
    workbench: IWorkbench,
    router: IRouter
  ): Promise<void> => {
    const notebook = notebookOf(router.current);
    if (!notebook || !asks(router.current, WISH)) {
      return;
    }
    // First of all: whatever becomes of it, a reload must not throw away what comes after.
    drop(WISH);
    const { model, trans } = workbench;
    const { contents, sessions } = app.serviceManager;
    // Pages open their notebook when all plugins are there: so this comes before its kernel.
    try {
      await sessions.refreshRunning();
      const runs = [...sessions.running()].some(
        ({ path, kernel }) => contents.localPath(path) === notebook && kernel
      );
      if (!runs) {
        await model.api.startFreshNext(notebook);
        return;
      }
      void app.restored.then(() =>
        Notification.info(
          trans.__(
            'The kernel of %1 runs already, and was left alone.',
            PathExt.basename(notebook)
          ),
          {
            autoClose: false,
            actions: [
              {
                label: trans.__('Restart…'),
                callback: () =>
                  void app.commands.execute('notebook:restart-kernel')
              }
            ]
          }
        )
      );
    } catch (error) {
      const { message } = asProblem(error);
      void app.restored.then(() =>
        Notification.error(
          trans
            .__('The kernel was not started fresh. %1', message)
            .slice(0, 140),
          { autoClose: false }
        )
      );
    }
  }
};
