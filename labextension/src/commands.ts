import type { TranslationBundle } from '@jupyterlab/translation';

import type { CommandRegistry } from '@lumino/commands';
import type { ReadonlyPartialJSONObject } from '@lumino/coreutils';

import type { Actions } from './actions';
import { asleepIcon, checkpointIcon } from './icons';
import type { RuntimeCheckpoints } from './model';
import type { NotebookRuntime } from './notebookRuntime';
import type { ICheckpoint } from './tokens';

type Args = ReadonlyPartialJSONObject;

/** Ids of all commands. */
export namespace CommandIDs {
  /** What a click on the toolbar's button does. */
  export const primary = 'runtime-checkpoints:save-or-wake';
  export const save = 'runtime-checkpoints:save';
  export const saveAs = 'runtime-checkpoints:save-as';
  export const wake = 'runtime-checkpoints:wake';
  export const startFresh = 'runtime-checkpoints:start-fresh';
  export const resume = 'runtime-checkpoints:resume';
  export const remix = 'runtime-checkpoints:remix';
  export const toggle = 'runtime-checkpoints:toggle';
  export const toggleAutosave = 'runtime-checkpoints:toggle-autosave';
  export const rename = 'runtime-checkpoints:rename';
  export const pin = 'runtime-checkpoints:toggle-pin';
  export const remove = 'runtime-checkpoints:delete';
  export const share = 'runtime-checkpoints:share';
  export const download = 'runtime-checkpoints:export';
  export const importArchive = 'runtime-checkpoints:import';
  export const cancel = 'runtime-checkpoints:cancel';
  export const verify = 'runtime-checkpoints:verify';
  export const inspect = 'runtime-checkpoints:inspect';
  export const openPanel = 'runtime-checkpoints:open-panel';
}

const LABEL_ARGS = {
  type: 'object',
  properties: {
    brief: {
      type: 'boolean',
      description: 'Whether the label may be short: what is meant is seen'
    }
  }
} as const;
const CHECKPOINT_ARGS = {
  type: 'object',
  properties: {
    ...LABEL_ARGS.properties,
    checkpoint: {
      type: 'string',
      description: 'The id of one of the current notebook’s checkpoints'
    }
  }
} as const;

