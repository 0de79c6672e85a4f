import type { IRunningSessions } from '@jupyterlab/running';
import type { TranslationBundle } from '@jupyterlab/translation';
import { notebookIcon } from '@jupyterlab/ui-components';

import type { ISignal } from '@lumino/signaling';
import { Signal } from '@lumino/signaling';

import type { IRuntimeCheckpoints, ISleeping } from './tokens';
import { clockText } from './wording';

/** Sleeping kernels, as the Running panel wants them. Opening one wakes it. */
export class SleepingKernels implements IRunningSessions.IManager {
  constructor(private readonly _options: SleepingKernels.IOptions) {
    const { model, trans } = this._options;
    this.name = trans.__('Sleeping Kernels');
    this.shutdownLabel = trans.__('Delete Its Checkpoints');
    this.shutdownAllLabel = trans.__('Delete All');
    this.shutdownAllConfirmationText = trans.__(
      'Delete all runtime checkpoints of all sleeping kernels? This cannot be undone.'
    );
    model.sleepingChanged.connect(this.refreshRunning, this);
  }

  readonly name: string;
  readonly shutdownLabel: string;
  readonly shutdownAllLabel: string;
  readonly shutdownAllConfirmationText: string;

  get runningChanged(): ISignal<this, void> {
    return this._runningChanged;
  }

  running(): IRunningSessions.IRunningItem[] {
    const { trans, title, open, forget } = this._options;
    return this._sleeping.map(sleeping => ({
      label: () => title(sleeping.notebook),
      labelTitle: () =>
        trans.__(
          '%1 sleeps, saved %2; open it to wake its kernel',
          sleeping.notebook,
          clockText(sleeping.checkpoint.created, Date.now())
        ),
      detail: () => clockText(sleeping.checkpoint.created, Date.now()),
      icon: () => notebookIcon,
      context: sleeping.notebook,
      open: () => void open(sleeping.notebook),
      shutdown: () => void forget([sleeping])
    }));
  }

  shutdownAll(): void {
    void this._options.forget(this._sleeping, { confirmed: true });
  }

  refreshRunning(): void {
    if (this._options.model.availability !== 'available') {
      return;
    }
    this._options.model.sleeping().then(
      sleeping => {
        this._sleeping = sleeping;
        this._runningChanged.emit();
      },
      () => {
        // The panel's own states say why; an empty section would say nothing wrong.
      }
    );
  }

  private readonly _runningChanged = new Signal<this, void>(this);
  private _sleeping: ISleeping[] = [];
}

/** Namespace of {@link SleepingKernels}. */
export namespace SleepingKernels {
  /** What the section is made from. */
  export interface IOptions {
    model: IRuntimeCheckpoints;
    trans: TranslationBundle;
    title: (path: string) => string;
    open: (path: string) => Promise<void>;
    /** Delete all checkpoints of these, after asking unless that is done. */
    forget: (
      sleeping: readonly ISleeping[],
      options?: { confirmed: boolean }
    ) => Promise<void>;
  }
}
