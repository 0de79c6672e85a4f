import type { ISessionContext } from '@jupyterlab/apputils';
import type { DocumentRegistry } from '@jupyterlab/docregistry';
import type { INotebookModel } from '@jupyterlab/notebook';
import type { Kernel } from '@jupyterlab/services';
import type { TranslationBundle } from '@jupyterlab/translation';

import { Debouncer } from '@lumino/polling';
import type { ISignal } from '@lumino/signaling';
import { Signal } from '@lumino/signaling';

import { newestFirst } from './history';
import type { CheckpointsApi, IOperation } from './request';
import type { IRuntime } from './request';
import { Cancelled, ServerError, asProblem } from './request';
import { relativesOf } from './relatives';
import type { IServerEvent } from './serverEvents';
import { notebookState, readSettings } from './state';
import type {
  Availability,
  ICheckpoint,
  INotebookRuntime,
  INotebookSettings,
  IProblem,
  IProgress,
  IRelative,
  IRemoval,
  IVerification,
  NotebookState
} from './tokens';
import { METADATA_KEY } from './tokens';
import { isWaking, wakened, wakingChanged } from './waking';

/** The provisioner whose kernels can be saved. */
const PROVISIONER = 'checkpoint-container-provisioner';

/** Milliseconds between two looks at an operation; events usually tell earlier. None while hidden. */
const OPERATION_INTERVAL = 1000;

/** Milliseconds after the last of several cells, until it is asked whether the kernel can be saved. */
const LOOK_DELAY = 500;

/** The runtime checkpoints of one open notebook: see {@link INotebookRuntime}. */
export class NotebookRuntime implements INotebookRuntime {
  constructor(options: NotebookRuntime.IOptions) {
    this._api = options.api;
    this._context = options.context;
    this._availability = options.availability;
    this._trans = options.trans;
    const { model, sessionContext } = this._context;
    model.metadataChanged.connect(this._onMetadataChanged, this);
    sessionContext.kernelChanged.connect(this._onKernelChanged, this);
    sessionContext.statusChanged.connect(this._onStatusChanged, this);
    sessionContext.connectionStatusChanged.connect(this._emitChanged, this);
    this._context.pathChanged.connect(this._onPathChanged, this);
    wakingChanged.connect(this._onWakingChanged, this);
    void this._context.ready.then(() => {
      if (this.settings.enabled) {
        void this.refresh();
      }
    });
  }

  get path(): string {
    return this._context.localPath;
  }

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  get settings(): INotebookSettings {
    return readSettings(this._context.model.getMetadata(METADATA_KEY));
  }

  get checkpoints(): readonly ICheckpoint[] | null {
    return this._visible;
  }

  get newest(): ICheckpoint | null {
    return this._visible?.[0] ?? null;
  }

  get relatives(): readonly IRelative[] {
    return this._relatives;
  }

  get problem(): IProblem | null {
    return this._problem;
  }

  get position(): string {
    return this._position;
  }

  get kernelId(): string {
    const kernel = this._context.sessionContext.session?.kernel;
    return kernel && kernel.status !== 'dead' ? kernel.id : '';
  }

  get progress(): IProgress | null {
    // That a save has ended may have been missed; without a kernel it has.
    if (
      this._progress &&
      (this._progress.kind !== 'saving' || this.kernelId !== '')
    ) {
      return this._progress;
    }
    // The server resumes a notebook's newest checkpoint by itself when its kernel starts.
    const { sessionContext } = this._context;
    const starts =
      isWaking(sessionContext) ||
      sessionContext.kernelDisplayStatus === 'starting';
    return starts && this._slept && !this._freshAsked
      ? { kind: 'resuming', stage: '', done: 0, total: 0, operation: '' }
      : null;
  }

  get state(): NotebookState {
    return notebookState({
      availability: this._availability(),
      settings: this.settings,
      progress: this.progress,
      problem: this._problem,
      hasKernel: this.kernelId !== '',
      supported: this._supported(),
      hasCheckpoints: this.newest !== null
    });
  }

  get isDisposed(): boolean {
    return this._isDisposed;
  }

  dispose(): void {
    if (!this._isDisposed) {
      this._isDisposed = true;
      this._look.dispose();
      Signal.clearData(this);
    }
  }

