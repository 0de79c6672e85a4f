import {
  Dialog,
  InputDialog,
  Notification,
  showDialog
} from '@jupyterlab/apputils';
import { PathExt } from '@jupyterlab/coreutils';
import type { Contents } from '@jupyterlab/services';
import type { TranslationBundle } from '@jupyterlab/translation';

import * as React from 'react';

import {
  chooseArchive,
  createNotebook,
  download,
  downloadNotebook,
  setKernel
} from './archives';
import { CheckpointDetails } from './components/details';
import { ProblemDetails } from './components/problem';
import type { RuntimeCheckpoints } from './model';
import type { NotebookRuntime } from './notebookRuntime';
import type { IShares } from './request';
import { Cancelled, asProblem } from './request';
import type {
  ICheckpoint,
  INotebookRuntime,
  INotebookSettings,
  IProblem,
  ISleeping
} from './tokens';
import { SharesForm } from './widgets/sharesForm';
import { clockText, freshestMoment, titleText } from './wording';

/** Milliseconds in which a deletion can be undone. */
const UNDO_TIME = 10000;

/** What users can set for all notebooks. */
export interface IPreferences {
  /** Ask before a kernel goes back to an older state. */
  confirmResume: boolean;
  /** Autosave of notebooks that are switched on. */
  autosaveByDefault: boolean;
}

/** What users do with runtime checkpoints: confirms, does, and tells how it went. */
export class Actions {
  constructor(options: Actions.IOptions) {
    this._model = options.model;
    this._trans = options.trans;
    this.open = options.open;
    this._folder = options.folder;
    this._contents = options.contents;
    this._selectKernel = options.selectKernel;
    this._showPanel = options.showPanel;
    this._preferences = options.preferences;
  }

  /** Open a notebook; its kernel starts or wakes. */
  readonly open: (path: string) => Promise<void>;

  /** What a click on the button does, whatever the state. */
  async primary(runtime: NotebookRuntime): Promise<void> {
    switch (runtime.state) {
      case 'off':
        return this.enable(runtime);
      case 'on':
      case 'saved':
        return this.save(runtime);
      case 'asleep':
        return this.wake(runtime);
      case 'failed':
      case 'unavailable':
      case 'unsupported':
        return this.explain(runtime);
      default:
        this._showPanel();
    }
  }

  /** Switch runtime checkpoints on for a notebook, and save its kernel if it can be. */
  async enable(runtime: NotebookRuntime): Promise<void> {
    await this._told(async () => {
      const { autosaveByDefault } = this._preferences();
      await runtime.configure({ enabled: true, autosave: autosaveByDefault });
    });
    if (runtime.state === 'on' && runtime.kernelId) {
      await this.save(runtime);
    }
  }

  async disable(runtime: NotebookRuntime): Promise<void> {
    await this.configure(runtime, { enabled: false });
  }

  async configure(
    runtime: INotebookRuntime,
    changes: Partial<INotebookSettings>
  ): Promise<void> {
    await this._told(() => runtime.configure(changes));
  }

  /** Start the notebook's kernel without its checkpoints. */
  async startFresh(runtime: NotebookRuntime): Promise<void> {
    await this._told(() => runtime.startFresh());
  }

  async save(runtime: NotebookRuntime, name = ''): Promise<void> {
    await this._told(() => runtime.save(name));
  }

  /** End what is under way, as if it had never begun. */
  async cancel(runtime: INotebookRuntime): Promise<void> {
    await this._told(() => runtime.cancel());
  }

  async saveAs(runtime: NotebookRuntime): Promise<void> {
    const trans = this._trans;
    const answer = await InputDialog.getText({
      title: trans.__('Save a Runtime Checkpoint'),
      label: trans.__('Name'),
      placeholder: trans.__('before the long fit'),
      okLabel: trans.__('Save')
    });
    if (answer.button.accept) {
      await this.save(runtime, answer.value?.trim() ?? '');
    }
  }

  /** Start the notebook's kernel; the server resumes its newest checkpoint. */
  async wake(runtime: NotebookRuntime): Promise<void> {
    await this._told(() => runtime.wake());
  }

