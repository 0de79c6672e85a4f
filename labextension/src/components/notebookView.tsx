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
import {
  clockText,
  freshestMoment,
  sizeText,
  stateLabel,
  triggerText
} from '../wording';
import { History } from './history';
import type { IPoint, RowAction } from './historyRow';
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
  cancel: () => void;
  importArchive: () => void;
  open: (notebook: string) => void;
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
  const canImport = state !== 'unavailable';
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
        {problem && (state === 'failed' || state === 'unavailable') ? (
          <ProblemDetails problem={problem} trans={trans} />
        ) : null}
        <div className="jp-RuntimeCheckpoints-buttons">
          {progress ? (
            <ProgressBar
              progress={progress}
              trans={trans}
              onCancel={actions.cancel}
            />
          ) : null}
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
          {checkpoints?.length && !progress ? (
            <Button onClick={actions.remix}>{trans.__('Remix…')}</Button>
          ) : null}
        </div>
        {settings.enabled && state !== 'unavailable' ? (
          <div className="jp-RuntimeCheckpoints-settings">
            <label
              title={trans.__(
                'Save the kernel before it is stopped, when it is idle, and on danger'
              )}
            >
              <input
                type="checkbox"
                checked={settings.autosave}
                onChange={event => actions.setAutosave(event.target.checked)}
              />
              {trans.__('Autosave')}
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
            relatives={runtime.relatives}
            position={runtime.position}
            now={now}
            trans={trans}
            onAction={actions.onRow}
            onOpen={actions.open}
          />
        </>
      ) : settings.enabled && checkpoints ? (
        <p className="jp-RuntimeCheckpoints-empty">
          {trans.__(
            'Nothing is saved yet. What you save shows here, and you can go back to it at any time.'
          )}
        </p>
      ) : null}
      {canImport ? (
        <footer>
          <span>{checkpoints?.length ? summary(checkpoints, trans) : ''}</span>
          <ImportButton trans={trans} onClick={actions.importArchive} />
        </footer>
      ) : null}
    </>
  );
}

/** Brings a saved kernel from elsewhere; a part of the panel's foot. */
export function ImportButton(props: {
  trans: TranslationBundle;
  onClick: () => void;
}): JSX.Element {
  const { trans } = props;
  return (
    <button
      type="button"
      className="jp-RuntimeCheckpoints-link"
      title={trans.__('Make a notebook of an archive that was exported')}
      onClick={props.onClick}
    >
      {trans.__('Import…')}
    </button>
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
  onCancel: () => void;
}): JSX.Element {
  const { progress, trans } = props;
  const { done, total, kind, operation } = progress;
  const label =
    kind === 'saving'
      ? trans.__('Saving the kernel')
      : trans.__('Resuming the kernel');
  return (
    <div className="jp-RuntimeCheckpoints-progress" role="group">
      <progress
        aria-label={label}
        {...(total > 0 ? { value: done, max: total } : {})}
      />
      <span
        title={
          total > 0
            ? trans.__('%1 of %2', sizeText(done), sizeText(total))
            : label
        }
      >
        {total > 0 ? `${Math.floor((100 * done) / total)} %` : ''}
      </span>
      <button
        type="button"
        className="jp-RuntimeCheckpoints-link"
        disabled={!operation}
        onClick={props.onCancel}
      >
        {trans.__('Cancel')}
      </button>
    </div>
  );
}

/** The state in a sentence, without what a click on the toolbar's button does. */
function meaning(
  runtime: INotebookRuntime,
  now: number,
  trans: TranslationBundle
): string {
  const { newest } = runtime;
  switch (runtime.state) {
    case 'off':
      return trans.__(
        'Switch runtime checkpoints on to save this notebook’s kernel, whole, and to continue from there later.'
      );
    case 'on':
      return trans.__('Save to come back to it later.');
    case 'saving':
      return trans.__('The kernel goes on running.');
    case 'resuming':
      return trans.__('Cells wait until it is there.');
    case 'asleep':
      return trans.__('Run any cell to wake it.');
    case 'saved':
      return newest
        ? `${clockText(freshestMoment(newest), now)} · ${triggerText(newest.trigger, trans)}`
        : '';
    case 'failed':
    case 'unavailable':
      return '';
    case 'unsupported':
      return trans.__(
        'Only kernels in a container of their own can be saved, such as “Python 3 (checkpoints)”.'
      );
  }
}

function summary(
  checkpoints: readonly ICheckpoint[],
  trans: TranslationBundle
): string {
  const own = checkpoints.reduce((sum, c) => sum + c.held - c.shared, 0);
  // What they share is there once, and as much as any of them shares.
  const bytes = checkpoints.reduce(
    (most, { shared }) => Math.max(most, own + shared),
    0
  );
  return trans._n(
    '%1 checkpoint, %2',
    '%1 checkpoints, %2',
    checkpoints.length,
    sizeText(bytes)
  );
}
