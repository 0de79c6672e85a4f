import type { TranslationBundle } from '@jupyterlab/translation';
import { ellipsesIcon } from '@jupyterlab/ui-components';

import * as React from 'react';

import type { IHistoryRow } from '../history';
import { layOut } from '../history';
import { pinIcon } from '../icons';
import type { ICheckpoint } from '../tokens';
import { agoText, sizeText, titleText, triggerText } from '../wording';

/** Pixels; every row is as high, so that only those in view need to be drawn. */
const ROW_HEIGHT = 46;
const COLUMN_WIDTH = 12;
/** Columns beyond this are drawn on top of each other. */
const MOST_COLUMNS = 6;
/** Rows drawn above and below those in view. */
const OVERSCAN = 8;

/** What a key or a click asks to be done with a checkpoint. */
export type RowAction = 'resume' | 'rename' | 'delete' | 'menu';

/** Where a menu is to open. */
export interface IPoint {
  x: number;
  y: number;
}

/** The history of a notebook as a tree, newest first; draws what is in view. */
export function History(props: {
  checkpoints: readonly ICheckpoint[];
  /** The checkpoint that the kernel stands at. */
  position: string;
  now: number;
  trans: TranslationBundle;
  onAction: (action: RowAction, checkpoint: ICheckpoint, at: IPoint) => void;
}): JSX.Element {
  const { checkpoints, position, now, trans, onAction } = props;
  const rows = React.useMemo(() => layOut(checkpoints), [checkpoints]);
  const scroller = React.useRef<HTMLDivElement>(null);
  const [view, setView] = React.useState({ top: 0, height: 800 });
  const [focused, setFocused] = React.useState('');
  const refocus = React.useRef(false);

  React.useLayoutEffect(() => {
    const node = scroller.current;
    if (!node) {
      return;
    }
    const look = () =>
      setView({ top: node.scrollTop, height: node.clientHeight });
    look();
    const observer = new ResizeObserver(look);
    observer.observe(node);
    node.addEventListener('scroll', look, { passive: true });
    return () => {
      observer.disconnect();
      node.removeEventListener('scroll', look);
    };
  }, []);

  const index = Math.max(
    0,
    rows.findIndex(row => row.checkpoint.id === focused)
  );

  React.useEffect(() => {
    if (refocus.current) {
      refocus.current = false;
      scroller.current
        ?.querySelector<HTMLElement>('[role="treeitem"][tabindex="0"]')
        ?.focus();
    }
  });

  const goTo = (target: number) => {
    const bounded = Math.min(rows.length - 1, Math.max(0, target));
    const node = scroller.current;
    if (!node || !rows[bounded]) {
      return;
    }
    const top = bounded * ROW_HEIGHT;
    if (top < node.scrollTop) {
      node.scrollTop = top;
    } else if (top + ROW_HEIGHT > node.scrollTop + node.clientHeight) {
      node.scrollTop = top + ROW_HEIGHT - node.clientHeight;
    }
    refocus.current = true;
    setFocused(rows[bounded].checkpoint.id);
    setView({ top: node.scrollTop, height: node.clientHeight });
  };

  const onKeyDown = (event: React.KeyboardEvent<HTMLDivElement>) => {
    const page = Math.max(1, Math.floor(view.height / ROW_HEIGHT) - 1);
    const moves: Record<string, number> = {
      ArrowDown: index + 1,
      ArrowUp: index - 1,
      PageDown: index + page,
      PageUp: index - page,
      Home: 0,
      End: rows.length - 1
    };
    const menu =
      event.key === 'ContextMenu' || (event.key === 'F10' && event.shiftKey);
    const actions: Record<string, RowAction> = {
      Enter: 'resume',
      F2: 'rename',
      Delete: 'delete',
      ' ': 'menu'
    };
    const action = menu ? 'menu' : actions[event.key];
    const node = event.target instanceof HTMLElement ? event.target : null;
    if (event.key in moves) {
      goTo(moves[event.key]);
    } else if (action && node?.getAttribute('role') === 'treeitem') {
      const { left, top } = node.getBoundingClientRect();
      // The row that takes its place, or that was there, keeps the focus.
      refocus.current = true;
      if (action === 'delete') {
        const next = rows[index + 1] ?? rows[index - 1];
        setFocused(next?.checkpoint.id ?? '');
      }
      onAction(action, rows[index].checkpoint, {
        x: left + 24,
        y: top + ROW_HEIGHT
      });
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  };

  const first = Math.max(0, Math.floor(view.top / ROW_HEIGHT) - OVERSCAN);
  const last = Math.min(
    rows.length,
    Math.ceil((view.top + view.height) / ROW_HEIGHT) + OVERSCAN
  );
  const drawn: number[] = [];
  for (let i = first; i < last; i++) {
    drawn.push(i);
  }
  // The row that has the focus stays, wherever the list is scrolled to.
  if (rows.length && (index < first || index >= last)) {
    drawn.push(index);
  }
  return (
    <div className="jp-RuntimeCheckpoints-history" ref={scroller}>
      <div
        role="tree"
        aria-label={trans.__('Runtime checkpoints, newest first')}
        style={{ height: rows.length * ROW_HEIGHT }}
        onKeyDown={onKeyDown}
      >
        {drawn.map(i => (
          <Row
            key={rows[i].checkpoint.id}
            row={rows[i]}
            number={i}
            count={rows.length}
            isFocused={i === index}
            isPosition={rows[i].checkpoint.id === position}
            now={now}
            trans={trans}
            onFocus={setFocused}
            onAction={onAction}
          />
        ))}
      </div>
    </div>
  );
}

function Row(props: {
  row: IHistoryRow;
  number: number;
  count: number;
  isFocused: boolean;
  isPosition: boolean;
  now: number;
  trans: TranslationBundle;
  onFocus: (id: string) => void;
  onAction: (action: RowAction, checkpoint: ICheckpoint, at: IPoint) => void;
}): JSX.Element {
  const { row, number, count, isFocused, isPosition, now, trans } = props;
  const { checkpoint } = row;
  const title = titleText(checkpoint, now);
  const whole = checkpoint.memory_size + checkpoint.files_size;
  const own = checkpoint.held;
  const size =
    own === undefined || own > 0.9 * whole
      ? sizeText(whole)
      : trans.__('%1 (%2 its own)', sizeText(whole), sizeText(own));
  const facts = [
    agoText(checkpoint.created, now, trans),
    size,
    triggerText(checkpoint.trigger, trans)
  ].join(' · ');
  return (
    <div
      role="treeitem"
      aria-level={row.column + 1}
      aria-posinset={number + 1}
      aria-setsize={count}
      aria-current={isPosition ? 'true' : undefined}
      className="jp-RuntimeCheckpoints-row"
      data-checkpoint={checkpoint.id}
      style={{ top: number * ROW_HEIGHT, height: ROW_HEIGHT }}
      tabIndex={isFocused ? 0 : -1}
      onFocus={() => props.onFocus(checkpoint.id)}
      onDoubleClick={event =>
        props.onAction('resume', checkpoint, {
          x: event.clientX,
          y: event.clientY
        })
      }
      onContextMenu={event => {
        event.preventDefault();
        event.stopPropagation();
        props.onAction('menu', checkpoint, {
          x: event.clientX,
          y: event.clientY
        });
      }}
    >
      <Branches row={row} isPosition={isPosition} />
      <div className="jp-RuntimeCheckpoints-text">
        <div className="jp-RuntimeCheckpoints-title">
          <span title={title}>{title}</span>
          {checkpoint.pinned ? (
            <pinIcon.react
              tag="span"
              title={trans.__('Pinned: retention never deletes it')}
              className="jp-RuntimeCheckpoints-pin"
            />
          ) : null}
          {isPosition ? (
            <span className="jp-RuntimeCheckpoints-here">
              {trans.__('current')}
            </span>
          ) : null}
        </div>
        <div className="jp-RuntimeCheckpoints-facts" title={facts}>
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
          props.onAction('menu', checkpoint, { x: left, y: bottom });
        }}
      >
        <ellipsesIcon.react tag="span" />
      </button>
    </div>
  );
}