  /** Put the kernel to a checkpoint, after asking what is to become of its state now. */
  async resume(
    runtime: NotebookRuntime,
    checkpoint: ICheckpoint
  ): Promise<void> {
    const trans = this._trans;
    const title = titleText(checkpoint, Date.now());
    if (runtime.kernelId && this._preferences().confirmResume) {
      const newest = runtime.newest;
      const answer = await showDialog({
        title: trans.__('Go Back to “%1”?', title),
        body: (
          <div>
            <p>
              {newest
                ? trans.__(
                    'What the kernel did since %1 is lost, unless you save it first.',
                    clockText(freshestMoment(newest), Date.now())
                  )
                : trans.__('What the kernel holds now is lost.')}
            </p>
            <p>
              {trans.__(
                'The notebook stays connected. Its cells, and files in its folder, stay as they are.'
              )}
            </p>
          </div>
        ),
        buttons: [
          Dialog.cancelButton(),
          Dialog.warnButton({ label: trans.__('Resume') }),
          Dialog.okButton({ label: trans.__('Save and Resume') })
        ],
        defaultButton: 2
      });
      if (!answer.button.accept) {
        return;
      }
      if (answer.button.label === trans.__('Save and Resume')) {
        const saved = await this._told(() => runtime.save());
        if (!saved) {
          return;
        }
      }
    }
    const done = await this._told(() => runtime.resume(checkpoint.id));
    if (done) {
      Notification.success(trans.__('The kernel is back at “%1”.', title), {
        autoClose: 3000
      });
    }
  }

  /** Let the user choose one of the newest checkpoints, and resume it. */
  async resumeOlder(runtime: NotebookRuntime): Promise<void> {
    const trans = this._trans;
    const choices = (runtime.checkpoints ?? []).slice(0, 50);
    if (!choices.length) {
      this._showPanel();
      return;
    }
    const labels = choices.map(
      (c, index) =>
        `${index + 1}. ${c.name ? `${c.name}, ` : ''}${clockText(c.created, Date.now())}`
    );
    const answer = await InputDialog.getItem({
      title: trans.__('Resume an Older State'),
      label: trans.__('State'),
      items: labels,
      okLabel: trans.__('Continue')
    });
    const chosen = choices[labels.indexOf(answer.value ?? '')];
    if (answer.button.accept && chosen) {
      await this.resume(runtime, chosen);
    }
  }

  /** Copy the notebook with a state, and open the copy with its kernel running. */
  async remix(
    runtime: INotebookRuntime,
    checkpoint?: ICheckpoint
  ): Promise<void> {
    const trans = this._trans;
    const extension = PathExt.extname(runtime.path);
    const stem = PathExt.basename(runtime.path, extension);
    const answer = await InputDialog.getText({
      title: trans.__('Remix This Notebook'),
      label: trans.__('Name of the copy'),
      text: trans.__('%1-remix', stem),
      selectionRange: stem.length + 6,
      okLabel: trans.__('Remix')
    });
    const name = answer.value?.trim();
    if (!answer.button.accept || !name) {
      return;
    }
    const file = name.endsWith(extension) ? name : name + extension;
    const target = PathExt.join(PathExt.dirname(runtime.path), file);
    await this._told(async () => {
      await this._model.api.remix({
        source: runtime.path,
        target,
        ...(checkpoint ? { checkpoint: checkpoint.id } : {})
      });
      await this.open(target);
    });
  }

  async rename(
    runtime: INotebookRuntime,
    checkpoint: ICheckpoint
  ): Promise<void> {
    const answer = await InputDialog.getText({
      title: this._trans.__('Rename the Runtime Checkpoint'),
      label: this._trans.__('Name'),
      text: checkpoint.name,
      okLabel: this._trans.__('Rename')
    });
    if (answer.button.accept) {
      const name = answer.value?.trim() ?? '';
      await this._told(() => runtime.rename(checkpoint.id, name));
    }
  }

  async pin(runtime: INotebookRuntime, checkpoint: ICheckpoint): Promise<void> {
    await this._told(() => runtime.pin(checkpoint.id, !checkpoint.pinned));
  }

  /** Read it again, whole, and say whether all of it is as it was. */
  async verify(
    runtime: INotebookRuntime,
    checkpoint: ICheckpoint
  ): Promise<void> {
    const trans = this._trans;
    const title = titleText(checkpoint, Date.now());
    const id = Notification.emit(
      trans.__('Reading “%1” again…', title),
      'in-progress',
      { autoClose: false }
    );
    const done = await this._told(async () => {
      const found = await runtime.verify(checkpoint.id);
      if (!found?.ok) {
        throw new Error(
          [
            trans.__('“%1” is damaged and cannot be resumed.', title),
            ...(found?.problems ?? [])
          ].join(' ')
        );
      }
    });
    Notification.dismiss(id);
    if (done) {
      Notification.success(
        trans.__('All of “%1” is there, byte for byte.', title),
        { autoClose: 3000 }
      );
    }
  }

