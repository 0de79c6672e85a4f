import { PathExt } from '@jupyterlab/coreutils';
import type { TranslationBundle } from '@jupyterlab/translation';
import { ellipsesIcon, notebookIcon } from '@jupyterlab/ui-components';

import * as React from 'react';

import type { IHistoryRow } from '../history';
import { damagedIcon, pinIcon, verifiedIcon } from '../icons';
import type { ICheckpoint, IRelative, IVerification } from '../tokens';
import {
  agoText,
  sizeText,
  sizesText,
  titleText,
  triggerText
} from '../wording';
import { Branches, ROW_HEIGHT } from './branches';

/** What a key or a click asks to be done with a checkpoint. */
export type RowAction = 'resume' | 'rename' | 'delete' | 'menu';

/** Where a menu is to open. */
export interface IPoint {
  x: number;
  y: number;
}

/** What the history shows: the notebook's own checkpoints, and where others branch off. */
export type HistoryEntry = ICheckpoint | IRelative;

export function isRelative(entry: HistoryEntry): entry is IRelative {
  return 'relation' in entry;
}

/** What rows of both kinds are drawn from. */
interface IRowProps {
  row: IHistoryRow<HistoryEntry>;
  /** Its place in the whole history, from 0. */
  number: number;
  count: number;
  isFocused: boolean;
  /** Whether the kernel stands here. */
  isPosition: boolean;
  now: number;
  trans: TranslationBundle;
  onFocus: (id: string) => void;
  onAction: (action: RowAction, checkpoint: ICheckpoint, at: IPoint) => void;
  onOpen: (notebook: string) => void;
}

/** One line of the history. */
export function HistoryRow(props: IRowProps): JSX.Element {
  const { entry } = props.row;
  return isRelative(entry) ? (
    <RelativeRow {...props} relative={entry} />
  ) : (
    <CheckpointRow {...props} checkpoint={entry} />
  );
}

function CheckpointRow(
  props: IRowProps & { checkpoint: ICheckpoint }
): JSX.Element {
  const { checkpoint, isPosition, now, trans, onAction } = props;
  const title = titleText(checkpoint, now);
  const { execution_count: count, verified } = checkpoint;
  const facts = [
    agoText(checkpoint.created, now, trans),
    sizeText(checkpoint.held),
    triggerText(checkpoint.trigger, trans)
  ].join(' · ');
  return (
    <TreeItem
      {...props}
      onDoubleClick={at => onAction('resume', checkpoint, at)}
      onMenu={at => onAction('menu', checkpoint, at)}
    >
      <div className="jp-RuntimeCheckpoints-text">
        <div className="jp-RuntimeCheckpoints-title">
          <span title={title}>{title}</span>
          {count === null ? null : (
            <span
              className="jp-RuntimeCheckpoints-count"
              title={trans.__('Cell [%1] was the last to run', count)}
            >
              [{count}]
            </span>
          )}
          {checkpoint.pinned ? (
            <pinIcon.react
              tag="span"
              title={trans.__('Pinned: retention never deletes it')}
              className="jp-RuntimeCheckpoints-mark"
            />
          ) : null}
          {verified ? (
            <Verified verified={verified} now={now} trans={trans} />
          ) : null}
          {isPosition ? (
            <span className="jp-RuntimeCheckpoints-here">
              {trans.__('current')}
            </span>
          ) : null}
        </div>
        <div
          className="jp-RuntimeCheckpoints-facts"
          title={`${facts}\n${sizesText(checkpoint, trans)}`}
        >
          {facts}
        </div>
      </div>
      <button
        type="button"
        tabIndex={-1}
        className="jp-RuntimeCheckpoints-more"
        title={trans.__('What can be done with it')}
        aria-label={trans.__('Actions for %1', title)}
        aria-haspopup="menu"
        onClick={event => {
          const { left, bottom } = event.currentTarget.getBoundingClientRect();
          onAction('menu', checkpoint, { x: left, y: bottom });
        }}
      >
        <ellipsesIcon.react tag="span" />
      </button>
    </TreeItem>
  );
}

function RelativeRow(props: IRowProps & { relative: IRelative }): JSX.Element {
  const { relative, now, trans, onOpen } = props;
  const name = PathExt.basename(relative.notebook);
  const open = () => onOpen(relative.notebook);
  return (
    <TreeItem {...props} onDoubleClick={open} onMenu={open}>
      <div className="jp-RuntimeCheckpoints-text">
        <div className="jp-RuntimeCheckpoints-title">
          <span title={relative.notebook}>{name}</span>
          <notebookIcon.react
            tag="span"
            className="jp-RuntimeCheckpoints-mark"
          />
        </div>
        <div className="jp-RuntimeCheckpoints-facts">
          {relative.relation === 'remix'
            ? trans.__('Remix, made %1', agoText(relative.created, now, trans))
            : trans.__('The original of this remix')}
        </div>
      </div>
      <button
        type="button"
        tabIndex={-1}
        className="jp-RuntimeCheckpoints-link"
        aria-label={trans.__('Open %1', name)}
        onClick={open}
      >
        {trans.__('Open')}
      </button>
    </TreeItem>
  );
}

function TreeItem(
  props: IRowProps & {
    onDoubleClick: (at: IPoint) => void;
    onMenu: (at: IPoint) => void;
    children: React.ReactNode;
  }
): JSX.Element {
  const { row, number, count, isFocused, isPosition } = props;
  const { id } = row.entry;
  return (
    <div
      role="treeitem"
      aria-level={row.column + 1}
      aria-posinset={number + 1}
      aria-setsize={count}
      aria-current={isPosition ? 'true' : undefined}
      className="jp-RuntimeCheckpoints-row"
      {...(isRelative(row.entry)
        ? { 'data-notebook': row.entry.notebook }
        : { 'data-checkpoint': id })}
      style={{ top: number * ROW_HEIGHT, height: ROW_HEIGHT }}
      tabIndex={isFocused ? 0 : -1}
      onFocus={() => props.onFocus(id)}
      onDoubleClick={event =>
        props.onDoubleClick({ x: event.clientX, y: event.clientY })
      }
      onContextMenu={event => {
        event.preventDefault();
        event.stopPropagation();
        props.onMenu({ x: event.clientX, y: event.clientY });
      }}
    >
      <Branches row={row} isPosition={isPosition} />
      {props.children}
    </div>
  );
}

/** A mark that all of it was there when it was read again, or was not. */
function Verified(props: {
  verified: IVerification;
  now: number;
  trans: TranslationBundle;
}): JSX.Element {
  const { verified, now, trans } = props;
  const when = agoText(verified.at, now, trans);
  const title = verified.ok
    ? trans.__('Verified %1: all of it is there', when)
    : trans.__('Damaged, found %1: it cannot be resumed', when);
  const icon = verified.ok ? verifiedIcon : damagedIcon;
  return (
    <icon.react
      tag="span"
      title={title}
      className="jp-RuntimeCheckpoints-mark"
    />
  );
}
