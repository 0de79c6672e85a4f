import type { IChangedArgs } from '@jupyterlab/coreutils';
import type { NotebookPanel } from '@jupyterlab/notebook';

import { Token } from '@lumino/coreutils';
import type { IDisposable } from '@lumino/disposable';
import type { ISignal } from '@lumino/signaling';

/** The key in a notebook's metadata that holds {@link INotebookSettings}. */
export const METADATA_KEY = 'runtime_checkpoints';

/** What a save keeps: memory and files, or files only. */
export type Mode = 'process' | 'filesystem';

/** Why a runtime checkpoint was made. */
export type Trigger =
  | 'manual'
  | 'cull'
  | 'idle'
  | 'shutdown'
  | 'danger'
  | 'cell'
  | 'restart'
  | 'remix'
  | 'import';

/** One notebook's own settings, in its metadata. */
export interface INotebookSettings {
  enabled: boolean;
  autosave: boolean;
  /** Without it: as the kernelspec says. */
  mode?: Mode;
  /** The line of states that belongs to the notebook; the server writes it. */
  runtime: string;
}

/** What reading a checkpoint again has shown. */
export interface IVerification {
  /** ISO 8601 in UTC. */
  at: string;
  ok: boolean;
  problems: string[];
}

/** One runtime checkpoint, as the server lists it. Sizes are bytes, times ISO 8601 in UTC. */
export interface ICheckpoint {
  id: string;
  kernel_id: string;
  runtime: string;
  created: string;
  /** When the kernel was last found unchanged since; empty if never. */
  touched: string;
  name: string;
  trigger: Trigger;
  mode: Mode;
  /** The checkpoint that the kernel had been resumed from, or saved to before. */
  parent: string;
  pinned: boolean;
  memory_size: number;
  files_size: number;
  pause_seconds: number;
  save_seconds: number;
  image: string;
  kernel_name: string;
  /** The number of the last cell that the kernel had run; null if nobody knew. */
  execution_count: number | null;
  /** When it was last read again, whole, and what was found; null if never. */
  verified: IVerification | null;
  /** Bytes on the disk. */
  held: number;
  /** So many of these are held by other checkpoints as well. */
  shared: number;
  /** The user whose it is, if somebody else shares it; otherwise empty. */
  owner: string;
}

/** One answer of preflight: a sentence, and what to do about it. */
export interface IFinding {
  code: string;
  severity: 'block' | 'warn';
  message: string;
  hint?: string;
}

/** Whether a checkpoint can be resumed here. */
export interface IPreflight {
  ok: boolean;
  findings: IFinding[];
}

/** Another notebook that shares a state with this one. */
export interface IRelative {
  /** A copy that went on from one of this notebook's checkpoints, or what this is a copy of. */
  relation: 'remix' | 'original';
  id: string;
  /** Path of the other notebook. */
  notebook: string;
  /** The checkpoint of this notebook that a remix began with; empty for the original. */
  parent: string;
  /** When a remix was made; empty for the original, which is older than all that is here. */
  created: string;
  aside: boolean;
}

/** What went wrong, in plain words. */
export interface IProblem {
  message: string;
  reason?: string;
  hint?: string;
  findings?: readonly IFinding[];
}

/** A save or a resume under way. */
export interface IProgress {
  kind: 'saving' | 'resuming';
  stage: string;
  /** Bytes done. */
  done: number;
  /** Bytes in all; 0 where unknown. */
  total: number;
  /** The server's name for it; empty until it is known. */
  operation: string;
}

/** Whether runtime checkpoints work on this server at all. */
export type Availability =
  'unknown' | 'available' | 'no-extension' | 'not-allowed' | 'unavailable';

/**
 * What a notebook's button shows.
 *
 * `unavailable`: the server cannot save at all; `unsupported`: this kernel cannot be saved;
 * `failed`: the last save failed.
 */
export type NotebookState =
  | 'unavailable'
  | 'unsupported'
  | 'off'
  | 'on'
  | 'saving'
  | 'saved'
  | 'asleep'
  | 'resuming'
  | 'failed';

/** The runtime checkpoints of one open notebook. */
export interface INotebookRuntime extends IDisposable {
  /** The notebook's path. */
  readonly path: string;
  readonly state: NotebookState;
  readonly settings: INotebookSettings;
  /** Newest first; `null` until they are known. */
  readonly checkpoints: readonly ICheckpoint[] | null;
  readonly newest: ICheckpoint | null;
  /** Notebooks that branch off, and what this one branched off from. */
  readonly relatives: readonly IRelative[];
  readonly progress: IProgress | null;
  /** Why the last save or listing failed. */
  readonly problem: IProblem | null;
  /** The checkpoint the kernel was last resumed from or saved to, if known. */
  readonly position: string;
  readonly changed: ISignal<INotebookRuntime, void>;

  /** Change the notebook's settings; the notebook is saved, so that the server knows. */
  configure(changes: Partial<INotebookSettings>): Promise<void>;
  /** Ask the server again. */
  refresh(): Promise<void>;
  /** Save the kernel. Raises what the server answers; `Cancelled` if somebody did that. */
  save(name?: string): Promise<ICheckpoint | null>;
  /** Put the kernel back to a checkpoint; start one from it if there is none. */
  resume(checkpoint: string): Promise<void>;
  /** End the save or the resume under way, as if it had never begun. */
  cancel(): Promise<void>;
  /** Start the kernel; the server resumes the newest checkpoint. */
  wake(): Promise<void>;
  rename(checkpoint: string, name: string): Promise<void>;
  pin(checkpoint: string, pinned: boolean): Promise<void>;
  /** Read every byte of a checkpoint again, and compare. */
  verify(checkpoint: string): Promise<IVerification | null>;
  /** Take a checkpoint off the list, and delete it when `undo` can no longer be asked for. */
  remove(checkpoint: string): IRemoval;
}

/** A deletion that can still be undone. */
export interface IRemoval {
  /** Delete now. */
  commit(): Promise<void>;
  undo(): void;
}

/** A notebook whose kernel sleeps in a runtime checkpoint. */
export interface ISleeping {
  runtime: string;
  /** Path of the notebook. */
  notebook: string;
  checkpoint: ICheckpoint;
}

/** Runtime checkpoints in JupyterLab, for other extensions. */
export interface IRuntimeCheckpoints extends IDisposable {
  readonly availability: Availability;
  /** Why they are not available. */
  readonly problem: IProblem | null;
  readonly availabilityChanged: ISignal<IRuntimeCheckpoints, Availability>;
  /** The notebook in front, if any. */
  readonly current: INotebookRuntime | null;
  readonly currentChanged: ISignal<
    IRuntimeCheckpoints,
    IChangedArgs<INotebookRuntime | null>
  >;
  /** Something happened that may change who sleeps. */
  readonly sleepingChanged: ISignal<IRuntimeCheckpoints, void>;
  /** The runtime checkpoints of an open notebook. */
  of(panel: NotebookPanel): INotebookRuntime;
  /** All notebooks whose kernel sleeps. */
  sleeping(): Promise<ISleeping[]>;
  /** Ask again whether they are available. */
  check(): Promise<void>;
}

/** The token of {@link IRuntimeCheckpoints}. */
export const IRuntimeCheckpoints = new Token<IRuntimeCheckpoints>(
  'jupyter-runtime-checkpoints:IRuntimeCheckpoints',
  'Saves the kernels of notebooks as runtime checkpoints, and resumes them.'
);
