import type { TranslationBundle } from '@jupyterlab/translation';

import * as React from 'react';

import { layOut } from '../history';
import type { ICheckpoint, IRelative } from '../tokens';
import { ROW_HEIGHT } from './branches';
import type { HistoryEntry, IPoint, RowAction } from './historyRow';
import { HistoryRow, isRelative } from './historyRow';
/** Rows drawn above and below those in view. */
const OVERSCAN = 8;

/** The history of a notebook as a tree, newest first; draws what is in view. */
export function History(props: {
  checkpoints: readonly ICheckpoint[];
  /** Other notebooks that share a state with this one. */
  relatives: readonly IRelative[];
  /** The checkpoint that the kernel stands at. */
  position: string;
  now: number;
  trans: TranslationBundle;
  onAction: (action: RowAction, checkpoint: ICheckpoint, at: IPoint) => void;
  onOpen: (notebook: string) => void;
}): JSX.Element {
  const { checkpoints, relatives, position, now, trans } = props;
  const rows = React.useMemo(
    () => layOut<HistoryEntry>([...checkpoints, ...relatives]),
    [checkpoints, relatives]
  );
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
    rows.findIndex(({ entry }) => entry.id === focused)
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
    setFocused(rows[bounded].entry.id);
    setView({ top: node.scrollTop, height: node.clientHeight });
  };

  const act = (action: RowAction, node: HTMLElement) => {
    const { entry } = rows[index];
    if (isRelative(entry)) {
      if (action === 'resume' || action === 'menu') {
        props.onOpen(entry.notebook);
      }
      return;
    }
    // The row that takes its place, or that was there, keeps the focus.
    refocus.current = true;
    if (action === 'delete') {
      const next = rows[index + 1] ?? rows[index - 1];
      setFocused(next?.entry.id ?? '');
    }
    const { left, top } = node.getBoundingClientRect();
    props.onAction(action, entry, { x: left + 24, y: top + ROW_HEIGHT });
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
      act(action, node);
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
          <HistoryRow
            key={rows[i].entry.id}
            row={rows[i]}
            number={i}
            count={rows.length}
            isFocused={i === index}
            isPosition={rows[i].entry.id === position}
            now={now}
            trans={trans}
            onFocus={setFocused}
            onAction={props.onAction}
            onOpen={props.onOpen}
          />
        ))}
      </div>
    </div>
  );
}
