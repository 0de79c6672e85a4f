import * as path from 'path';

import type { IJupyterLabPageFixture } from '@jupyterlab/galata';
import { expect, test as base } from '@jupyterlab/galata';
import type { Locator, TestInfo } from '@playwright/test';

export { expect };

/** The kernel that tests use, and one that goes to sleep two seconds after its last cell. */
export const KERNEL = 'checkpoints-python3';
export const SLEEPY = 'checkpoints-sleepy';

// Sessions and kernels are the server's, not Galata's idea of them: they are what is tested.
export const test = base.extend<{ kernelsEnd: void }>({
  // What a test leaves running would be in the way of the next.
  kernelsEnd: [
    async ({ request, baseURL }, use) => {
      await use();
      const kernels = await request.get(`${baseURL}/api/kernels`);
      for (const { id } of await kernels.json()) {
        await request.delete(`${baseURL}/api/kernels/${id}`);
      }
    },
    { auto: true }
  ],
  kernels: null as never,
  sessions: null as never,
  // Tests also open pages that show something else than the launcher.
  waitForApplication: async ({}, use) => {
    await use(async page => {
      await page.locator('#jupyterlab-splash').waitFor({ state: 'detached' });
      await page
        .locator('.jp-Activity, .jp-Launcher, .jp-Document')
        .first()
        .waitFor();
    });
  }
});

/** Where pictures for the documentation go; nowhere without it. */
const PICTURES = process.env.PICTURES;

export interface INotebook {
  cells: string[];
  kernel?: string;
  settings?: Record<string, unknown> | null;
}

/** Write a notebook and open it; returns when its kernel is there. */
export async function open(
  page: IJupyterLabPageFixture,
  name: string,
  notebook: INotebook
): Promise<void> {
  const kernel = notebook.kernel ?? KERNEL;
  const settings =
    notebook.settings === undefined
      ? { enabled: true, autosave: true }
      : notebook.settings;
  const content = {
    cells: notebook.cells.map((source, index) => ({
      cell_type: 'code',
      execution_count: null,
      id: `cell-${index}`,
      metadata: {},
      outputs: [],
      source
    })),
    metadata: {
      kernelspec: { name: kernel, display_name: kernel, language: 'python' },
      language_info: { name: 'python' },
      ...(settings ? { runtime_checkpoints: settings } : {})
    },
    nbformat: 4,
    nbformat_minor: 5
  };
  await page.contents.uploadContent(JSON.stringify(content), 'text', name);
  await page.filebrowser.refresh();
  await page.notebook.openByPath(name);
  await page.notebook.activate(path.basename(name));
  await kernelIs(page, 'idle');
}

/** The panel of the notebook in front. */
export function front(page: IJupyterLabPageFixture): Locator {
  return page.locator('.jp-NotebookPanel:not(.lm-mod-hidden)');
}

/** The toolbar's button of the notebook in front. */
export function button(page: IJupyterLabPageFixture): Locator {
  return front(page).locator('.jp-RuntimeCheckpoints-state');
}

/** Wait until the button shows this state. */
export async function stateIs(
  page: IJupyterLabPageFixture,
  state: string
): Promise<void> {
  await expect(button(page)).toHaveAttribute('data-state', state);
}

export async function kernelIs(
  page: IJupyterLabPageFixture,
  status: string
): Promise<void> {
  await expect(
    front(page).locator('.jp-Notebook-ExecutionIndicator')
  ).toHaveAttribute('data-status', status);
}

/** Run one cell; returns when its output says so. */
export async function run(
  page: IJupyterLabPageFixture,
  index: number,
  output: string
): Promise<void> {
  const cell = front(page).locator('.jp-Cell').nth(index);
  await cell.locator('.cm-content').click();
  await page.keyboard.press('Control+Enter');
  await expect(cell.locator('.jp-OutputArea-output')).toHaveText(output);
}

/** Write other code into a cell. */
export async function write(
  page: IJupyterLabPageFixture,
  index: number,
  source: string
): Promise<void> {
  await front(page)
    .locator('.jp-Cell')
    .nth(index)
    .locator('.cm-content')
    .fill(source);
}

/** Show the panel of runtime checkpoints. */
export async function panel(page: IJupyterLabPageFixture): Promise<Locator> {
  const found = page.locator('#jp-runtime-checkpoints');
  if (!(await found.isVisible())) {
    await page.sidebar.open('right');
    await page.sidebar.openTab('jp-runtime-checkpoints');
  }
  await expect(found).toBeVisible();
  return found;
}

/** The lines of the panel's history. */
export function rows(page: IJupyterLabPageFixture): Locator {
  return page.locator('#jp-runtime-checkpoints [role="treeitem"]');
}

/** Keep a picture. */
export async function picture(
  page: IJupyterLabPageFixture,
  name: string,
  info: TestInfo
): Promise<void> {
  const file = `${name}.png`;
  await page.screenshot({
    path: PICTURES ? path.join(PICTURES, file) : info.outputPath(file)
  });
}
