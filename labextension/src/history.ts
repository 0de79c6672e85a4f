import type { ICheckpoint } from './tokens';

/** One line of the history: a checkpoint and where it is drawn in the tree. */
export interface IHistoryRow {
  checkpoint: ICheckpoint;
  /** The column of its dot. */
  column: number;
  /** Columns with a line that passes this row from top to bottom. */
  passing: number[];
  /** Columns of newer rows whose line ends at this row's dot: its children. */
  joining: number[];
  /** Whether a line comes from above, from a newer checkpoint in the same column. */
  hasChild: boolean;
  /** Whether a line leaves the dot downwards, to its parent. */
  hasParent: boolean;
}

/** Newest first; equal times by id, so that the order never jumps. */
export function newestFirst(
  checkpoints: readonly ICheckpoint[]
): ICheckpoint[] {
  return [...checkpoints].sort(
    (a, b) => b.created.localeCompare(a.created) || b.id.localeCompare(a.id)
  );
}

/**
 * Lay the history out as a tree, newest first.
 *
 * A kernel that goes back to an older checkpoint and is saved again makes a branch. Each branch
 * has a column of its own, from its newest checkpoint down to the one it left.
 */
export function layOut(checkpoints: readonly ICheckpoint[]): IHistoryRow[] {
  const sorted = newestFirst(checkpoints);
  const known = new Set(sorted.map(checkpoint => checkpoint.id));
  // For each column, the checkpoint that its line leads down to.
  const columns: (string | null)[] = [];
  return sorted.map(checkpoint => {
    const mine: number[] = [];
    columns.forEach((target, column) => {
      if (target === checkpoint.id) {
        mine.push(column);
      }
    });
    let column = mine.length ? mine[0] : columns.indexOf(null);
    if (column < 0) {
      column = columns.length;
    }
    const joining = mine.slice(1);
    for (const ended of joining) {
      columns[ended] = null;
    }
    const passing: number[] = [];
    columns.forEach((target, other) => {
      if (target !== null && other !== column) {
        passing.push(other);
      }
    });
    const hasParent = known.has(checkpoint.parent);
    columns[column] = hasParent ? checkpoint.parent : null;
    while (columns.length && columns[columns.length - 1] === null) {
      columns.pop();
    }
    return {
      checkpoint,
      column,
      passing,
      joining,
      hasChild: mine.length > 0,
      hasParent
    };
  });
}
