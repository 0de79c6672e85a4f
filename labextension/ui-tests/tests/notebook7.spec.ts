import { expect, test } from '@playwright/test';

import { shown } from './fixtures';

const SERVER = process.env.TARGET_URL ?? '';

test('works in Notebook 7', async ({ page, request }, info) => {
  const name = 'seven.ipynb';
  await request.put(`${SERVER}/api/contents/${name}`, {
    data: {
      type: 'notebook',
      format: 'json',
      content: {
        cells: [
          'x = 41; print("set")',
          'x += 1; print(x)',
          'print("x" in globals())'
        ].map((source, i) => ({
          cell_type: 'code',
          execution_count: null,
          id: `cell-${i}`,
          metadata: {},
          outputs: [],
          source
        })),
        metadata: {
          kernelspec: {
            name: 'checkpoints-sleepy',
            display_name: 'Python 3 (sleeps soon)',
            language: 'python'
          }
        },
        nbformat: 4,
        nbformat_minor: 5
      }
    }
  });
  await page.goto(`${SERVER}/notebooks/${name}`);
  const button = page.locator('.jp-RuntimeCheckpoints-state');
  const cells = page.locator('.jp-Cell');
  await expect(button).toHaveAttribute('data-state', 'off');
  await cells.nth(0).locator('.cm-content').click();
  await page.keyboard.press('Control+Enter');
  await expect(cells.nth(0).locator('.jp-OutputArea-output')).toHaveText('set');
  await button.click();
  await expect(button).toHaveAttribute('data-state', 'asleep');
  // Not dead, as Notebook's own indicator would say.
  const status = page.locator('.jp-NotebookKernelStatus');
  const seen = status.filter({ visible: true });
  await expect(seen).toHaveText('Kernel Asleep');
  await page.getByTitle('Runtime checkpoints: more').click();
  await page.getByText('Show History').click();
  await expect(page.locator('#jp-runtime-checkpoints')).toBeVisible();
  await shown(page, 'notebook7', info);
  await cells.nth(1).locator('.cm-content').click();
  await page.keyboard.press('Control+Enter');
  await expect(cells.nth(1).locator('.jp-OutputArea-output')).toHaveText('42');
  await expect(status.getByText('Asleep')).toBeHidden();
  await expect(status.getByText('Dead')).toHaveCount(0);
  await shown(page, 'notebook7-awake', info);

  await expect(button).toHaveAttribute('data-state', 'asleep');
  await page.goto(`${SERVER}/notebooks/${name}?fresh=1`);
  await expect(page).not.toHaveURL(/fresh/);
  await cells.nth(2).locator('.cm-content').click();
  await page.keyboard.press('Control+Enter');
  await expect(cells.nth(2).locator('.jp-OutputArea-output')).toHaveText(
    'False'
  );
});
