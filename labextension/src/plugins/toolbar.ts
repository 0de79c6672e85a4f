import type {
  JupyterFrontEnd,
  JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { IToolbarWidgetRegistry } from '@jupyterlab/apputils';
import type { NotebookPanel } from '@jupyterlab/notebook';

import { Menu } from '@lumino/widgets';

import { CommandIDs } from '../commands';
import { CheckpointButton } from '../widgets/toolbarButton';
import { IWorkbench } from '../workbench';

/** The button in a notebook's toolbar; users place it by its name. */
export const toolbarPlugin: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-runtime-checkpoints:toolbar',
  description: 'Adds a button with the kernel’s saved state to notebooks.',
  autoStart: true,
  requires: [IWorkbench, IToolbarWidgetRegistry],
  activate: (
    app: JupyterFrontEnd,
    workbench: IWorkbench,
    toolbars: IToolbarWidgetRegistry
  ): void => {
    const { model, actions, clock, trans } = workbench;
    let menu: Menu | null = null;
    const makeMenu = () => {
      const made = new Menu({ commands: app.commands });
      made.title.label = trans.__('Runtime Checkpoints');
      const groups = [
        [CommandIDs.save, CommandIDs.saveAs],
        [CommandIDs.wake, CommandIDs.startFresh, CommandIDs.resume],
        [CommandIDs.remix],
        [CommandIDs.toggle, CommandIDs.toggleAutosave],
        [CommandIDs.openPanel]
      ];
      groups.forEach((group, index) => {
        if (index) {
          made.addItem({ type: 'separator' });
        }
        group.forEach(command =>
          made.addItem({ command, args: { brief: true } })
        );
      });
      return made;
    };
    toolbars.addFactory<NotebookPanel>(
      'Notebook',
      'runtimeCheckpoints',
      panel => {
        const runtime = model.of(panel);
        return new CheckpointButton({
          runtime,
          clock,
          trans,
          onClick: () => void actions.primary(runtime),
          menu: () => (menu ??= makeMenu())
        });
      }
    );
  }
};