  /** Take it off the list at once; delete it when the time to undo is over. */
  remove(runtime: INotebookRuntime, checkpoint: ICheckpoint): void {
    const trans = this._trans;
    const removal = runtime.remove(checkpoint.id);
    const timer = setTimeout(() => {
      // A notification stays for longer while the page is not looked at; the offer must not.
      Notification.dismiss(notification);
      void this._told(() => removal.commit());
    }, UNDO_TIME);
    const notification = Notification.info(
      trans.__('Deleted “%1”.', titleText(checkpoint, Date.now())),
      {
        autoClose: false,
        actions: [
          {
            label: trans.__('Undo'),
            callback: () => {
              clearTimeout(timer);
              removal.undo();
            }
          }
        ]
      }
    );
  }

  /** Delete all checkpoints of sleeping kernels; this cannot be undone. */
  async forget(
    sleeping: readonly ISleeping[],
    options: { confirmed: boolean } = { confirmed: false }
  ): Promise<void> {
    const trans = this._trans;
    if (!options.confirmed) {
      const answer = await showDialog({
        title: trans.__('Delete This Sleeping Kernel?'),
        body: trans.__(
          'All runtime checkpoints of %1 are deleted. Its cells and outputs stay.',
          sleeping.map(({ notebook }) => notebook).join(', ')
        ),
        buttons: [
          Dialog.cancelButton(),
          Dialog.warnButton({ label: trans.__('Delete') })
        ]
      });
      if (!answer.button.accept) {
        return;
      }
    }
    await this._told(async () => {
      const { api } = this._model;
      for (const { runtime } of sleeping) {
        const checkpoints = await api.checkpoints({ runtime });
        await Promise.all(checkpoints.map(({ id }) => api.delete(id)));
      }
    });
  }

  /** Download the checkpoint's archive, and the notebook beside it: cells are not in an archive. */
  async export(
    runtime: INotebookRuntime,
    checkpoint: ICheckpoint
  ): Promise<void> {
    download(this._model.api.archiveUrl(checkpoint.id), '');
    await this._told(() =>
      downloadNotebook(this._contents, runtime.path, `${checkpoint.id}.ipynb`)
    );
  }

  /** Ask with whom a checkpoint is to be shared, and see to it. */
  async share(checkpoint: ICheckpoint): Promise<void> {
    const trans = this._trans;
    const { api } = this._model;
    const title = titleText(checkpoint, Date.now());
    let now: IShares = { shares: [], warning: '' };
    const known = await this._told(async () => {
      now = await api.shares(checkpoint.id);
    });
    if (!known) {
      return;
    }
    const answer = await showDialog({
      title: trans.__('Share “%1”', title),
      body: new SharesForm(now, trans),
      buttons: [
        Dialog.cancelButton(),
        Dialog.okButton({ label: trans.__('Share') })
      ]
    });
    if (!answer.button.accept) {
      return;
    }
    const before = now.shares.map(({ user }) => String(user));
    const wanted = answer.value ?? [];
    const done = await this._told(async () => {
      for (const user of before.filter(one => !wanted.includes(one))) {
        now = await api.unshare(checkpoint.id, user);
      }
      for (const user of wanted.filter(one => !before.includes(one))) {
        now = await api.share(checkpoint.id, user);
      }
    });
    if (done) {
      const names = now.shares.map(({ user, name }) =>
        user === '*' ? trans.__('everyone') : name
      );
      Notification.success(
        names.length
          ? trans.__('“%1” is shared with %2.', title, names.join(', '))
          : trans.__('“%1” is shared with nobody.', title),
        { autoClose: 3000 }
      );
    }
  }

  /** Make a notebook of what somebody shares, and open it with its kernel running. */
  async openShared(checkpoint: ICheckpoint): Promise<void> {
    const trans = this._trans;
    const answer = await InputDialog.getText({
      title: trans.__('Open What %1 Shares', checkpoint.owner),
      label: trans.__('Name of the new notebook'),
      text: checkpoint.name || trans.__('from-%1', checkpoint.owner),
      okLabel: trans.__('Open')
    });
    const name = answer.value?.trim();
    if (!answer.button.accept || !name) {
      return;
    }
    const target = PathExt.join(this._folder(), asNotebook(name));
    await this._told(async () => {
      await this._model.api.remix({ checkpoint: checkpoint.id, target });
      await this.open(target);
    });
  }

  /** Make a notebook of an archive that the user chooses, and open it with its kernel running. */
  async importArchive(): Promise<void> {
    const trans = this._trans;
    const chosen = await chooseArchive();
    if (!chosen) {
      return;
    }
    const { archive, notebook } = chosen;
    const answer = await InputDialog.getText({
      title: trans.__('Import a Runtime Checkpoint'),
      label: trans.__('Name of the new notebook'),
      text: archive.name.replace(/\.[^.]*$/, ''),
      okLabel: trans.__('Import')
    });
    const name = answer.value?.trim();
    if (!answer.button.accept || !name) {
      return;
    }
    const target = PathExt.join(this._folder(), asNotebook(name));
    await this._told(async () => {
      await createNotebook(this._contents, target, notebook, trans);
      try {
        await this._upload(archive, target);
      } catch (error) {
        await this._contents.delete(target);
        throw error;
      }
      await this.open(target);
    });
  }

