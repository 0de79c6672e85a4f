import type { Contents } from '@jupyterlab/services';
import type { TranslationBundle } from '@jupyterlab/translation';

import { METADATA_KEY } from './tokens';

/** A file of the user's own computer; nothing if none is chosen. */
export function chooseArchive(): Promise<File | null> {
  const input = document.createElement('input');
  input.type = 'file';
  input.accept = '.tar,application/x-tar';
  return new Promise(resolve => {
    input.addEventListener('change', () => resolve(input.files?.[0] ?? null));
    input.addEventListener('cancel', () => resolve(null));
    input.click();
  });
}

/** An empty notebook that is switched on, for a kernel to come. Raises if the file exists. */
export async function createNotebook(
  contents: Contents.IManager,
  path: string,
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
  await contents.save(path, {
    type: 'notebook',
    format: 'json',
    content: {
      cells: [],
      metadata: { [METADATA_KEY]: { enabled: true, autosave: true } },
      nbformat: 4,
      nbformat_minor: 5
    }
  });
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
