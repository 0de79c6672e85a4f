import { relativesOf } from '../relatives';
import type { IRuntime } from '../request';

function runtime(given: Partial<IRuntime>): IRuntime {
  return {
    runtime: 'mine',
    notebook: 'mine.ipynb',
    deleted: '',
    kernels: [],
    newest: null,
    origin: null,
    ...given
  };
}

const remix = runtime({
  runtime: 'remix',
  notebook: 'sub/remix.ipynb',
  origin: {
    checkpoint: 'c1',
    runtime: 'mine',
    created: '2026-11-24T14:02:00Z'
  }
});

describe('relativesOf', () => {
  it('finds remixes where they branch off', () => {
    expect(relativesOf('mine', [runtime({}), remix])).toEqual([
      {
        relation: 'remix',
        id: 'remix',
        notebook: 'sub/remix.ipynb',
        parent: 'c1',
        created: '2026-11-24T14:02:00Z',
        aside: true
      }
    ]);
  });

  it('finds the original of a remix, below all of its own', () => {
    expect(relativesOf('remix', [runtime({}), remix])).toEqual([
      {
        relation: 'original',
        id: 'c1',
        notebook: 'mine.ipynb',
        parent: '',
        created: '',
        aside: false
      }
    ]);
  });

  it('leaves out what cannot be opened', () => {
    const gone = { ...remix, deleted: '2026-11-24T15:00:00Z' };
    const elsewhere = { ...remix, notebook: '' };
    expect(relativesOf('mine', [runtime({}), gone, elsewhere])).toEqual([]);
  });
});
