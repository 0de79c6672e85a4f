import * as fs from 'fs';
import * as path from 'path';

import {
  ROOT,
  SLEEPY,
  button,
  expect,
  front,
  inFront,
  kernelIs,
  notice,
  open,
  panel,
  relative,
  rows,
  run,
  shown,
  stateIs,
  test
} from './fixtures';

test('is switched on by the toolbar', async ({ page, tmpPath }, info) => {
  await open(page, `${tmpPath}/first.ipynb`, {
    cells: ['x = 41', 'print(x)'],
    settings: null
  });
  await stateIs(page, 'off');
  await button(page).click();
  await stateIs(page, 'saved');
  await panel(page);
  await expect(rows(page)).toHaveCount(1);
  const stored = JSON.parse(
    fs.readFileSync(path.join(ROOT, tmpPath, 'first.ipynb'), 'utf8')
  );
  expect(stored.metadata.runtime_checkpoints).toMatchObject({
    enabled: true,
    autosave: true
  });
  await shown(page, 'switched-on', info);
});

test('goes back to an older state, and stays connected', async ({
  page,
  tmpPath
}, info) => {
  await open(page, `${tmpPath}/older.ipynb`, {
    cells: ['x = 1; print("set")', 'x = 2; print("changed")', 'print(x)']
  });
  await run(page, 0, 'set');
  await panel(page);
  await page.click('text="Save As…"');
  await page.locator('.jp-Dialog input').fill('before the change');
  await page.keyboard.press('Enter');
  await expect(rows(page)).toHaveCount(1);
  await run(page, 1, 'changed');
  await run(page, 2, '2');
  await button(page).click();
  await expect(rows(page)).toHaveCount(2);

  await rows(page).nth(1).dblclick();
  const dialog = page.locator('.jp-Dialog');
  await expect(dialog).toContainText('unless you save it first');
  await shown(page, 'resume-confirm', info);
  await dialog.getByRole('button', { name: 'Resume', exact: true }).click();
  await expect(rows(page).nth(1)).toHaveAttribute('aria-current', 'true');
  // What ran after that state is marked, until it is run again.
  const outdated = front(page).locator('.jp-RuntimeCheckpoints-outdated');
  await expect(outdated).toHaveCount(2);
  await shown(page, 'resumed', info);
  await run(page, 2, '1');
  await expect(outdated).toHaveCount(1);

  // A save from here is a branch of the history.
  await button(page).click();
  await expect(rows(page)).toHaveCount(3);
  await expect(page.locator('.jp-RuntimeCheckpoints-row path')).not.toHaveCount(
    0
  );
  await shown(page, 'branches', info);
});

test('saves first if asked to', async ({ page, tmpPath }) => {
  await open(page, `${tmpPath}/first-saved.ipynb`, {
    cells: ['x = 1; print("set")', 'x = 2; print("changed")', 'print(x)']
  });
  await run(page, 0, 'set');
  await button(page).click();
  await panel(page);
  await expect(rows(page)).toHaveCount(1);
  await run(page, 1, 'changed');
  await rows(page).nth(0).dblclick();
  await page.getByRole('button', { name: 'Save and Resume' }).click();
  await expect(rows(page)).toHaveCount(2);
  await expect(rows(page).nth(1)).toHaveAttribute('aria-current', 'true');
  await run(page, 2, '1');
  await rows(page).nth(0).dblclick();
  await page
    .locator('.jp-Dialog')
    .getByRole('button', { name: 'Resume', exact: true })
    .click();
  await expect(rows(page).nth(0)).toHaveAttribute('aria-current', 'true');
  await run(page, 2, '2');
});

test('sleeps, and wakes when a cell is run', async ({
  page,
  tmpPath
}, info) => {
  await open(page, `${tmpPath}/sleepy.ipynb`, {
    cells: ['x = 41; print("set")', 'x += 1; print(x)', 'x *= 2; print(x)'],
    kernel: SLEEPY
  });
  await run(page, 0, 'set');
  await stateIs(page, 'asleep');
  await expect(page.locator('#jp-main-statusbar')).toContainText(
    /Asleep, saved \d/
  );
  await panel(page);
  await expect(rows(page)).toHaveCount(1);
  await shown(page, 'asleep', info);
  // Two cells, run at once: the second comes while the kernel is being resumed.
  const cells = front(page).locator('.jp-Cell');
  await cells.nth(1).locator('.cm-content').click();
  await page.keyboard.press('Shift+Enter');
  await page.keyboard.press('Shift+Enter');
  await expect(cells.nth(1).locator('.jp-OutputArea-output')).toHaveText('42');
  await expect(cells.nth(2).locator('.jp-OutputArea-output')).toHaveText('84');
  await expect(button(page)).not.toHaveAttribute('data-state', 'resuming');
  const kernels = await page.request.get('/api/kernels');
  expect(await kernels.json()).toHaveLength(1);
});

test('starts fresh where that is asked for, and keeps what was saved', async ({
  page,
  tmpPath
}) => {
  await open(page, `${tmpPath}/fresh.ipynb`, {
    cells: ['x = 41; print("set")', 'print("x" in globals())', 'print(x)'],
    kernel: SLEEPY
  });
  await run(page, 0, 'set');
  await stateIs(page, 'asleep');
  const found = await panel(page);
  await found.getByRole('button', { name: 'Start Fresh' }).click();
  await stateIs(page, 'saved');
  await run(page, 1, 'False');
  await rows(page).last().dblclick();
  await page
    .locator('.jp-Dialog')
    .getByRole('button', { name: 'Resume', exact: true })
    .click();
  await expect(notice(page, 'is back')).toBeVisible();
  await run(page, 2, '41');
});

