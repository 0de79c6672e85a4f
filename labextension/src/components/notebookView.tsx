import { PathExt } from '@jupyterlab/coreutils';
import type { TranslationBundle } from '@jupyterlab/translation';

import * as React from 'react';

import { stateIcon } from '../icons';
import type {
  ICheckpoint,
  INotebookRuntime,
  IProblem,
  IProgress
} from '../tokens';
import { clockText, sizeText, stateExplanation, stateLabel } from '../wording';
import type { IPoint, RowAction } from './history';
import { History } from './history';
import { ProblemDetails } from './problem';

/** What the panel's buttons do. */
export interface IPanelActions {
  enable: () => void;
  disable: () => void;
  setAutosave: (autosave: boolean) => void;
  save: () => void;
  saveAs: () => void;
  remix: () => void;
  wake: () => void;
  startFresh: () => void;
  chooseKernel: () => void;
  retry: () => void;
  onRow: (action: RowAction, checkpoint: ICheckpoint, at: IPoint) => void;
}

/** Everything about one notebook: its state, what can be done, its history. */
export function NotebookView(props: {
  runtime: INotebookRuntime;
  /** Why nothing works on this server, if so. */
  serverProblem: IProblem | null;
  now: number;
  trans: TranslationBundle;
  actions: IPanelActions;
}): JSX.Element {
  const { runtime, serverProblem, now, trans, actions } = props;
  const { state, settings, checkpoints, progress } = runtime;
  const icon = stateIcon(state);
  const problem = state === 'unavailable' ? serverProblem : runtime.problem;
  const canSave = state === 'on' || state === 'saved' || state === 'failed';
  return (
    <>
      <header>
        <h2 title={runtime.path}>{PathExt.basename(runtime.path)}</h2>
        <div className="jp-RuntimeCheckpoints-now" data-state={state}>
          <icon.react tag="span" />
          <div role="status">
            <strong>{stateLabel(runtime, now, trans)}</strong>
            <p>{meaning(runtime, now, trans)}</p>
          </div>
        </div>
        {progress ? <ProgressBar progress={progress} trans={trans} /> : null}
        {problem && (state === 'failed' || state === 'unavailable') ? (
          <ProblemDetails problem={problem} trans={trans} />
        ) : null}
        <div className="jp-RuntimeCheckpoints-buttons">
          {state === 'off' ? (
            <Button onClick={actions.enable} accept>
              {trans.__('Switch On')}
            </Button>
          ) : null}
          {canSave ? (
            <>
              <Button onClick={actions.save} accept>
                {trans.__('Save')}
              </Button>
              <Button onClick={actions.saveAs}>{trans.__('Save As…')}</Button>
            </>
          ) : null}
          {state === 'asleep' ? (
            <>
              <Button onClick={actions.wake} accept>
                {trans.__('Wake')}
              </Button>
              <Button onClick={actions.startFresh}>
                {trans.__('Start Fresh')}
              </Button>
            </>
          ) : null}
          {state === 'unsupported' ? (
            <Button onClick={actions.chooseKernel} accept>
              {trans.__('Choose a Kernel')}
            </Button>
          ) : null}
          {state === 'unavailable' ? (
            <Button onClick={actions.retry} accept>
              {trans.__('Look Again')}
            </Button>
          ) : null}
          {checkpoints?.length ? (
            <Button onClick={actions.remix}>{trans.__('Remix…')}</Button>
          ) : null}
        </div>
        {settings.enabled ? (
          <div className="jp-RuntimeCheckpoints-settings">
            <label>
              <input
                type="checkbox"
                checked={settings.autosave}
                onChange={event => actions.setAutosave(event.target.checked)}
              />
              {trans.__('Autosave before it stops')}
            </label>
            <button
              type="button"
              className="jp-RuntimeCheckpoints-link"
              onClick={actions.disable}
            >
              {trans.__('Switch off')}
            </button>
          </div>
        ) : null}
      </header>
      {checkpoints?.length ? (
        <>
          <History
            checkpoints={checkpoints}
            position={runtime.position}
            now={now}
            trans={trans}
            onAction={actions.onRow}
          />
          <footer>{summary(checkpoints, trans)}</footer>
        </>
      ) : settings.enabled && checkpoints ? (
        <p className="jp-RuntimeCheckpoints-empty">
          {trans.__(
            'Nothing is saved yet. What you save shows here, and you can go back to it at any time.'
          )}
        </p>
      ) : null}
    </>
  );
}

function Button(props: {
  onClick: () => void;
  accept?: boolean;
  children: React.ReactNode;
}): JSX.Element {
  return (
    <button
      type="button"
      className={`jp-Dialog-button jp-mod-styled ${
        props.accept ? 'jp-mod-accept' : 'jp-mod-reject'
      }`}
      onClick={props.onClick}
    >
      {props.children}
    </button>
  );
}

function ProgressBar(props: {
  progress: IProgress;
  trans: TranslationBundle;
}): JSX.Element {
  const { progress, trans } = props;
  const { done, total, kind } = progress;
  const label =
    kind === 'saving'
      ? trans.__('Saving the kernel')
      : trans.__('Resuming the kernel');
  return (
    <div className="jp-RuntimeCheckpoints-progress">
      <progress
        aria-label={label}
        {...(total > 0 ? { value: done, max: total } : {})}
      />
      <span>
        {total > 0
          ? trans.__('%1 of %2', sizeText(done), sizeText(total))
          : label}
      </span>
    </div>
  );
}

/** The state in a sentence, without what a click on the toolbar's button does. */
function meaning(
  runtime: INotebookRuntime,
  now: number,
  trans: TranslationBundle
): string {
  switch (runtime.state) {
    case 'off':
      return trans.__(
        'Switch runtime checkpoints on to save this notebook’s kernel, whole, and to continue from there later.'
      );
    case 'on':
      return trans.__('Nothing is saved yet.');
    case 'asleep':
      return trans.__(
        'Run any cell to wake the kernel, as it was saved at %1.',
        runtime.newest ? clockText(runtime.newest.created, now) : ''
      );
    case 'failed':
    case 'unavailable':
    case 'saved':
      return '';
    case 'unsupported':
      return trans.__(
        'Only kernels in a container of their own can be saved, such as “Python 3 (checkpoints)”.'
      );
    default:
      return stateExplanation(runtime, now, trans);
  }
}

function summary(
  checkpoints: readonly ICheckpoint[],
  trans: TranslationBundle
): string {
  const bytes = checkpoints.reduce(
    (sum, c) => sum + (c.held ?? c.memory_size + c.files_size),
    0
  );
  return trans._n(
    '%1 checkpoint, %2',
    '%1 checkpoints, %2',
    checkpoints.length,
    sizeText(bytes)
  );
}
