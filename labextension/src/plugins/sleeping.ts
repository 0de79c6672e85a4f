import type {
  JupyterFrontEnd,
  JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { PathExt } from '@jupyterlab/coreutils';
import { IRunningSessionManagers } from '@jupyterlab/running';

import { SleepingKernels } from '../sleeping';
import { IWorkbench } from '../workbench';

/** A section of the Running panel: notebooks whose kernel sleeps. */
export const sleepingPlugin: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-runtime-checkpoints:sleeping',
  description: 'Lists sleeping kernels in the panel of running sessions.',
  autoStart: true,
  requires: [IWorkbench],
  optional: [IRunningSessionManagers],
  activate: (
    app: JupyterFrontEnd,
    workbench: IWorkbench,
    managers: IRunningSessionManagers | null
  ): void => {
    if (managers) {
      const { model, actions, trans } = workbench;
      managers.add(
        new SleepingKernels({
          model,
          trans,
          title: path => PathExt.basename(path),
          open: async path => {
            await app.commands.execute('docmanager:open', { path });
          },
          forget: sleeping => actions.forget(sleeping)
        })
      );
    }
  }
};
