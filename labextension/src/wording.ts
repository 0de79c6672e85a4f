import type { TranslationBundle } from '@jupyterlab/translation';

import type { ICheckpoint, INotebookRuntime, Trigger } from './tokens';

/** Why a checkpoint was made, in a few words. */
export function triggerText(
  trigger: Trigger,
  trans: TranslationBundle
): string {
  switch (trigger) {
    case 'manual':
      return trans.__('by you');
    case 'cull':
      return trans.__('going to sleep');
    case 'idle':
      return trans.__('while idle');
    case 'shutdown':
      return trans.__('server stopping');
    case 'danger':
      return trans.__('in danger');
    case 'cell':
      return trans.__('after a cell');
    case 'restart':
      return trans.__('before a restart');
    case 'remix':
      return trans.__('from a remix');
    case 'import':
      return trans.__('imported');
    default:
      return trigger;
  }
}

/** `12.3 MB`; decimal units, as file managers show them. */
export function sizeText(bytes: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 || value >= 99.5 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** What it holds on the disk, and how much of that others hold as well. */
export function sizesText(
  checkpoint: ICheckpoint,
  trans: TranslationBundle
): string {
  const { held, shared } = checkpoint;
  return shared > 0
    ? trans.__(
        '%1 on the disk, %2 of it shared with other checkpoints',
        sizeText(held),
        sizeText(shared)
      )
    : trans.__('%1 on the disk, shared with no other', sizeText(held));
}

/** `2 min ago`; steps of a minute, so that it need not be drawn more often. */
export function agoText(
  moment: string,
  now: number,
  trans: TranslationBundle
): string {
  const minutes = Math.floor((now - Date.parse(moment)) / 60000);
  if (minutes < 1) {
    return trans.__('just now');
  }
  if (minutes < 60) {
    return trans.__('%1 min ago', minutes);
  }
  const hours = Math.floor(minutes / 60);
  if (hours < 24) {
    return trans.__('%1 h ago', hours);
  }
  return trans.__('%1 d ago', Math.floor(hours / 24));
}

/** `14:02`, with the date if it is not today's. */
export function clockText(
  moment: string,
  now: number,
  seconds = false
): string {
  const date = new Date(moment);
  const today = new Date(now).toDateString() === date.toDateString();
  return date.toLocaleString(undefined, {
    ...(today ? {} : { month: 'short', day: 'numeric' }),
    hour: '2-digit',
    minute: '2-digit',
    ...(seconds ? { second: '2-digit' } : {})
  });
}

/** The name the user gave, or else when it was made, to the second. */
export function titleText(checkpoint: ICheckpoint, now: number): string {
  return checkpoint.name || clockText(checkpoint.created, now, true);
}

/** When the newest state is from: the last save, or later if nothing has changed since. */
export function freshestMoment(checkpoint: ICheckpoint): string {
  return checkpoint.touched > checkpoint.created
    ? checkpoint.touched
    : checkpoint.created;
}

function savedAt(runtime: INotebookRuntime, now: number): string {
  return runtime.newest ? clockText(runtime.newest.created, now) : '';
}

/** The state in a few words; in fewer for the button, which has a fixed width. */
export function stateLabel(
  runtime: INotebookRuntime,
  now: number,
  trans: TranslationBundle,
  isShort = false
): string {
  switch (runtime.state) {
    case 'unavailable':
    case 'unsupported':
    case 'failed':
      return trans.__('Cannot save');
    case 'off':
      return trans.__('Checkpoints off');
    case 'on':
      return trans.__('Not saved yet');
    case 'saving':
      return trans.__('Saving…');
    case 'resuming':
      return trans.__('Resuming…');
    case 'asleep':
      return isShort
        ? trans.__('Asleep, %1', savedAt(runtime, now))
        : trans.__('Asleep, saved %1', savedAt(runtime, now));
    case 'saved':
      return runtime.newest
        ? trans.__(
            'Saved %1',
            agoText(freshestMoment(runtime.newest), now, trans)
          )
        : trans.__('Not saved yet');
  }
}

/** What the state means and what a click does, in a sentence or two. */
export function stateExplanation(
  runtime: INotebookRuntime,
  now: number,
  trans: TranslationBundle
): string {
  const newest = runtime.newest;
  switch (runtime.state) {
    case 'unavailable':
      return trans.__(
        'Runtime checkpoints do not work on this server. Click to see why.'
      );
    case 'unsupported':
      return trans.__(
        'This kernel cannot be saved. Click to see why, and what to do.'
      );
    case 'failed':
      return trans.__(
        'Runtime checkpoints: %1 Click for details.',
        runtime.problem?.message ?? ''
      );
    case 'off':
      return trans.__(
        'Runtime checkpoints are off for this notebook. Click to switch them on and save its kernel.'
      );
    case 'on':
      return trans.__('Nothing is saved yet. Click to save the kernel.');
    case 'saving':
      return trans.__('The kernel is being saved; it goes on running.');
    case 'resuming':
      return trans.__('The kernel is being resumed.');
    case 'asleep':
      return newest
        ? trans.__(
            'The kernel sleeps, saved %1. Run any cell, or click, to wake it.',
            clockText(newest.created, now)
          )
        : '';
    case 'saved':
      return newest
        ? trans.__(
            'Saved %1. Click to save the kernel again.',
            clockText(freshestMoment(newest), now)
          )
        : '';
  }
}
