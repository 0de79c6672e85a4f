import type { IDisposable } from '@lumino/disposable';
import { Poll } from '@lumino/polling';
import type { ISignal } from '@lumino/signaling';
import { Signal } from '@lumino/signaling';

/** Ticks twice a minute while the page is visible, so that “2 min ago” stays true. */
export class Clock implements IDisposable {
  constructor() {
    this._poll = new Poll({
      name: 'jupyter-runtime-checkpoints:clock',
      standby: 'when-hidden',
      frequency: { interval: 30000, backoff: false },
      factory: () => {
        this._ticked.emit();
        return Promise.resolve();
      }
    });
  }

  /** Milliseconds since 1970. */
  get now(): number {
    return Date.now();
  }

  get ticked(): ISignal<this, void> {
    return this._ticked;
  }

  get isDisposed(): boolean {
    return this._poll.isDisposed;
  }

  dispose(): void {
    this._poll.dispose();
    Signal.clearData(this);
  }

  private readonly _poll: Poll;
  private readonly _ticked = new Signal<this, void>(this);
}
