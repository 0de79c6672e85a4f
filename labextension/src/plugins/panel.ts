import type {
  JupyterFrontEnd,
  JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { ILayoutRestorer } from '@jupyterlab/application';

import { Menu } from '@lumino/widgets';

import { CommandIDs } from '../commands';
import type { IPoint } from '../components/historyRow';
import type { ICheckpoint } from '../tokens';
import { CheckpointPanel } from '../widgets/panel';
import { IWorkbench } from '../workbench';

/** The panel in the right side bar. */
export const panelPlugin: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-runtime-checkpoints:panel',
  description: 'Adds a side panel with the history of a notebook’s kernel.',
  autoStart: true,
  requires: [IWorkbench],
  optional: [ILayoutRestorer],
  activate: (
    app: JupyterFrontEnd,
    workbench: IWorkbench,
    restorer: ILayoutRestorer | null
  ): void => {
    const { model, actions, clock, trans } = workbench;
    const { commands } = app;
    const openMenu = (checkpoint: ICheckpoint, at: IPoint) => {
      const menu = new Menu({ commands });
      const args = { checkpoint: checkpoint.id };
      menu.title.label = trans.__('Runtime Checkpoint');
      menu.addItem({ command: CommandIDs.resume, args });
      menu.addItem({ command: CommandIDs.remix, args });
      menu.addItem({ type: 'separator' });
      menu.addItem({ command: CommandIDs.rename, args });
      menu.addItem({ command: CommandIDs.pin, args });
      menu.addItem({ command: CommandIDs.inspect, args });
      menu.addItem({ command: CommandIDs.verify, args });
      menu.addItem({ command: CommandIDs.share, args });
      menu.addItem({ command: CommandIDs.download, args });
      menu.addItem({ type: 'separator' });
      menu.addItem({ command: CommandIDs.remove, args });
      menu.aboutToClose.connect(() => {
        // Its command runs after this.
        requestAnimationFrame(() => menu.dispose());
      });
      menu.open(at.x, at.y);
    };
    const panel = new CheckpointPanel({
      model,
      actions,
      clock,
      trans,
      openMenu,
      chooseKernel: async () => {
        await commands.execute('notebook:change-kernel');
      }
    });
    app.shell.add(panel, 'right', { rank: 600, type: 'Runtime Checkpoints' });
    restorer?.add(panel, panel.id);
  }
};
