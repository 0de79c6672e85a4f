import type { Locator, Page } from '@playwright/test';
import { expect, test } from '@playwright/test';

import { KERNEL, notice, shown } from './fixtures';

/** The servers of two ordinary users of this host, and their names. */
const ALICE = process.env.ALICE_URL ?? '';
const BOB = process.env.BOB_URL ?? '';
const ALICE_NAME = process.env.ALICE_NAME ?? '';
const BOB_NAME = process.env.BOB_NAME ?? '';

test('one user shares, another goes on', async ({ page, request }, info) => {
  await request.put(`${ALICE}/api/contents/shared.ipynb`, {
    data: {
      type: 'notebook',
      format: 'json',
      content: {
        cells: [
          {
            cell_type: 'code',
            execution_count: null,
            id: 'cell',
            metadata: {},
            outputs: [],
            source: 'x = 41; print("set")'
          }
        ],
        metadata: {
          kernelspec: { name: KERNEL, display_name: KERNEL },
          runtime_checkpoints: { enabled: true }
        },
        nbformat: 4,
        nbformat_minor: 5
      }
    }
  });
  await page.goto(`${ALICE}/lab/tree/shared.ipynb`);
  await run(page, 'set');
  const button = page.locator('.jp-RuntimeCheckpoints-state');
  await button.click();
  await expect(button).toHaveAttribute('data-state', 'saved');
  await history(page);
  const row = page.locator('#jp-runtime-checkpoints [data-checkpoint]');
  const share = async (what: (dialog: Locator) => Promise<void>) => {
    await row.click({ button: 'right' });
    await page.click('.lm-Menu-itemLabel:text("Share")');
    const dialog = page.locator('.jp-Dialog');
    await expect(dialog).toContainText('passwords, keys, tokens');
    await what(dialog);
    await dialog.getByRole('button', { name: 'Share' }).click();
  };
  await share(dialog => dialog.getByLabel('And with').fill('nobody-of-here'));
  await expect(notice(page, 'nobody-of-here')).toBeVisible();
  await share(dialog => dialog.getByLabel('And with').fill(BOB_NAME));
  await expect(notice(page, `is shared with ${BOB_NAME}.`)).toBeVisible();

  const his = await page.context().newPage();
  await his.goto(`${BOB}/lab`);
  await his.getByTitle('Runtime Checkpoints').click();
  const offered = his.locator('[data-shared]');
  await expect(offered).toHaveCount(1);
  await expect(offered).toContainText(ALICE_NAME);
  await shown(his, 'shared-with-me', info);
  await offered.getByRole('button').click();
  await his.locator('.jp-Dialog input').fill('mine');
  await his.keyboard.press('Enter');
  await expect(his.locator('.jp-RuntimeCheckpoints-state')).toHaveAttribute(
    'data-state',
    'saved'
  );
  await his.locator('.jp-Cell .cm-content').fill('x += 1; print(x)');
  await run(his, '42');
  await shown(his, 'shared-opened', info);

  await share(async dialog => {
    await shown(page, 'share', info);
    await dialog.getByLabel(BOB_NAME).uncheck();
  });
  await expect(notice(page, 'is shared with nobody.')).toBeVisible();
  await his.reload();
  await his.locator('.jp-NotebookPanel').waitFor();
  await history(his);
  await expect(
    his.locator('#jp-runtime-checkpoints [data-checkpoint]')
  ).toHaveCount(1);
  await expect(offered).toHaveCount(0);
});

/** Run the notebook's first cell. */
async function run(page: Page, output: string): Promise<void> {
  const cell = page.locator('.jp-Cell').first();
  await cell.locator('.cm-content').click();
  await page.keyboard.press('Control+Enter');
  await expect(cell.locator('.jp-OutputArea-output')).toHaveText(output);
}

/** Show the panel of runtime checkpoints. */
async function history(page: Page): Promise<void> {
  await page.getByTitle('Runtime checkpoints: more').click();
  await page.getByText('Show History').click();
  await expect(page.locator('#jp-runtime-checkpoints')).toBeVisible();
}
