import type {
  JupyterFrontEnd,
  JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';

import { CommandIDs, addCommands } from '../commands';
import { IWorkbench } from '../workbench';

/** Commands, for menus, the palette and shortcuts. */
export const commandsPlugin: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-runtime-checkpoints:commands',
  description: 'Adds the commands of runtime checkpoints.',
  autoStart: true,
  requires: [IWorkbench],
  optional: [ICommandPalette],
  activate: (
    app: JupyterFrontEnd,
    workbench: IWorkbench,
    palette: ICommandPalette | null
  ): void => {
    const { model, actions, trans, openPanel } = workbench;
    const { commands } = app;
    addCommands({ commands, model, actions, trans, openPanel });

    const notify = () => commands.notifyCommandChanged();
    model.availabilityChanged.connect(notify);
    model.currentChanged.connect((_, { oldValue, newValue }) => {
      oldValue?.changed.disconnect(notify);
      newValue?.changed.connect(notify);
      notify();
    });

    const category = trans.__('Runtime Checkpoints');
    for (const command of [
      CommandIDs.save,
      CommandIDs.saveAs,
      CommandIDs.resume,
      CommandIDs.wake,
      CommandIDs.startFresh,
      CommandIDs.remix,
      CommandIDs.cancel,
      CommandIDs.importArchive,
      CommandIDs.toggle,
      CommandIDs.toggleAutosave,
      CommandIDs.openPanel
    ]) {
      palette?.addItem({ command, category });
    }
  }
};
