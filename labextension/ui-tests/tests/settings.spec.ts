import * as fs from 'fs';
import * as path from 'path';

import {
  KERNEL,
  ROOT,
  button,
  expect,
  notice,
  open,
  panel,
  rows,
  run,
  shown,
  stateIs,
  test
} from './fixtures';

test('is offered by ?checkpoints=1', async ({ page, tmpPath }, info) => {
  const name = `${tmpPath}/offered.ipynb`;
  await open(page, name, { cells: ['x = 1'], settings: null });
  await page.goto(`tree/${name}?checkpoints=1`);
  const offer = page.locator('.Toastify__toast', { hasText: 'offered.ipynb' });
  await shown(page, 'offered', info);
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
  await page.getByRole('checkbox', { name: 'Runtime checkpoints' }).check();
  await stateIs(page, 'on');
  await expect(page.getByRole('checkbox', { name: 'Autosave' })).toBeChecked();
  // The form, which is JupyterLab's, gives it no label.
  await page
    .locator('.jp-FormGroup-content select:visible')
    .selectOption('Files only');
  await shown(page, 'form', info);
  await page.notebook.save();
  const stored = JSON.parse(
    fs.readFileSync(path.join(ROOT, tmpPath, 'form.ipynb'), 'utf8')
  );
  expect(stored.metadata.runtime_checkpoints).toMatchObject({
    enabled: true,
    mode: 'filesystem'
  });
});

test('asks as the settings say', async ({ page, tmpPath }, info) => {
  await page.evaluate(() =>
    window.jupyterapp.commands.execute('settingeditor:open', {
      query: 'Runtime Checkpoints'
    })
  );
  const editor = page.locator('#setting-editor');
  const ask = editor.getByLabel('Ask before a kernel goes back');
  const autosave = editor.getByLabel('Autosave', { exact: true });
  await expect(ask).toBeChecked();
  await expect(autosave).toBeChecked();
  await shown(page, 'settings', info);
  await ask.uncheck();
  await autosave.uncheck();
  await expect(editor.getByText('Restore to Defaults')).toBeVisible();

  await open(page, `${tmpPath}/unasked.ipynb`, {
    cells: ['x = 1; print("set")', 'x = 2; print("changed")', 'print(x)'],
    settings: null
  });
  await run(page, 0, 'set');
  await panel(page);
  await button(page).click();
  await expect(rows(page)).toHaveCount(1);
  await expect(
    page.locator('#jp-runtime-checkpoints').getByLabel('Autosave')
  ).not.toBeChecked();
  await run(page, 1, 'changed');
  await rows(page).first().dblclick();
  await expect(notice(page, 'is back')).toBeVisible();
  await run(page, 2, '1');
});
