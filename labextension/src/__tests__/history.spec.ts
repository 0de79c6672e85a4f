import { layOut, newestFirst } from '../history';
import { checkpoint } from './checkpoints';

const rows = (...specs: [string, number, string?][]) =>
  layOut(
    specs.map(([id, minute, parent]) =>
      checkpoint({
        id,
        parent: parent ?? '',
        created: new Date(minute * 60000).toISOString()
      })
    )
  ).map(row => ({
    id: row.entry.id,
    column: row.column,
    passing: row.passing,
    joining: row.joining,
    hasChild: row.hasChild,
    hasParent: row.hasParent
  }));

describe('layOut', () => {
  it('draws a line of saves in one column', () => {
    expect(rows(['a', 1], ['b', 2, 'a'], ['c', 3, 'b'])).toEqual([
      {
        id: 'c',
        column: 0,
        passing: [],
        joining: [],
        hasChild: false,
        hasParent: true
      },
      {
        id: 'b',
        column: 0,
        passing: [],
        joining: [],
        hasChild: true,
        hasParent: true
      },
      {
        id: 'a',
        column: 0,
        passing: [],
        joining: [],
        hasChild: true,
        hasParent: false
      }
    ]);
  });

  it('gives a branch a column of its own until it joins', () => {
    const drawn = rows(['a', 1], ['b', 2, 'a'], ['c', 3, 'b'], ['d', 4, 'a']);
    expect(drawn.map(({ id, column }) => [id, column])).toEqual([
      ['d', 0],
      ['c', 1],
      ['b', 1],
      ['a', 0]
    ]);
    expect(drawn[1].passing).toEqual([0]);
    expect(drawn[3].joining).toEqual([1]);
  });

  it('never lets a remix take the place of the line it leaves', () => {
    const entry = (id: string, minute: number, parent = '', aside = false) => ({
      id,
      parent,
      aside,
      created: new Date(minute * 60000).toISOString()
    });
    const drawn = layOut([
      entry('a', 1),
      entry('b', 2, 'a'),
      entry('remix', 3, 'b', true),
      entry('other', 4, 'a', true)
    ]);
    expect(drawn.map(row => [row.entry.id, row.column])).toEqual([
      ['other', 1],
      ['remix', 2],
      ['b', 0],
      ['a', 0]
    ]);
    expect(drawn[2].joining).toEqual([2]);
    expect(drawn[3].joining).toEqual([1]);
    expect(drawn[3].hasChild).toBe(true);
  });

  it('uses a column again when its branch has ended', () => {
    const drawn = rows(['a', 1], ['b', 2, 'a'], ['x', 3], ['y', 4, 'a']);
    expect(drawn.map(({ id, column }) => [id, column])).toEqual([
      ['y', 0],
      ['x', 1],
      ['b', 1],
      ['a', 0]
    ]);
  });

  it('starts anew where the parent was deleted', () => {
    const [only] = rows(['b', 2, 'gone']);
    expect(only.hasParent).toBe(false);
  });

  it('lays ten thousand out at once', () => {
    const many = Array.from({ length: 10000 }, (_, index) =>
      checkpoint({
        id: `${index}`,
        parent: index % 5 ? `${index - 1}` : `${Math.max(0, index - 40)}`,
        created: new Date(index * 1000).toISOString()
      })
    );
    const before = performance.now();
    expect(layOut(many)).toHaveLength(10000);
    expect(performance.now() - before).toBeLessThan(1000);
  });
});

describe('newestFirst', () => {
  it('never depends on the order it was given', () => {
    const a = checkpoint({ id: 'a', created: '2026-01-01T00:00:00Z' });
    const b = checkpoint({ id: 'b', created: '2026-01-01T00:00:00Z' });
    expect(newestFirst([a, b])).toEqual(newestFirst([b, a]));
  });
});
