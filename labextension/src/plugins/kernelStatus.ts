import type {
  JupyterFrontEnd,
  JupyterFrontEndPlugin
} from '@jupyterlab/application';

import { Widget } from '@lumino/widgets';

import { IWorkbench } from '../workbench';

/** What Notebook 7 has in its menu bar, and how it looks. */
const CLASS = 'jp-NotebookKernelStatus';
const RANK = 10_010;

/** Notebook 7 would say of a kernel that sleeps that it is dead: this says that it is asleep. */
export const kernelStatusPlugin: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-runtime-checkpoints:kernel-status',
  description: 'Says in Notebook 7’s menu bar that a kernel is asleep.',
  autoStart: true,
  requires: [IWorkbench],
  activate: (app: JupyterFrontEnd, workbench: IWorkbench): void => {
    if (app.name !== 'Jupyter Notebook') {
      return;
    }
    const { model, trans } = workbench;
    const asleep = new Widget();
    asleep.addClass(CLASS);
    asleep.addClass('jp-RuntimeCheckpoints-asleep');
    asleep.node.textContent = trans.__('Kernel Asleep');
    asleep.hide();
    app.shell.add(asleep, 'menu', { rank: RANK });

    const show = () => {
      const sleeps = model.current?.state === 'asleep';
      for (const widget of app.shell.widgets('menu')) {
        if (widget.hasClass(CLASS)) {
          widget.setHidden(sleeps !== (widget === asleep));
        }
      }
    };
    model.current?.changed.connect(show);
    model.currentChanged.connect((_, { oldValue, newValue }) => {
      oldValue?.changed.disconnect(show);
      newValue?.changed.connect(show);
      show();
    });
  }
};
