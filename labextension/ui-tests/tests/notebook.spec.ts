import * as fs from 'fs';
import * as path from 'path';

import {
  KERNEL,
  SLEEPY,
  button,
  expect,
  front,
  kernelIs,
  open,
  panel,
  picture,
  rows,
  run,
  stateIs,
  test,
  write
} from './fixtures';

/** The server's root directory, to change files behind a kernel's back. */
const ROOT = process.env.JUPYTER_ROOT ?? '';

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
  await picture(page, 'switched-on', info);
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
  await picture(page, 'resume-confirm', info);
  await dialog.getByRole('button', { name: 'Resume', exact: true }).click();
  await expect(rows(page).nth(1)).toHaveAttribute('aria-current', 'true');
  // What ran after that state is marked, until it is run again.
  const outdated = front(page).locator('.jp-RuntimeCheckpoints-outdated');
  await expect(outdated).toHaveCount(2);
  await picture(page, 'resumed', info);
  await run(page, 2, '1');
  await expect(outdated).toHaveCount(1);

  // A save from here is a branch of the history.
  await button(page).click();
  await expect(rows(page)).toHaveCount(3);
  await expect(page.locator('.jp-RuntimeCheckpoints-row path')).not.toHaveCount(
    0
  );
  await picture(page, 'branches', info);
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
  await panel(page);
  await expect(rows(page)).toHaveCount(1);
  await picture(page, 'asleep', info);
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
  await picture(page, 'sleeping-kernels', info);
  await item.hover();
  await item.getByTitle('Delete Its Checkpoints').click();
  await page
    .locator('.jp-Dialog')
    .getByRole('button', { name: 'Delete' })
    .click();
  await expect(item).toHaveCount(0);
});

test('says why a kernel started fresh', async ({ page, tmpPath }, info) => {
  const data = path.join(ROOT, tmpPath, 'data.txt');
  fs.writeFileSync(data, 'as it was\n');
  await open(page, `${tmpPath}/blocked.ipynb`, {
    cells: [
      'file = open("data.txt"); print(file.readline(), end="")',
      'print("file" in globals())'
    ],
    kernel: SLEEPY
  });
  await run(page, 0, 'as it was');
  await stateIs(page, 'asleep');
  fs.writeFileSync(data, 'somebody has written something else\n');
  await run(page, 1, 'False');
  const notice = page.locator('.Toastify__toast');
  await expect(notice).toContainText('started fresh');
  await notice.getByRole('button', { name: 'Details' }).click();
  const dialog = page.locator('.jp-Dialog');
  await expect(dialog).toContainText('Prevents it');
  await expect(dialog).toContainText('data.txt');
  await picture(page, 'blocked', info);
});

test('explains a kernel that cannot be saved', async ({
  page,
  tmpPath
}, info) => {
  await open(page, `${tmpPath}/plain.ipynb`, {
    cells: ['x = 1'],
    kernel: 'python3'
  });
  await stateIs(page, 'unsupported');
  await button(page).click();
  await expect(page.locator('.jp-Dialog')).toContainText(
    'Python 3 (checkpoints)'
  );
  await picture(page, 'unsupported', info);
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
  await picture(page, 'remix-name', info);
  await page.keyboard.press('Enter');
  await expect(front(page)).toHaveCount(1);
  await expect(
    page.locator('.jp-mod-current .lm-TabBar-tabLabel', {
      hasText: 'original-remix.ipynb'
    })
  ).toBeVisible();
  await run(page, 1, '42');
  await run(page, 2, '142');
  await picture(page, 'remixed', info);
  await page.notebook.activate('original.ipynb');
  await run(page, 1, '42');
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

test('deletes, and undoes that', async ({ page, tmpPath }, info) => {
  await open(page, `${tmpPath}/deleted.ipynb`, { cells: ['x = 1'] });
  await button(page).click();
  await panel(page);
  await expect(rows(page)).toHaveCount(1);
  await rows(page).first().focus();
  await page.keyboard.press('Delete');
  await expect(rows(page)).toHaveCount(0);
  await picture(page, 'deleted', info);
  await page.getByRole('button', { name: 'Undo' }).click();
  await expect(rows(page)).toHaveCount(1);

  const id = await rows(page).first().getAttribute('data-checkpoint');
  await page.keyboard.press('Escape');
  const gone = page.waitForResponse(
    response =>
      response.request().method() === 'DELETE' &&
      response.url().includes(`/checkpoints/${id}`)
  );
  await rows(page).first().focus();
  await page.keyboard.press('Delete');
  expect((await gone).status()).toBe(204);
});

test('tells what is inside, and exports it', async ({
  page,
  tmpPath
}, info) => {
  await open(page, `${tmpPath}/exported.ipynb`, { cells: ['x = 1'] });
  await button(page).click();
  await panel(page);
  await expect(rows(page)).toHaveCount(1);
  await rows(page).first().click({ button: 'right' });
  await page.click('.lm-Menu-itemLabel:text("What Is Inside")');
  await expect(page.locator('.jp-Dialog')).toContainText(
    'It can be resumed here.'
  );
  await picture(page, 'inside', info);
  await page.keyboard.press('Escape');

  const download = page.waitForEvent('download');
  await rows(page).first().click({ button: 'right' });
  await page.click('.lm-Menu-itemLabel:text("Export")');
  const archive = await (await download).path();
  expect(fs.statSync(archive).size).toBeGreaterThan(1_000_000);
});

test('says what to do where there is no agent', async ({
  page,
  tmpPath
}, info) => {
  await page.goto(`${process.env.LONELY_URL}/lab`);
  await page.notebook.createNew();
  // Its kernel did not start; that much JupyterLab says itself.
  await page.locator('.jp-Dialog-footer button').first().click();
  await expect(button(page)).toHaveAttribute('data-state', 'unavailable');
  await panel(page);
  await expect(page.locator('#jp-runtime-checkpoints')).toContainText(
    'What to do'
  );
  await picture(page, 'no-agent', info);
});

test('is offered by ?checkpoints=1', async ({ page, tmpPath }, info) => {
  const name = `${tmpPath}/offered.ipynb`;
  await open(page, name, { cells: ['x = 1'], settings: null });
  await page.goto(`tree/${name}?checkpoints=1`);
  const offer = page.locator('.Toastify__toast', { hasText: 'offered.ipynb' });
  await picture(page, 'offered', info);
  await offer.getByRole('button', { name: 'Switch On' }).click();
  await stateIs(page, 'saved');
});

test('shows its form beside a notebook', async ({ page, tmpPath }, info) => {
  await open(page, `${tmpPath}/form.ipynb`, {
    cells: ['x = 1'],
    kernel: KERNEL,
    settings: null
  });
  await page.sidebar.open('right');
  await page.sidebar.openTab('jp-property-inspector');
  const section = page.locator('.jp-NotebookTools-tool, .jp-Collapse', {
    hasText: 'Runtime Checkpoints'
  });
  await section.last().click();
  await picture(page, 'form', info);
});