test('starts fresh by a link, once', async ({
  page,
  request,
  baseURL,
  tmpPath
}, info) => {
  const file = `${tmpPath}/link.ipynb`;
  await open(page, file, {
    cells: ['x = 41; print("set")', 'print("x" in globals())']
  });
  await run(page, 0, 'set');
  await button(page).click();
  await stateIs(page, 'saved');
  const bare = { waitForIsReady: false };
  const link = `${baseURL}/lab/tree/${file}?fresh=1`;
  // A kernel that runs is left alone.
  await page.goto(link, bare);
  await expect(page).not.toHaveURL(/fresh/);
  await expect(notice(page, 'left alone')).toBeVisible();
  await shown(page, 'link', info);
  await run(page, 1, 'True');

  const stop = async () => {
    const [kernel] = await (await request.get(`${baseURL}/api/kernels`)).json();
    await request.delete(`${baseURL}/api/kernels/${kernel.id}`);
  };
  await page.goto('about:blank', bare);
  await stop();
  await page.goto(link, bare);
  await expect(page).not.toHaveURL(/fresh/);
  await run(page, 1, 'False');
  await page.reload(bare);
  await run(page, 1, 'False');
  // What was saved is still there, and the next kernel has it.
  await page.goto('about:blank', bare);
  await stop();
  await page.goto(`${baseURL}/lab/tree/${file}`, bare);
  await run(page, 1, 'True');
});

test('cancels a save, and the kernel goes on', async ({
  page,
  tmpPath
}, info) => {
  await open(page, `${tmpPath}/large.ipynb`, {
    cells: [
      'x = __import__("os").urandom(2**30); print("set")',
      'print(len(x))'
    ]
  });
  await run(page, 0, 'set');
  const found = await panel(page);
  await button(page).click();
  await stateIs(page, 'saving');
  const cancel = found.getByRole('button', { name: 'Cancel' });
  await expect(cancel).toBeEnabled();
  await shown(page, 'saving', info);
  await cancel.click();
  await stateIs(page, 'on');
  await expect(rows(page)).toHaveCount(0);
  await run(page, 1, '1073741824');
});

test('lists sleeping kernels among the running ones', async ({
  page,
  tmpPath
}, info) => {
  const name = `${tmpPath}/listed.ipynb`;
  await open(page, name, {
    cells: ['x = 41; print("set")', 'print(x)'],
    kernel: SLEEPY
  });
  await run(page, 0, 'set');
  await stateIs(page, 'asleep');
  await page.sidebar.openTab('jp-running-sessions');
  const item = page.locator(`.jp-RunningSessions-item[data-context="${name}"]`);
  await expect(item).toContainText('listed.ipynb');
  await shown(page, 'sleeping-kernels', info);
  await item.hover();
  await item.getByTitle('Delete Its Checkpoints').click();
  await page
    .locator('.jp-Dialog')
    .getByRole('button', { name: 'Delete' })
    .click();
  await expect(item).toHaveCount(0);
});

test('remixes: both go on, and diverge', async ({ page, tmpPath }, info) => {
  await open(page, `${tmpPath}/original.ipynb`, {
    cells: ['x = 41; print("set")', 'x += 1; print(x)', 'x += 100; print(x)']
  });
  await run(page, 0, 'set');
  await button(page).click();
  await stateIs(page, 'saved');
  await panel(page);
  await page.click('text="Remix…"');
  await shown(page, 'remix-name', info);
  await page.keyboard.press('Enter');
  await inFront(page, 'original-remix.ipynb');
  await run(page, 1, '42');
  await run(page, 2, '142');
  await shown(page, 'remixed', info);
  // Each of the two has a line in the other's history.
  await expect(relative(page, 'original.ipynb')).toContainText('The original');
  await relative(page, 'original.ipynb')
    .getByRole('button', { name: 'Open' })
    .click();
  await inFront(page, 'original.ipynb');
  await run(page, 1, '42');
  await expect(relative(page, 'original-remix.ipynb')).toContainText('Remix');
  await shown(page, 'remix-branch', info);
  await relative(page, 'original-remix.ipynb').focus();
  await page.keyboard.press('Enter');
  await inFront(page, 'original-remix.ipynb');
});

test('goes on in a duplicate of the file', async ({ page, tmpPath }) => {
  await open(page, `${tmpPath}/kept.ipynb`, {
    cells: ['x = 41; print("set")', 'x += 1; print(x)']
  });
  await run(page, 0, 'set');
  await button(page).click();
  await stateIs(page, 'saved');
  await page.filebrowser.openDirectory(tmpPath);
  await page
    .locator('.jp-DirListing-item', { hasText: 'kept.ipynb' })
    .click({ button: 'right' });
  await page.click('.lm-Menu-itemLabel:text("Duplicate")');
  await expect(
    page.locator('.jp-DirListing-item', { hasText: 'kept-Copy1.ipynb' })
  ).toBeVisible();
  await page.notebook.openByPath(`${tmpPath}/kept-Copy1.ipynb`);
  await page.notebook.activate('kept-Copy1.ipynb');
  await kernelIs(page, 'idle');
  await run(page, 1, '42');
  await page.notebook.activate('kept.ipynb');
  await run(page, 1, '42');
});