  /** Send an archive to the server, under the user's eyes. */
  private async _upload(archive: File, target: string): Promise<void> {
    const trans = this._trans;
    const cancelling = new AbortController();
    const id = Notification.emit(
      trans.__('Importing %1…', archive.name),
      'in-progress',
      {
        autoClose: false,
        progress: 0,
        actions: [
          { label: trans.__('Cancel'), callback: () => cancelling.abort() }
        ]
      }
    );
    try {
      const checkpoint = await this._model.api.importArchive(
        archive,
        target,
        progress => Notification.update({ id, progress }),
        cancelling.signal
      );
      await setKernel(this._contents, target, checkpoint.kernel_name);
    } finally {
      Notification.dismiss(id);
    }
  }

  /** What is inside, and whether it can be resumed here. */
  async inspect(checkpoint: ICheckpoint): Promise<void> {
    const trans = this._trans;
    const preflight = await this._model.api
      .preflight(checkpoint.id)
      .catch(error => ({
        ok: false,
        findings: [
          {
            code: 'unknown',
            severity: 'block' as const,
            message: asProblem(error).message
          }
        ]
      }));
    await showDialog({
      title: titleText(checkpoint, Date.now()),
      body: (
        <CheckpointDetails
          checkpoint={checkpoint}
          preflight={preflight}
          trans={trans}
        />
      ),
      buttons: [Dialog.okButton({ label: trans.__('Close') })]
    });
  }

  /** Say why it does not work, and offer what can be done about it. */
  async explain(runtime: NotebookRuntime): Promise<void> {
    const trans = this._trans;
    switch (runtime.state) {
      case 'unsupported': {
        const answer = await showDialog({
          title: trans.__('This Kernel Cannot Be Saved'),
          body: trans.__(
            'Only kernels that run in a container of their own can be saved, such as “Python 3 (checkpoints)”. Choose one; the notebook’s cells stay as they are.'
          ),
          buttons: [
            Dialog.cancelButton(),
            Dialog.okButton({ label: trans.__('Choose a Kernel') })
          ]
        });
        if (answer.button.accept) {
          await this._selectKernel();
        }
        break;
      }
      case 'unavailable':
        await this._model.check();
        if (this._model.availability !== 'available') {
          await this.showProblem(
            trans.__('Runtime Checkpoints Do Not Work Here'),
            this._model.problem ?? { message: '' }
          );
        }
        break;
      default: {
        if (!runtime.problem) {
          break;
        }
        await this.showProblem(
          trans.__('Runtime Checkpoints'),
          runtime.problem
        );
        runtime.dismiss();
      }
    }
  }

  async showProblem(title: string, problem: IProblem): Promise<void> {
    await showDialog({
      title,
      body: <ProblemDetails problem={problem} trans={this._trans} />,
      buttons: [Dialog.okButton({ label: this._trans.__('Close') })]
    });
  }

  /** Do it; if that fails, say so in a sentence, with the rest a click away. */
  private async _told(work: () => Promise<unknown>): Promise<boolean> {
    const trans = this._trans;
    try {
      await work();
      return true;
    } catch (error) {
      if (error instanceof Cancelled) {
        return false;
      }
      const problem = asProblem(error);
      Notification.error(problem.message.slice(0, 140), {
        autoClose: false,
        actions: [
          {
            label: trans.__('Details'),
            callback: () => {
              void this.showProblem(trans.__('Runtime Checkpoints'), problem);
            }
          }
        ]
      });
      return false;
    }
  }

  private readonly _model: RuntimeCheckpoints;
  private readonly _trans: TranslationBundle;
  private readonly _folder: () => string;
  private readonly _contents: Contents.IManager;
  private readonly _selectKernel: () => Promise<void>;
  private readonly _showPanel: () => void;
  private readonly _preferences: () => IPreferences;
}

/** A file name with a notebook's ending. */
function asNotebook(name: string): string {
  return name.endsWith('.ipynb') ? name : `${name}.ipynb`;
}

/** Namespace of {@link Actions}. */
export namespace Actions {
  /** What the actions are made from. */
  export interface IOptions {
    model: RuntimeCheckpoints;
    trans: TranslationBundle;
    /** Open a notebook. */
    open: (path: string) => Promise<void>;
    /** The folder that new notebooks are made in. */
    folder: () => string;
    contents: Contents.IManager;
    /** Let the user choose another kernel for the current notebook. */
    selectKernel: () => Promise<void>;
    /** Bring the panel to the front. */
    showPanel: () => void;
    preferences: () => IPreferences;
  }
}
