import * as fs from 'fs';
import * as path from 'path';

import AxeBuilder from '@axe-core/playwright';
import type { IJupyterLabPageFixture } from '@jupyterlab/galata';
import { expect, galata, test as base } from '@jupyterlab/galata';
import type { Locator, Page, TestInfo } from '@playwright/test';

export { expect };

/** The kernel that tests use, and one that goes to sleep two seconds after its last cell. */
export const KERNEL = 'checkpoints-python3';
export const SLEEPY = 'checkpoints-sleepy';

/** The server's root directory, to change files behind a kernel's back. */
export const ROOT = process.env.JUPYTER_ROOT ?? '';

/** What of the page is ours; axe looks at what of it is there. Menus are JupyterLab's. */
const OURS = [
  '#jp-runtime-checkpoints',
  '.jp-RuntimeCheckpoints-split',
  '.jp-RuntimeCheckpoints-status',
  '.jp-Dialog-body'
];

/** The folder that notebooks are in; it is seen in the pictures. */
const FOLDER = 'analysis';

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
  tmpPath: async ({ request }, use) => {
    const contents = galata.newContentsHelper(request);
    await contents.deleteDirectory(FOLDER);
    await contents.createDirectory(FOLDER);
    await use(FOLDER);
    await contents.deleteDirectory(FOLDER);
  },
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

/** The documentation's pictures, if they are to be made anew; all others are with the results. */
const PICTURES = process.env.PICTURES ?? '';

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

/** Wait until this notebook is the one in front. */
export async function inFront(
  page: IJupyterLabPageFixture,
  name: string
): Promise<void> {
  await expect(
    page.locator('.jp-mod-current .lm-TabBar-tabLabel').getByText(name, {
      exact: true
    })
  ).toBeVisible();
  await expect(front(page)).toHaveCount(1);
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
  await expect(page.locator('#jp-main-statusbar')).toContainText(
    new RegExp(`\\| ${status}`, 'i')
  );
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

/** The checkpoints in the panel's history. */
export function rows(page: IJupyterLabPageFixture): Locator {
  return page.locator('#jp-runtime-checkpoints [data-checkpoint]');
}

/** The line of another notebook in the panel's history. */
export function relative(page: IJupyterLabPageFixture, name: string): Locator {
  return page.locator(`#jp-runtime-checkpoints [data-notebook$="/${name}"]`);
}

/** A notification that is shown. */
export function notice(page: Page, text: string): Locator {
  return page.locator('.Toastify__toast', { hasText: text });
}

/** Forbid actions on runtime checkpoints: `read`, `write`, `execute`; allow all others. */
export function forbid(...actions: string[]): void {
  fs.writeFileSync(process.env.FORBIDDEN ?? '', actions.join(' '));
}

/** Save a picture of the page as it is now, and find nothing there that keeps anybody out. */
export async function shown(
  page: Page,
  name: string,
  info: TestInfo
): Promise<void> {
  const documented = path.join(PICTURES, `${name}.png`);
  await page.screenshot({
    animations: 'disabled',
    path:
      PICTURES && fs.existsSync(documented)
        ? documented
        : info.outputPath(`${name}.png`)
  });
  const builder = new AxeBuilder({ page });
  for (const part of OURS) {
    if (await page.locator(part).filter({ visible: true }).count()) {
      builder.include(part);
    }
  }
  const { violations } = await builder.analyze();
  const serious = violations.filter(({ impact }) =>
    ['serious', 'critical'].includes(impact ?? '')
  );
  expect(
    serious.map(({ id, nodes }) => `${id}: ${nodes.map(n => n.html).join()}`),
    `accessibility of ${name}`
  ).toEqual([]);
}