  async configure(changes: Partial<INotebookSettings>): Promise<void> {
    const { model } = this._context;
    const given: unknown = model.getMetadata(METADATA_KEY);
    model.setMetadata(METADATA_KEY, {
      ...(typeof given === 'object' ? given : {}),
      ...changes
    });
    // The server reads the file: what is not saved does not count.
    await this._context.save();
    if (this.settings.enabled) {
      await this.refresh();
    }
  }

  refresh(): Promise<void> {
    // Whoever asks before the next listing has begun shares it.
    if (!this._nextListing) {
      this._nextListing = this._listing.then(() => {
        this._nextListing = null;
        return this._list();
      });
      this._listing = this._nextListing;
    }
    return this._nextListing;
  }

  async save(name = ''): Promise<ICheckpoint | null> {
    const kernelId = this.kernelId;
    const { mode } = this.settings;
    this._begin('saving');
    try {
      const operation = await this._api.save({
        kernel_id: kernelId,
        ...(name ? { name } : {}),
        ...(mode ? { mode } : {})
      });
      const ended = await this._follow('saving', operation);
      await this.refresh();
      this._end(ended.checkpoint);
      return this._all?.find(c => c.id === ended.checkpoint) ?? null;
    } catch (error) {
      if (error instanceof Cancelled) {
        this._end('');
      } else {
        this._fail(asProblem(error));
      }
      throw error;
    }
  }

  async cancel(): Promise<void> {
    const operation = this.progress?.operation;
    if (operation) {
      await this._api.cancel(operation);
      this._wakeFollowers();
    }
  }

  async resume(checkpoint: string): Promise<void> {
    const kernelId = this.kernelId;
    this._begin('resuming');
    try {
      const operation = await this._api.resume(
        checkpoint,
        kernelId ? { kernel_id: kernelId } : { notebook: this.path }
      );
      const ended = await this._follow('resuming', operation);
      if (!kernelId) {
        await this._context.sessionContext.changeKernel({
          id: ended.kernel_id
        });
      }
      this._end(checkpoint);
    } finally {
      this._end('');
    }
  }

  /** Start the notebook's kernel; the server resumes its newest checkpoint. */
  async wake(): Promise<void> {
    this._problem = null;
    await wakened(this._context.sessionContext);
    if (!this.kernelId) {
      throw new Error(
        this._trans.__('The kernel of this notebook could not be started.')
      );
    }
  }

  /** Start the notebook's kernel without a checkpoint; those stay. */
  async startFresh(): Promise<void> {
    await this._api.startFreshNext(this.path);
    this._freshAsked = true;
    try {
      await this.wake();
    } finally {
      this._freshAsked = false;
    }
  }

  async rename(checkpoint: string, name: string): Promise<void> {
    this._replace(await this._api.change(checkpoint, { name }));
  }

  async pin(checkpoint: string, pinned: boolean): Promise<void> {
    this._replace(await this._api.change(checkpoint, { pinned }));
  }

  async verify(checkpoint: string): Promise<IVerification | null> {
    await this._ended(await this._api.verify(checkpoint));
    await this.refresh();
    return this._all?.find(c => c.id === checkpoint)?.verified ?? null;
  }

  remove(checkpoint: string): IRemoval {
    this._hidden.add(checkpoint);
    this._show();
    return {
      commit: async () => {
        if (!this._hidden.has(checkpoint)) {
          return;
        }
        try {
          await this._api.delete(checkpoint);
        } catch (error) {
          if (!(error instanceof ServerError && error.status === 404)) {
            this._hidden.delete(checkpoint);
            this._show();
            throw error;
          }
        }
        this._all = this._all?.filter(c => c.id !== checkpoint) ?? null;
        this._hidden.delete(checkpoint);
      },
      undo: () => {
        this._hidden.delete(checkpoint);
        this._show();
      }
    };
  }

  /** Forget the last problem: the user has seen it. */
  dismiss(): void {
    this._problem = null;
    this._emitChanged();
  }