/** The lines of the tree that pass a row, and the row's dot. */
function Branches(props: {
  row: IHistoryRow;
  isPosition: boolean;
}): JSX.Element {
  const { row, isPosition } = props;
  const x = (column: number) =>
    Math.min(column, MOST_COLUMNS - 1) * COLUMN_WIDTH + 10;
  const widest = Math.max(row.column, ...row.passing, ...row.joining);
  const middle = ROW_HEIGHT / 2;
  const own = x(row.column);
  return (
    <svg
      aria-hidden="true"
      className="jp-RuntimeCheckpoints-branches"
      width={x(widest) + 10}
      height={ROW_HEIGHT}
    >
      {row.passing.map(column => (
        <path key={column} d={`M${x(column)} 0V${ROW_HEIGHT}`} />
      ))}
      {row.joining.map(column => (
        <path
          key={`joining-${column}`}
          d={`M${x(column)} 0C${x(column)} ${middle} ${own} 0 ${own} ${middle}`}
        />
      ))}
      {row.hasChild ? <path d={`M${own} 0V${middle}`} /> : null}
      {row.hasParent ? <path d={`M${own} ${middle}V${ROW_HEIGHT}`} /> : null}
      <circle cx={own} cy={middle} r={isPosition ? 5 : 3.5} />
    </svg>
  );
}
