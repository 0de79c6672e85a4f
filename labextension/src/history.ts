/** What has a place in the history. */
export interface IEntry {
  id: string;
  /** ISO 8601 in UTC; empty for what is older than everything else. */
  created: string;
  /** The entry it goes on from; empty if there is none. */
  parent: string;
  /** Whether it never continues a line, but always branches off from it. */
  aside?: boolean;
}

/** One line of the history: an entry and where it is drawn in the tree. */
export interface IHistoryRow<T extends IEntry> {
  entry: T;
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
export function newestFirst<T extends IEntry>(entries: readonly T[]): T[] {
  return [...entries].sort(
    (a, b) => b.created.localeCompare(a.created) || b.id.localeCompare(a.id)
  );
}

/** A line that leads down from the rows above. */
interface ILine {
  /** The entry it ends at. */
  target: string;
  aside: boolean;
}

/**
 * Lay the history out as a tree, newest first.
 *
 * A kernel that goes back to an older checkpoint and is saved again makes a branch, and so does a
 * remix. Each branch has a column of its own, from its newest entry down to the one it left.
 */
export function layOut<T extends IEntry>(
  entries: readonly T[]
): IHistoryRow<T>[] {
  const sorted = newestFirst(entries);
  const known = new Set(sorted.map(({ id }) => id));
  const columns: (ILine | null)[] = [];
  return sorted.map(entry => {
    const aside = entry.aside === true;
    const ending: number[] = [];
    columns.forEach((line, column) => {
      if (line?.target === entry.id) {
        ending.push(column);
      }
    });
    let column = ending.find(ended => !columns[ended]?.aside) ?? -1;
    const joining = ending.filter(ended => ended !== column);
    const hasChild = column >= 0;
    if (!hasChild) {
      const first = aside ? 1 : 0;
      column = columns.indexOf(null, first);
      column = column < 0 ? Math.max(columns.length, first) : column;
    }
    for (const ended of joining) {
      columns[ended] = null;
    }
    const passing: number[] = [];
    columns.forEach((line, other) => {
      if (line && other !== column) {
        passing.push(other);
      }
    });
    const hasParent = known.has(entry.parent);
    while (columns.length < column) {
      columns.push(null);
    }
    columns[column] = hasParent ? { target: entry.parent, aside } : null;
    while (columns.length && columns[columns.length - 1] === null) {
      columns.pop();
    }
    return { entry, column, passing, joining, hasChild, hasParent };
  });
}
