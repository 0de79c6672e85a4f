import * as React from 'react';

import type { IEntry, IHistoryRow } from '../history';

/** Pixels; every row is as high, so that only those in view need to be drawn. */
export const ROW_HEIGHT = 46;
const COLUMN_WIDTH = 12;
/** Columns beyond this are drawn on top of each other. */
const MOST_COLUMNS = 6;

/** The lines of the tree that pass a row, and the row's dot. */
export function Branches(props: {
  row: IHistoryRow<IEntry>;
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
