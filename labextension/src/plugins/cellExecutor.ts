import type { JupyterFrontEndPlugin } from '@jupyterlab/application';
import { INotebookCellExecutor, runCell } from '@jupyterlab/notebook';

import { runAwake } from '../waking';

/**
 * Runs cells of a notebook whose kernel sleeps, or is just being resumed, when it is there.
 *
 * It takes the place of `@jupyterlab/notebook-extension:cell-executor` (see `disabledExtensions`
 * in package.json), which drops a cell that is run while the kernel starts: the second of two
 * cells that somebody runs quickly. It depends on nothing, for the notebooks' tracker needs it.
 */
export const cellExecutorPlugin: JupyterFrontEndPlugin<INotebookCellExecutor> =
  {
    id: 'jupyter-runtime-checkpoints:cell-executor',
    description: 'Runs cells of sleeping notebooks when their kernel is awake.',
    provides: INotebookCellExecutor,
    autoStart: true,
    activate: (): INotebookCellExecutor => ({
      runCell: options => {
        const { cell, sessionContext } = options;
        return sessionContext && cell.model.type === 'code'
          ? runAwake(
              sessionContext,
              // It may be deleted while the kernel wakes.
              async () => !cell.isDisposed && runCell(options)
            )
          : runCell(options);
      }
    })
  };
