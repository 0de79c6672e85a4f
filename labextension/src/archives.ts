import type { INotebookContent } from '@jupyterlab/nbformat';
import type { Contents } from '@jupyterlab/services';
import type { TranslationBundle } from '@jupyterlab/translation';

import { readSettings } from './state';
import { METADATA_KEY } from './tokens';

/** What is to be imported: an archive, and the notebook that was exported beside it, if any. */
export interface IImport {
  archive: File;
  notebook: File | null;
}

/** Files of the user's own computer; nothing if no archive is among them. */
export function chooseArchive(): Promise<IImport | null> {
  const input = document.createElement('input');
  input.type = 'file';
  input.accept = '.tar,application/x-tar,.ipynb';
  input.multiple = true;
  const chosen = (): IImport | null => {
    const files = [...(input.files ?? [])];
    const notebook = files.find(({ name }) => name.endsWith('.ipynb')) ?? null;
    const archive = files.find(file => file !== notebook);
    return archive ? { archive, notebook } : null;
  };
  return new Promise(resolve => {
    input.addEventListener('change', () => resolve(chosen()));
    input.addEventListener('cancel', () => resolve(null));
    input.click();
  });
}

/** Have the browser keep what is at an address; `name` counts where the server gives none. */
export function download(href: string, name: string): void {
  const link = document.createElement('a');
  link.href = href;
  link.download = name;
  document.body.appendChild(link);
  link.click();
  link.remove();
}

/** Download a notebook as it was saved last, under another name. */
export async function downloadNotebook(
  contents: Contents.IManager,
  path: string,
  name: string
): Promise<void> {
  const { content } = await contents.get(path, {
    type: 'notebook',
    content: true
  });
  const file = new Blob([JSON.stringify(content, null, 1)], {
    type: 'application/x-ipynb+json'
  });
  const href = URL.createObjectURL(file);
  download(href, name);
  // The browser has begun by then.
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
}

/**
 * A notebook that is switched on, for a kernel to come: empty, or with the cells of another.
 *
 * Raises if the file exists, or if the other is no notebook.
 */
export async function createNotebook(
  contents: Contents.IManager,
  path: string,
  cells: File | null,
  trans: TranslationBundle
): Promise<void> {
  const exists = await contents.get(path, { content: false }).then(
    () => true,
    () => false
  );
  if (exists) {
    throw new Error(
      trans.__('There is a file %1 already. Choose another name.', path)
    );
  }
  const content: INotebookContent = cells
    ? JSON.parse(await cells.text())
    : { cells: [], metadata: {}, nbformat: 4, nbformat_minor: 5 };
  // Not the runtime of whatever it was exported from.
  const { autosave, mode } = readSettings(content.metadata[METADATA_KEY]);
  content.metadata = {
    ...content.metadata,
    [METADATA_KEY]: { enabled: true, autosave, ...(mode ? { mode } : {}) }
  };
  await contents.save(path, { type: 'notebook', format: 'json', content });
}

/** Say in a notebook which kernelspec its kernel is of. */
export async function setKernel(
  contents: Contents.IManager,
  path: string,
  name: string
): Promise<void> {
  const { content } = await contents.get(path, {
    type: 'notebook',
    content: true
  });
  content.metadata.kernelspec = { name, display_name: name };
  await contents.save(path, { type: 'notebook', format: 'json', content });
}