  /** Something happened on the server to this notebook or its kernel. */
  onServerEvent(event: IServerEvent): void {
    switch (event.action) {
      case 'started':
      case 'progress':
        this._progress = {
          kind: 'saving',
          stage: event.stage ?? '',
          done: event.done ?? 0,
          total: event.total ?? 0,
          operation: event.operation ?? ''
        };
        this._emitChanged();
        break;
      case 'resuming':
        this._progress = {
          kind: 'resuming',
          stage: '',
          done: 0,
          total: 0,
          operation: event.operation ?? ''
        };
        this._emitChanged();
        break;
      case 'done':
      case 'unchanged':
      case 'resumed':
        this._wakeFollowers();
        void this.refresh().then(() => this._end(event.checkpoint ?? ''));
        break;
      case 'cancelled':
      case 'resume_cancelled':
      case 'resume_failed':
        // The kernel goes on as it was, or a fresh one does: both can be saved.
        this._wakeFollowers();
        this._end('');
        break;
      case 'failed':
      case 'kept':
      case 'bad_metadata':
        this._wakeFollowers();
        this._fail({
          message: event.message ?? '',
          reason: event.reason,
          hint: event.hint,
          findings: event.findings
        });
        break;
      case 'culled':
        this._wakeFollowers();
        void this.refresh();
        break;
      default:
        if (this.settings.enabled) {
          void this.refresh();
        }
    }
  }

  /** The server's availability has changed. */
  onAvailabilityChanged(former: Availability): void {
    // What happened while the server could not be reached was told to nobody.
    const missed = former !== 'unknown' && this._availability() === 'available';
    if (this.settings.enabled && (this._all === null || missed)) {
      void this.refresh();
    }
    this._emitChanged();
  }

  /** What cells have opened may stand in the way of a save: better known before than after. */
  private async _lookWhetherSaveable(): Promise<void> {
    const { kernelId } = this;
    if (document.hidden || !kernelId || !this._canSave()) {
      return;
    }
    const report = await this._api.presave(kernelId).catch(() => null);
    if (this._isDisposed || !report || kernelId !== this.kernelId) {
      return;
    }
    const findings = report.findings.filter(f => f.severity === 'block');
    if (findings.length) {
      this._obstacle = {
        message: this._trans.__('The kernel cannot be saved now.'),
        findings
      };
      this._fail(this._obstacle);
    } else if (this._obstacle && this._problem === this._obstacle) {
      this._problem = null;
      this._emitChanged();
    }
  }

  private _canSave(): boolean {
    return ['on', 'saved', 'failed'].includes(this.state);
  }

  private async _list(): Promise<void> {
    try {
      const [checkpoints, runtimes] = await Promise.all([
        this._api.checkpoints({ notebook: this.path }),
        // Nice to know, and no reason to show nothing.
        this._api.runtimes().catch(() => [])
      ]);
      if (this._isDisposed) {
        return;
      }
      this._noteSaveable(runtimes);
      this._relatives = relativesOf(
        checkpoints[0]?.runtime ?? this.settings.runtime,
        runtimes
      );
      this._all = newestFirst(checkpoints);
      if (this._problem && this._problem === this._listingProblem) {
        this._problem = null;
      }
      this._listingProblem = null;
      this._show();
    } catch (error) {
      this._listingProblem = asProblem(error);
      this._fail(this._listingProblem);
    }
  }

  /** Whether the kernel runs in a container, as its kernelspec says, or else the server. */
  private _supported(): boolean {
    const { specsManager, session } = this._context.sessionContext;
    const spec = specsManager.specs?.kernelspecs[session?.kernel?.name ?? ''];
    const stanza = spec?.metadata?.['kernel_provisioner'];
    return stanza === undefined
      ? !spec || this._saveable === this.kernelId
      : JSON.stringify(stanza).includes(PROVISIONER);
  }

  /** A server may run all kernels in containers, whatever their kernelspecs say. */
  private _noteSaveable(runtimes: readonly IRuntime[]): void {
    const kernelId = this.kernelId;
    if (runtimes.some(({ kernels }) => kernels.includes(kernelId))) {
      this._saveable = kernelId;
    }
  }

  /** Show how far it is, until it has ended. */
  private _follow(
    kind: IProgress['kind'],
    begun: IOperation
  ): Promise<IOperation> {
    return this._ended(begun, ({ id, stage, done, total }) => {
      this._progress = { kind, stage, done, total, operation: id };
      this._emitChanged();
    });
  }

  private async _ended(
    begun: IOperation,
    look: (operation: IOperation) => void = () => undefined
  ): Promise<IOperation> {
    let operation = begun;
    while (operation.state === 'running') {
      look(operation);
      await this._nextLook();
      operation = await this._api.operation(operation.id);
    }
    if (operation.state === 'cancelled') {
      throw new Cancelled();
    }
    if (operation.state === 'failed') {
      const message = this._trans.__('It failed, and nobody knows why.');
      throw new ServerError(operation.error ?? { message }, 200);
    }
    return operation;
  }

