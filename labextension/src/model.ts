import type { IChangedArgs } from '@jupyterlab/coreutils';
import type { INotebookTracker, NotebookPanel } from '@jupyterlab/notebook';
import type { ServiceManager } from '@jupyterlab/services';
import type { TranslationBundle } from '@jupyterlab/translation';

import type { ISignal } from '@lumino/signaling';
import { Signal } from '@lumino/signaling';

import { NotebookRuntime } from './notebookRuntime';
import { CheckpointsApi, ServerError, asProblem } from './request';
import type { IServerEvent } from './serverEvents';
import { asServerEvent } from './serverEvents';
import type {
  Availability,
  ICheckpoint,
  IProblem,
  IRuntimeCheckpoints,
  ISleeping
} from './tokens';
import { noteCulled } from './waking';

/** Milliseconds between two looks whether a kernel that is to be culled is gone. */
const CULL_INTERVAL = 500;
const CULL_LOOKS = 40;

/** Milliseconds until a server that did not answer is asked again; not while hidden. */
const SILENCE_INTERVAL = 3000;

/** See {@link IRuntimeCheckpoints}. Follows the server's events; never polls while idle. */
export class RuntimeCheckpoints implements IRuntimeCheckpoints {
  constructor(options: RuntimeCheckpoints.IOptions) {
    this.api = options.api;
    this._services = options.services;
    this._tracker = options.tracker;
    this._trans = options.trans;
    this._services.events.stream.connect(this._onEmission, this);
    this._services.connectionFailure.connect(this._onConnectionFailure, this);
    this._tracker.currentChanged.connect(this._onCurrentChanged, this);
    this._tracker.widgetAdded.connect(this._onWidgetAdded, this);
    this._tracker.forEach(panel => {
      this.of(panel);
    });
  }

  readonly api: CheckpointsApi;

  get availability(): Availability {
    return this._availability;
  }

  get problem(): IProblem | null {
    return this._problem;
  }

  /** The version of the server extension; empty until it is known. */
  get serverVersion(): string {
    return this._serverVersion;
  }

  get availabilityChanged(): ISignal<this, Availability> {
    return this._availabilityChanged;
  }

  get current(): NotebookRuntime | null {
    const panel = this._tracker.currentWidget;
    return panel && !panel.isDisposed ? this.of(panel) : null;
  }

  get currentChanged(): ISignal<this, IChangedArgs<NotebookRuntime | null>> {
    return this._currentChanged;
  }

  get sleepingChanged(): ISignal<this, void> {
    return this._sleepingChanged;
  }

  /** An event of the server, for whoever shows more of it than a state. */
  get serverEvent(): ISignal<this, IServerEvent> {
    return this._serverEvent;
  }

  /** What other users share with this one, newest first, as far as is known. */
  get sharedWithMe(): readonly ICheckpoint[] {
    return this._sharedWithMe;
  }

  get sharedWithMeChanged(): ISignal<this, void> {
    return this._sharedWithMeChanged;
  }

  get isDisposed(): boolean {
    return this._isDisposed;
  }

  dispose(): void {
    if (this._isDisposed) {
      return;
    }
    this._isDisposed = true;
    clearTimeout(this._timer);
    this._runtimes.forEach(runtime => runtime.dispose());
    this._runtimes.clear();
    Signal.clearData(this);
  }

  of(panel: NotebookPanel): NotebookRuntime {
    let runtime = this._runtimes.get(panel);
    if (!runtime) {
      runtime = new NotebookRuntime({
        api: this.api,
        context: panel.context,
        availability: () => this._availability,
        trans: this._trans
      });
      this._runtimes.set(panel, runtime);
      panel.disposed.connect(this._onPanelDisposed, this);
    }
    return runtime;
  }

  async check(): Promise<void> {
    try {
      const status = await this.api.status();
      this._serverVersion = status.version;
      if (status.available) {
        this._setAvailability('available', null);
      } else {
        this._setAvailability('unavailable', status);
      }
    } catch (error) {
      const status = error instanceof ServerError ? error.status : 0;
      this._setAvailability(
        status === 404
          ? 'no-extension'
          : status === 403
            ? 'not-allowed'
            : 'unavailable',
        asProblem(error)
      );
      if (status === 0) {
        this._checkLater();
      }
    }
  }

  async sleeping(): Promise<ISleeping[]> {
    const runtimes = await this.api.runtimes();
    return runtimes.flatMap(
      ({ runtime, notebook, deleted, kernels, newest }) =>
        newest && notebook && !deleted && !kernels.length
          ? [{ runtime, notebook, checkpoint: newest }]
          : []
    );
  }

