import * as fs from 'fs';
import * as path from 'path';

import {
  ROOT,
  SLEEPY,
  button,
  expect,
  forbid,
  notice,
  open,
  panel,
  run,
  shown,
  stateIs,
  test
} from './fixtures';

test.afterEach(() => forbid());

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
  const told = notice(page, 'started fresh');
  await expect(told).toBeVisible();
  await told.getByRole('button', { name: 'Details' }).click();
  const dialog = page.locator('.jp-Dialog');
  await expect(dialog).toContainText('Prevents it');
  await expect(dialog).toContainText('data.txt');
  await shown(page, 'blocked', info);
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
  await shown(page, 'unsupported', info);
});

test('finds a kernel asleep that was saved while the network was away', async ({
  page,
  request,
  baseURL,
  tmpPath
}, info) => {
  await open(page, `${tmpPath}/away.ipynb`, {
    cells: ['x = 41; print("set")', 'x += 1; print(x)'],
    kernel: SLEEPY
  });
  await run(page, 0, 'set');
  await page.context().setOffline(true);
  await expect(async () => {
    const kernels = await request.get(`${baseURL}/api/kernels`);
    expect(await kernels.json()).toHaveLength(0);
  }).toPass();
  await stateIs(page, 'unavailable');
  await page.context().setOffline(false);
  await stateIs(page, 'asleep');
  const lost = page.locator('.jp-Dialog', { hasText: 'Server Connection' });
  await page.addLocatorHandler(lost, () =>
    lost.getByRole('button', { name: 'Close' }).click()
  );
  await shown(page, 'away', info);
  await run(page, 1, '42');
});

test('says what to do where there is no agent', async ({ page }, info) => {
  await page.goto(`${process.env.LONELY_URL}/lab`);
  await page.notebook.createNew();
  // Its kernel did not start; that much JupyterLab says itself.
  await page.locator('.jp-Dialog-footer button').first().click();
  await expect(button(page)).toHaveAttribute('data-state', 'unavailable');
  await panel(page);
  await expect(page.locator('#jp-runtime-checkpoints')).toContainText(
    'What to do'
  );
  await shown(page, 'no-agent', info);
});

test('explains a save that failed', async ({ page, tmpPath }, info) => {
  await open(page, `${tmpPath}/failing.ipynb`, {
    cells: [
      'import subprocess, sys\n' +
        'child = "import ctypes, time; ctypes.CDLL(None).ptrace(0, 0, 0, 0); "\\\n' +
        '    "print(1, flush=True); time.sleep(1e6)"\n' +
        'traced = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)\n' +
        'traced.stdout.readline(); print("traced")',
      'traced.kill(); traced.wait(); traced.stdout.close(); print("gone")'
    ]
  });
  const found = await panel(page);
  // It is seen before anybody tries.
  await run(page, 0, 'traced');
  await stateIs(page, 'failed');
  await expect(found).toContainText('A debugger or profiler is attached');
  await shown(page, 'cannot-save', info);
  await found.getByRole('button', { name: 'Save', exact: true }).click();
  const told = notice(page, 'could not be saved');
  await expect(told).toBeVisible();
  await shown(page, 'save-failed', info);
  await told.getByRole('button', { name: 'Details' }).click();
  const dialog = page.locator('.jp-Dialog');
  await expect(dialog).toContainText('What to do');
  await shown(page, 'save-failed-details', info);
  await page.keyboard.press('Escape');
  await button(page).click();
  await page.locator('.jp-Dialog').getByText('Close').click();
  // What is in the way goes; then it works.
  await run(page, 1, 'gone');
  await stateIs(page, 'on');
  await button(page).click();
  await stateIs(page, 'saved');
});

test('says what a user may not do', async ({ page, tmpPath }, info) => {
  const name = `${tmpPath}/guarded.ipynb`;
  await open(page, name, { cells: ['x = 1; print("set")'] });
  await run(page, 0, 'set');
  await panel(page);
  forbid('write', 'execute');
  await button(page).click();
  const told = notice(page, 'You may not do this');
  await expect(told).toBeVisible();
  await shown(page, 'may-not-save', info);
  await told.getByRole('button', { name: 'Details' }).click();
  await expect(page.locator('.jp-Dialog')).toContainText('Ask whoever runs');
  await page.keyboard.press('Escape');

  forbid('read', 'write', 'execute');
  await page.goto(`tree/${name}`);
  await stateIs(page, 'unavailable');
  const found = await panel(page);
  await expect(found).toContainText('You may not do this on this server');
  await expect(found).toContainText('Ask whoever runs the server');
  await shown(page, 'not-allowed', info);
  forbid();
  await found.getByRole('button', { name: 'Look Again' }).click();
  await stateIs(page, 'on');
});

test('says what to do without a notebook, and with nothing saved', async ({
  page,
  tmpPath
}, info) => {
  const found = await panel(page);
  await expect(found).toContainText('Open a notebook');
  await shown(page, 'no-notebook', info);
  await open(page, `${tmpPath}/empty.ipynb`, {
    cells: ['x = 1'],
    settings: null
  });
  await stateIs(page, 'off');
  await expect(found).toContainText('Switch runtime checkpoints on');
  await shown(page, 'off', info);
  await button(page)
    .locator('..')
    .getByTitle('Runtime checkpoints: more')
    .click();
  await expect(page.locator('.lm-Menu')).toBeVisible();
  await shown(page, 'toolbar-menu', info);
  await page.keyboard.press('Escape');
  await page.notebook.close(true);
  await open(page, `${tmpPath}/on.ipynb`, { cells: ['x = 1'] });
  await stateIs(page, 'on');
  await expect(found).toContainText('Nothing is saved yet');
  await shown(page, 'on', info);
});

test('warns of a page that is older than the server', async ({ page }) => {
  await page.route(/jupyter-checkpoints\/status/, async route => {
    const status = await (await route.fetch()).json();
    await route.fulfill({ json: { ...status, version: '99.0' } });
  });
  await page.reload();
  await expect(notice(page, 'the server of 99.0')).toBeVisible();
});