/** Register all commands; they act on the notebook in front. */
export function addCommands(options: {
  commands: CommandRegistry;
  model: RuntimeCheckpoints;
  actions: Actions;
  trans: TranslationBundle;
  openPanel: () => void;
}): void {
  const { commands, model, actions, trans } = options;

  const on = (
    when: (runtime: NotebookRuntime) => boolean,
    act: (runtime: NotebookRuntime) => Promise<void>
  ) => ({
    isEnabled: () => model.current !== null && when(model.current),
    execute: async () => {
      if (model.current) {
        await act(model.current);
      }
    }
  });

  const find = (args: Args): ICheckpoint | undefined =>
    model.current?.checkpoints?.find(c => c.id === args.checkpoint);

  const onCheckpoint = (
    act: (
      runtime: NotebookRuntime,
      checkpoint: ICheckpoint
    ) => Promise<void> | void
  ) => ({
    isVisible: (args: Args) => find(args) !== undefined,
    execute: async (args: Args) => {
      const checkpoint = find(args);
      if (model.current && checkpoint) {
        await act(model.current, checkpoint);
      }
    }
  });

  const either = (full: string, brief: string) => (args: Args) =>
    args.brief ? brief : full;
  const isIdle = (runtime: NotebookRuntime) => runtime.progress === null;
  const canSave = (runtime: NotebookRuntime) =>
    ['on', 'saved', 'failed'].includes(runtime.state) && !!runtime.kernelId;

  commands.addCommand(CommandIDs.primary, {
    label: trans.__('Save or Wake the Kernel'),
    caption: trans.__(
      'Save a runtime checkpoint; wake the kernel if it sleeps; switch runtime checkpoints on if they are off'
    ),
    icon: checkpointIcon,
    describedBy: { args: LABEL_ARGS },
    ...on(
      () => true,
      runtime => actions.primary(runtime)
    )
  });
  commands.addCommand(CommandIDs.save, {
    label: either(trans.__('Save a Runtime Checkpoint'), trans.__('Save')),
    caption: trans.__('Save the kernel, whole; it goes on running'),
    icon: args => (args.toolbar ? checkpointIcon : undefined),
    describedBy: { args: LABEL_ARGS },
    ...on(canSave, runtime => actions.save(runtime))
  });
  commands.addCommand(CommandIDs.saveAs, {
    label: either(
      trans.__('Save a Runtime Checkpoint With a Name…'),
      trans.__('Save As…')
    ),
    describedBy: { args: LABEL_ARGS },
    ...on(canSave, runtime => actions.saveAs(runtime))
  });
  commands.addCommand(CommandIDs.wake, {
    label: either(trans.__('Wake the Kernel'), trans.__('Wake')),
    caption: trans.__('Resume the newest runtime checkpoint'),
    icon: args => (args.toolbar ? asleepIcon : undefined),
    describedBy: { args: LABEL_ARGS },
    isVisible: () => model.current?.state === 'asleep',
    ...on(
      runtime => runtime.state === 'asleep',
      runtime => actions.wake(runtime)
    )
  });
  commands.addCommand(CommandIDs.startFresh, {
    label: either(trans.__('Start a Fresh Kernel'), trans.__('Start Fresh')),
    caption: trans.__('Let the saved states be, and begin anew'),
    describedBy: { args: LABEL_ARGS },
    isVisible: () => model.current?.state === 'asleep',
    ...on(
      runtime => runtime.state === 'asleep',
      runtime => actions.startFresh(runtime)
    )
  });
  commands.addCommand(CommandIDs.resume, {
    label: args =>
      args.checkpoint
        ? trans.__('Resume')
        : args.brief
          ? trans.__('Resume an Older State…')
          : trans.__('Resume a Runtime Checkpoint…'),
    caption: trans.__('Put the kernel back to a saved state'),
    describedBy: { args: CHECKPOINT_ARGS },
    isEnabled: () =>
      model.current !== null &&
      isIdle(model.current) &&
      model.current.newest !== null,
    execute: async args => {
      const checkpoint = find(args);
      if (model.current && checkpoint) {
        await actions.resume(model.current, checkpoint);
      } else if (model.current) {
        await actions.resumeOlder(model.current);
      }
    }
  });
  commands.addCommand(CommandIDs.remix, {
    label: args =>
      args.checkpoint
        ? trans.__('Open as a New Notebook…')
        : args.brief
          ? trans.__('Remix…')
          : trans.__('Remix This Notebook…'),
    caption: trans.__(
      'Copy the notebook with its saved state; both go on, independent'
    ),
    describedBy: { args: CHECKPOINT_ARGS },
    isEnabled: () => model.current !== null && model.current.settings.enabled,
    execute: async args => {
      if (model.current) {
        await actions.remix(model.current, find(args));
      }
    }
  });
  commands.addCommand(CommandIDs.toggle, {
    label: either(
      trans.__('Runtime Checkpoints for This Notebook'),
      trans.__('Switched On')
    ),
    isToggled: () => model.current?.settings.enabled ?? false,
    describedBy: { args: LABEL_ARGS },
    ...on(isIdle, runtime =>
      runtime.settings.enabled
        ? actions.disable(runtime)
        : actions.enable(runtime)
    )
  });
  commands.addCommand(CommandIDs.toggleAutosave, {
    label: either(
      trans.__('Save Runtime Checkpoints Automatically'),
      trans.__('Autosave')
    ),
    caption: trans.__(
      'Save the kernel before it is stopped, when it is idle, and on danger'
    ),
    isToggled: () =>
      model.current !== null &&
      model.current.settings.enabled &&
      model.current.settings.autosave,
    describedBy: { args: LABEL_ARGS },
    ...on(
      runtime => runtime.settings.enabled,
      runtime =>
        actions.configure(runtime, { autosave: !runtime.settings.autosave })
    )
  });
  commands.addCommand(CommandIDs.rename, {
    label: trans.__('Rename…'),
    describedBy: { args: CHECKPOINT_ARGS },
    ...onCheckpoint((runtime, checkpoint) =>
      actions.rename(runtime, checkpoint)
    )
  });
  commands.addCommand(CommandIDs.pin, {
    label: args => (find(args)?.pinned ? trans.__('Unpin') : trans.__('Pin')),
    caption: trans.__('What is pinned is never deleted automatically'),
    describedBy: { args: CHECKPOINT_ARGS },
    ...onCheckpoint((runtime, checkpoint) => actions.pin(runtime, checkpoint))
  });
  commands.addCommand(CommandIDs.remove, {
    label: trans.__('Delete'),
    describedBy: { args: CHECKPOINT_ARGS },
    ...onCheckpoint((runtime, checkpoint) =>
      actions.remove(runtime, checkpoint)
    )
  });
  commands.addCommand(CommandIDs.download, {
    label: trans.__('Export…'),
    caption: trans.__('Download it as an archive, and the notebook'),
    describedBy: { args: CHECKPOINT_ARGS },
    ...onCheckpoint((runtime, checkpoint) =>
      actions.export(runtime, checkpoint)
    )
  });
  commands.addCommand(CommandIDs.share, {
    label: trans.__('Share…'),
    caption: trans.__('Let other users of this host go on from it'),
    describedBy: { args: CHECKPOINT_ARGS },
    ...onCheckpoint((_, checkpoint) => actions.share(checkpoint))
  });
  commands.addCommand(CommandIDs.inspect, {
    label: trans.__('What Is Inside…'),
    describedBy: { args: CHECKPOINT_ARGS },
    ...onCheckpoint((_, checkpoint) => actions.inspect(checkpoint))
  });
  commands.addCommand(CommandIDs.verify, {
    label: trans.__('Verify'),
    caption: trans.__('Read every byte again, and compare'),
    describedBy: { args: CHECKPOINT_ARGS },
    ...onCheckpoint((runtime, checkpoint) =>
      actions.verify(runtime, checkpoint)
    )
  });
  commands.addCommand(CommandIDs.importArchive, {
    label: trans.__('Import a Runtime Checkpoint…'),
    caption: trans.__('Make a notebook of an archive that was exported'),
    describedBy: { args: LABEL_ARGS },
    isEnabled: () => model.availability === 'available',
    execute: () => actions.importArchive()
  });
  commands.addCommand(CommandIDs.cancel, {
    label: trans.__('Cancel Saving or Resuming'),
    caption: trans.__('The kernel goes on as if it had never begun'),
    describedBy: { args: LABEL_ARGS },
    ...on(
      runtime => !!runtime.progress?.operation,
      runtime => actions.cancel(runtime)
    )
  });
  commands.addCommand(CommandIDs.openPanel, {
    label: either(
      trans.__('Show Runtime Checkpoints'),
      trans.__('Show History')
    ),
    describedBy: { args: LABEL_ARGS },
    execute: () => options.openPanel()
  });
}