  /** Ask again what others share: nobody tells. */
  async refreshSharedWithMe(): Promise<void> {
    if (this._availability !== 'available') {
      return;
    }
    // Nice to know, and no reason to show nothing.
    const found = await this.api.checkpoints({ shared: '1' }).catch(() => []);
    if (!this._isDisposed) {
      this._sharedWithMe = found;
      this._sharedWithMeChanged.emit();
    }
  }

  /** Nobody tells when a server answers again. */
  private _checkLater(): void {
    clearTimeout(this._timer);
    this._timer = window.setTimeout(() => {
      if (document.hidden) {
        this._checkLater();
      } else if (!this._isDisposed) {
        void this.check();
      }
    }, SILENCE_INTERVAL);
  }

  private _setAvailability(
    availability: Availability,
    problem: IProblem | null
  ): void {
    this._problem = problem;
    const former = this._availability;
    if (availability !== former) {
      this._availability = availability;
      this._runtimes.forEach(runtime => runtime.onAvailabilityChanged(former));
    }
    this._availabilityChanged.emit(availability);
  }

  private _onEmission(_: unknown, emission: { schema_id: string }): void {
    const event = asServerEvent(emission);
    if (!event) {
      return;
    }
    this._runtimes.forEach(runtime => {
      const concerns =
        (event.notebook && event.notebook === runtime.path) ||
        (event.source_notebook && event.source_notebook === runtime.path) ||
        (event.kernel_id && event.kernel_id === runtime.kernelId) ||
        (event.runtime && event.runtime === runtime.settings.runtime);
      if (concerns) {
        runtime.onServerEvent(event);
      }
    });
    if (event.action === 'culled' && event.kernel_id) {
      if (event.checkpoint) {
        noteCulled(event.kernel_id);
      }
      void this._noticeCulled(event.kernel_id);
    }
    this._serverEvent.emit(event);
    if (event.action !== 'progress') {
      this._sleepingChanged.emit();
    }
  }

  /** The page would notice within its own interval, and take the kernel for alive until then. */
  private async _noticeCulled(kernelId: string): Promise<void> {
    const { kernels, sessions } = this._services;
    for (let look = 0; look < CULL_LOOKS && !this._isDisposed; look++) {
      await kernels.refreshRunning();
      await sessions.refreshRunning();
      if (![...kernels.running()].some(kernel => kernel.id === kernelId)) {
        break;
      }
      await new Promise(resolve => setTimeout(resolve, CULL_INTERVAL));
    }
    this._sleepingChanged.emit();
  }

  private _onConnectionFailure(): void {
    if (this._availability === 'available') {
      void this.check();
    }
  }

  private _onCurrentChanged(): void {
    const newValue = this.current;
    const oldValue = this._lastCurrent;
    if (newValue !== oldValue) {
      this._lastCurrent = newValue;
      this._currentChanged.emit({ name: 'current', oldValue, newValue });
    }
  }

  private _onWidgetAdded(_: INotebookTracker, panel: NotebookPanel): void {
    this.of(panel);
  }

  private _onPanelDisposed(panel: NotebookPanel): void {
    this._runtimes.get(panel)?.dispose();
    this._runtimes.delete(panel);
  }

  private readonly _services: ServiceManager.IManager;
  private readonly _tracker: INotebookTracker;
  private readonly _trans: TranslationBundle;
  private readonly _runtimes = new Map<NotebookPanel, NotebookRuntime>();
  private readonly _availabilityChanged = new Signal<this, Availability>(this);
  private readonly _currentChanged = new Signal<
    this,
    IChangedArgs<NotebookRuntime | null>
  >(this);
  private readonly _sleepingChanged = new Signal<this, void>(this);
  private readonly _sharedWithMeChanged = new Signal<this, void>(this);
  private readonly _serverEvent = new Signal<this, IServerEvent>(this);
  private _availability: Availability = 'unknown';
  private _problem: IProblem | null = null;
  private _serverVersion = '';
  private _sharedWithMe: readonly ICheckpoint[] = [];
  private _timer = 0;
  private _lastCurrent: NotebookRuntime | null = null;
  private _isDisposed = false;
}

/** Namespace of {@link RuntimeCheckpoints}. */
export namespace RuntimeCheckpoints {
  /** What the model is made from. */
  export interface IOptions {
    api: CheckpointsApi;
    services: ServiceManager.IManager;
    tracker: INotebookTracker;
    trans: TranslationBundle;
  }
}
