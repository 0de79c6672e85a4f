import type { TranslationBundle } from '@jupyterlab/translation';
import { ReactWidget, UseSignal } from '@jupyterlab/ui-components';

import type { Message } from '@lumino/messaging';
import * as React from 'react';

import type { Actions } from '../actions';
import type { Clock } from '../clock';
import type { IPoint } from '../components/historyRow';
import { ImportButton, NotebookView } from '../components/notebookView';
import { ProblemDetails } from '../components/problem';
import { SharedList } from '../components/sharedList';
import { checkpointIcon } from '../icons';
import type { RuntimeCheckpoints } from '../model';
import type { NotebookRuntime } from '../notebookRuntime';
import type { ICheckpoint } from '../tokens';

/** The side bar's panel; follows the notebook in front. */
export class CheckpointPanel extends ReactWidget {
  constructor(private readonly _options: CheckpointPanel.IOptions) {
    super();
    const { trans } = this._options;
    this.id = 'jp-runtime-checkpoints';
    this.addClass('jp-RuntimeCheckpoints-panel');
    this.title.icon = checkpointIcon;
    this.title.caption = trans.__('Runtime Checkpoints');
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', trans.__('Runtime Checkpoints'));
    const { model } = this._options;
    model.availabilityChanged.connect(this._lookForShared, this);
    model.currentChanged.connect(this._lookForShared, this);
  }

  protected onAfterShow(msg: Message): void {
    super.onAfterShow(msg);
    this._lookForShared();
  }

  private _lookForShared(): void {
    if (this.isVisible) {
      void this._options.model.refreshSharedWithMe();
    }
  }

  protected render(): JSX.Element {
    const { model } = this._options;
    return (
      <UseSignal signal={model.availabilityChanged}>
        {() => (
          <UseSignal signal={model.currentChanged}>
            {() => {
              const runtime = model.current;
              return (
                <>
                  {runtime ? this._view(runtime) : this._withoutNotebook()}
                  {this._shared()}
                </>
              );
            }}
          </UseSignal>
        )}
      </UseSignal>
    );
  }

  private _withoutNotebook(): JSX.Element {
    const { model, trans, actions } = this._options;
    const { problem } = model;
    return (
      <div className="jp-RuntimeCheckpoints-empty">
        {problem ? (
          <ProblemDetails problem={problem} trans={trans} />
        ) : (
          <>
            <p>
              {trans.__('Open a notebook to see its runtime checkpoints here.')}
            </p>
            <ImportButton
              trans={trans}
              onClick={() => void actions.importArchive()}
            />
          </>
        )}
      </div>
    );
  }

  private _shared(): JSX.Element {
    const { model, trans, clock, actions } = this._options;
    return (
      <UseSignal signal={model.sharedWithMeChanged}>
        {() => (
          <SharedList
            checkpoints={model.sharedWithMe}
            now={clock.now}
            trans={trans}
            onOpen={checkpoint => void actions.openShared(checkpoint)}
          />
        )}
      </UseSignal>
    );
  }

  private _view(runtime: NotebookRuntime): JSX.Element {
    const { model, trans, clock, actions, openMenu, chooseKernel } =
      this._options;
    return (
      <UseSignal signal={clock.ticked}>
        {() => (
          <UseSignal signal={runtime.changed} key={runtime.path}>
            {() => (
              <NotebookView
                runtime={runtime}
                serverProblem={model.problem}
                now={clock.now}
                trans={trans}
                actions={{
                  enable: () => void actions.enable(runtime),
                  disable: () => void actions.disable(runtime),
                  setAutosave: autosave =>
                    void actions.configure(runtime, { autosave }),
                  save: () => void actions.save(runtime),
                  saveAs: () => void actions.saveAs(runtime),
                  remix: () => void actions.remix(runtime),
                  wake: () => void actions.wake(runtime),
                  startFresh: () => void actions.startFresh(runtime),
                  chooseKernel: () => void chooseKernel(),
                  retry: () => void model.check(),
                  cancel: () => void actions.cancel(runtime),
                  importArchive: () => void actions.importArchive(),
                  open: notebook => void actions.open(notebook),
                  onRow: (action, checkpoint, at) => {
                    switch (action) {
                      case 'resume':
                        return void actions.resume(runtime, checkpoint);
                      case 'rename':
                        return void actions.rename(runtime, checkpoint);
                      case 'delete':
                        return actions.remove(runtime, checkpoint);
                      case 'menu':
                        return openMenu(checkpoint, at);
                    }
                  }
                }}
              />
            )}
          </UseSignal>
        )}
      </UseSignal>
    );
  }
}

/** Namespace of {@link CheckpointPanel}. */
export namespace CheckpointPanel {
  /** What the panel is made from. */
  export interface IOptions {
    model: RuntimeCheckpoints;
    actions: Actions;
    clock: Clock;
    trans: TranslationBundle;
    openMenu: (checkpoint: ICheckpoint, at: IPoint) => void;
    chooseKernel: () => Promise<void>;
  }
}
