import type {
  JupyterFrontEnd,
  JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { IRouter } from '@jupyterlab/application';
import { Notification } from '@jupyterlab/apputils';
import { PathExt } from '@jupyterlab/coreutils';
import type { NotebookPanel } from '@jupyterlab/notebook';
import { INotebookTracker } from '@jupyterlab/notebook';

import { asks, notebookOf } from '../address';
import { IWorkbench } from '../workbench';

/** `…/lab/tree/notebook.ipynb?checkpoints=1` offers to switch runtime checkpoints on. */
export const offerPlugin: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-runtime-checkpoints:offer',
  description:
    'Offers runtime checkpoints for a notebook that is opened with ?checkpoints=1.',
  autoStart: true,
  requires: [IWorkbench, IRouter, INotebookTracker],
  activate: (
    app: JupyterFrontEnd,
    workbench: IWorkbench,
    router: IRouter,
    tracker: INotebookTracker
  ): void => {
    const { model, actions, trans } = workbench;
    const path = notebookOf(router.current);
    if (!asks(router.current, 'checkpoints')) {
      return;
    }
    const offer = async (panel: NotebookPanel) => {
      await panel.context.ready;
      const runtime = model.of(panel);
      if (runtime.settings.enabled) {
        return;
      }
      Notification.info(
        trans.__(
          'Save the kernel of %1 as runtime checkpoints?',
          PathExt.basename(runtime.path)
        ),
        {
          autoClose: false,
          actions: [
            {
              label: trans.__('Switch On'),
              displayType: 'accent',
              callback: () => void actions.enable(runtime)
            }
          ]
        }
      );
    };
    const named = (panel: NotebookPanel) => panel.context.localPath === path;
    void app.restored.then(() => {
      const open = tracker.find(named);
      if (open) {
        void offer(open);
        return;
      }
      const onAdded = (_: INotebookTracker, panel: NotebookPanel) => {
        if (named(panel)) {
          tracker.widgetAdded.disconnect(onAdded);
          void offer(panel);
        }
      };
      tracker.widgetAdded.connect(onAdded);
    });
  }
};
