import { asks, drop, notebookOf } from '../address';

function at(path: string, search = '') {
  return { path, search, hash: '', request: path + search };
}

describe('notebookOf', () => {
  it.each([
    ['/lab/tree/a%20b/n.ipynb', 'a b/n.ipynb'],
    ['/lab/workspaces/auto-x/tree/tree/n.ipynb', 'tree/n.ipynb'],
    ['/doc/tree/n.ipynb', 'n.ipynb'],
    ['/notebooks/lab/tree/n.ipynb', 'lab/tree/n.ipynb'],
    ['/lab', ''],
    ['/tree/folder', '']
  ])('finds in %s the notebook %s', (path, notebook) => {
    expect(notebookOf(at(path))).toBe(notebook);
  });
});

describe('a wish', () => {
  it('is one only if it is 1', () => {
    expect(asks(at('/lab', '?a=2&fresh=1'), 'fresh')).toBe(true);
    expect(asks(at('/lab', '?fresh=0'), 'fresh')).toBe(false);
    expect(asks(at('/lab'), 'fresh')).toBe(false);
  });

  it('is dropped, and nothing else', () => {
    window.history.replaceState(null, '', '/lab/tree/n.ipynb?fresh=1&a=2#b');
    drop('fresh');
    expect(window.location.href).toMatch(/\/lab\/tree\/n.ipynb\?a=2#b$/);
  });
});
