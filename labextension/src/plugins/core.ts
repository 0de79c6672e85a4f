import type {
  JupyterFrontEnd,
  JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { Notification } from '@jupyterlab/apputils';
import { PathExt } from '@jupyterlab/coreutils';
import { IDefaultFileBrowser } from '@jupyterlab/filebrowser';
import { INotebookTracker } from '@jupyterlab/notebook';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';

import type { IPreferences } from '../actions';
import { Actions } from '../actions';
import { Clock } from '../clock';
import { RuntimeCheckpoints } from '../model';
import { CheckpointsApi } from '../request';
import { IRuntimeCheckpoints } from '../tokens';
import { VERSION } from '../version';
import { IWorkbench } from '../workbench';

const SETTINGS_ID = 'jupyter-runtime-checkpoints:plugin';
const PANEL_ID = 'jp-runtime-checkpoints';

/** Makes what all other plugins share. */
export const corePlugin: JupyterFrontEndPlugin<IWorkbench> = {
  id: SETTINGS_ID,
  description:
    'Follows the runtime checkpoints of open notebooks, and holds the settings.',
  autoStart: true,
  requires: [INotebookTracker],
  optional: [ITranslator, ISettingRegistry, IDefaultFileBrowser],
  provides: IWorkbench,
  activate: (
    app: JupyterFrontEnd,
    tracker: INotebookTracker,
    translator: ITranslator | null,
    settingRegistry: ISettingRegistry | null,
    fileBrowser: IDefaultFileBrowser | null
  ): IWorkbench => {
    const trans = (translator ?? nullTranslator).load(
      'jupyter_runtime_checkpoints'
    );
    const model = new RuntimeCheckpoints({
      api: new CheckpointsApi(app.serviceManager.serverSettings, trans),
      services: app.serviceManager,
      tracker,
      trans
    });
    const preferences: IPreferences = {
      confirmResume: true,
      autosaveByDefault: true
    };
    const openPanel = () => app.shell.activateById(PANEL_ID);
    const actions = new Actions({
      model,
      trans,
      open: async path => {
        await app.commands.execute('docmanager:open', { path });
      },
      folder: () =>
        fileBrowser?.model.path ??
        PathExt.dirname(tracker.currentWidget?.context.path ?? ''),
      contents: app.serviceManager.contents,
      selectKernel: async () => {
        await app.commands.execute('notebook:change-kernel');
      },
      showPanel: openPanel,
      preferences: () => preferences
    });

    // Nothing here is needed to show the page.
    void app.restored.then(async () => {
      await model.check();
      const server = model.serverVersion;
      if (server && server !== VERSION) {
        Notification.warning(
          trans.__(
            'Runtime checkpoints: this page is of version %1, the server of %2. Restart the server and reload the page.',
            VERSION,
            server
          ),
          { autoClose: false }
        );
      }
    });
    document.addEventListener('visibilitychange', () => {
      if (!document.hidden && model.current?.settings.enabled) {
        void model.current.refresh();
      }
    });
    if (settingRegistry) {
      void follow(settingRegistry, preferences);
    }
    return { model, actions, clock: new Clock(), trans, openPanel };
  }
};

/** What other extensions get. */
export const servicePlugin: JupyterFrontEndPlugin<IRuntimeCheckpoints> = {
  id: 'jupyter-runtime-checkpoints:service',
  description: 'Provides runtime checkpoints to other extensions.',
  requires: [IWorkbench],
  provides: IRuntimeCheckpoints,
  activate: (_: JupyterFrontEnd, workbench: IWorkbench) => workbench.model
};

async function follow(
  registry: ISettingRegistry,
  preferences: IPreferences
): Promise<void> {
  const settings = await registry.load(SETTINGS_ID);
  const take = () => {
    preferences.confirmResume = settings.composite.confirmResume !== false;
    preferences.autosaveByDefault =
      settings.composite.autosaveByDefault !== false;
  };
  settings.changed.connect(take);
  take();
}