  /** After a while, or as soon as an event tells that something ended. */
  private _nextLook(): Promise<void> {
    return new Promise(resolve => {
      const followers = this._followers;
      let timer = 0;
      const wait = () => {
        clearTimeout(timer);
        if (!document.hidden) {
          timer = window.setTimeout(look, OPERATION_INTERVAL);
        }
      };
      function look(): void {
        clearTimeout(timer);
        document.removeEventListener('visibilitychange', wait);
        followers.delete(look);
        resolve();
      }
      document.addEventListener('visibilitychange', wait);
      followers.add(look);
      wait();
    });
  }

  private _wakeFollowers(): void {
    [...this._followers].forEach(look => look());
  }

  private _begin(kind: IProgress['kind']): void {
    this._problem = null;
    this._progress = { kind, stage: '', done: 0, total: 0, operation: '' };
    this._emitChanged();
  }

  private _end(position: string): void {
    this._progress = null;
    if (position) {
      this._position = position;
      this._problem = null;
    }
    this._emitChanged();
  }

  private _fail(problem: IProblem): void {
    this._progress = null;
    this._problem = problem;
    this._emitChanged();
  }

  private _replace(checkpoint: ICheckpoint): void {
    this._all =
      this._all?.map(c =>
        c.id === checkpoint.id ? { ...c, ...checkpoint } : c
      ) ?? null;
    this._show();
  }

  private _show(): void {
    this._visible = this._all?.filter(c => !this._hidden.has(c.id)) ?? null;
    this._emitChanged();
  }

  private _onKernelChanged(): void {
    if (!this.kernelId) {
      this._position = '';
    }
    if (this.settings.enabled) {
      // Events may have been missed, while the computer slept for instance.
      void this.refresh();
    }
    this._emitChanged();
  }

  private _onStatusChanged(_: unknown, status: Kernel.Status): void {
    if (status === 'idle') {
      void this._look.invoke();
    }
    this._emitChanged();
  }

  private _onWakingChanged(_: unknown, context: ISessionContext): void {
    if (context === this._context.sessionContext) {
      this._emitChanged();
    }
  }

  private _onMetadataChanged(_: INotebookModel, change: { key: string }): void {
    if (change.key === METADATA_KEY) {
      this._emitChanged();
    }
  }

  private _onPathChanged(): void {
    if (this.settings.enabled) {
      void this.refresh();
    }
  }

  private _emitChanged(): void {
    if (this._isDisposed) {
      return;
    }
    const status = this._context.sessionContext.kernelDisplayStatus;
    if (!this.kernelId && status !== 'starting') {
      this._slept = this.settings.enabled && this.newest !== null;
    } else if (this.kernelId && status !== 'starting') {
      this._slept = false;
    }
    this._changed.emit();
  }

  private readonly _api: CheckpointsApi;
  private readonly _context: DocumentRegistry.IContext<INotebookModel>;
  private readonly _availability: () => Availability;
  private readonly _changed = new Signal<this, void>(this);
  private readonly _followers = new Set<() => void>();
  private readonly _hidden = new Set<string>();
  private readonly _trans: TranslationBundle;
  private _all: ICheckpoint[] | null = null;
  private _visible: ICheckpoint[] | null = null;
  private _relatives: readonly IRelative[] = [];
  private _progress: IProgress | null = null;
  private _problem: IProblem | null = null;
  private _listingProblem: IProblem | null = null;
  private _obstacle: IProblem | null = null;
  private readonly _look = new Debouncer(
    () => this._lookWhetherSaveable(),
    LOOK_DELAY
  );
  private _listing: Promise<void> = Promise.resolve();
  private _nextListing: Promise<void> | null = null;
  private _position = '';
  private _slept = false;
  /** The kernel that is starting is to have none of the saved states. */
  private _freshAsked = false;
  /** A kernel that can be saved although its kernelspec does not say so. */
  private _saveable = '';
  private _isDisposed = false;
}

/** Namespace of {@link NotebookRuntime}. */
export namespace NotebookRuntime {
  /** What a notebook's runtime is made from. */
  export interface IOptions {
    api: CheckpointsApi;
    context: DocumentRegistry.IContext<INotebookModel>;
    availability: () => Availability;
    trans: TranslationBundle;
  }
}
