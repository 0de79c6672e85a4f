import type {
  JupyterFrontEnd,
  JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { IStatusBar } from '@jupyterlab/statusbar';

import { StatusItem } from '../widgets/statusItem';
import { IWorkbench } from '../workbench';

/** The state of the notebook in front, in the status bar. */
export const statusPlugin: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-runtime-checkpoints:status',
  description: 'Shows the saved state of the current kernel in the status bar.',
  autoStart: true,
  requires: [IWorkbench],
  optional: [IStatusBar],
  activate: (
    _: JupyterFrontEnd,
    workbench: IWorkbench,
    statusBar: IStatusBar | null
  ): void => {
    const { model, clock, trans, openPanel } = workbench;
    statusBar?.registerStatusItem('jupyter-runtime-checkpoints:status', {
      item: new StatusItem({ model, clock, trans, onClick: openPanel }),
      align: 'left',
      rank: 4
    });
  }
};
