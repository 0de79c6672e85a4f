import type {
  JupyterFrontEnd,
  JupyterFrontEndPlugin
} from '@jupyterlab/application';
import type { Cell } from '@jupyterlab/cells';
import { isCodeCellModel } from '@jupyterlab/cells';
import type { NotebookPanel } from '@jupyterlab/notebook';
import { INotebookTracker, NotebookActions } from '@jupyterlab/notebook';

import type { IServerEvent } from '../serverEvents';
import { IWorkbench } from '../workbench';

const CLASS = 'jp-RuntimeCheckpoints-outdated';

/** Marks cells whose outputs are not of the state that the kernel was put to. */
export const cellMarksPlugin: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-runtime-checkpoints:cell-marks',
  description: 'Marks cells that ran after the state a kernel was put back to.',
  autoStart: true,
  requires: [IWorkbench, INotebookTracker],
  activate: (
    _: JupyterFrontEnd,
    workbench: IWorkbench,
    tracker: INotebookTracker
  ): void => {
    const { model, trans } = workbench;
    const ranAt = new Map<string, number>();

    NotebookActions.executed.connect((_, { cell }) => {
      ranAt.set(cell.model.id, Date.now());
      cell.removeClass(CLASS);
      cell.node.removeAttribute('title');
    });

    const mark = (panel: NotebookPanel, since: number) => {
      panel.content.widgets.forEach(cell => {
        const outdated =
          isCodeCellModel(cell.model) &&
          cell.model.executionCount !== null &&
          lastRun(cell, ranAt) > since;
        cell.toggleClass(CLASS, outdated);
        if (outdated) {
          cell.node.title = trans.__(
            'This output is not of the kernel’s state: it was made later, or by another kernel'
          );
        }
      });
    };

    model.serverEvent.connect(async (_, event) => {
      const panels = concerned(tracker, event);
      if (event.action === 'resume_failed' && event.in_place === false) {
        panels.forEach(panel => mark(panel, 0));
      } else if (event.action === 'resumed') {
        for (const panel of panels) {
          const runtime = model.of(panel);
          await runtime.refresh();
          const state = runtime.checkpoints?.find(
            checkpoint => checkpoint.id === event.checkpoint
          );
          if (state) {
            mark(panel, Date.parse(state.touched || state.created));
          }
        }
      }
    });
  }
};

function concerned(
  tracker: INotebookTracker,
  event: IServerEvent
): NotebookPanel[] {
  return tracker.filter(panel => panel.context.localPath === event.notebook);
}

/** When a cell ran last, as far as this page or the notebook knows. */
function lastRun(cell: Cell, ranAt: Map<string, number>): number {
  const here = ranAt.get(cell.model.id);
  if (here !== undefined) {
    return here;
  }
  const timing = cell.model.getMetadata('execution') as
    Record<string, unknown> | undefined;
  const replied = timing?.['shell.execute_reply'];
  return typeof replied === 'string' ? Date.parse(replied) : 1;
}
