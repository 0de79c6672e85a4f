import { button, expect, open, panel, picture, rows, run, stateIs, test } from './fixtures';

test('is switched on by the toolbar', async ({ page, tmpPath }, info) => {
  await open(page, `${tmpPath}/first.ipynb`, {
    cells: ['x = 41', 'print(x)'],
    settings: null
  });
  await stateIs(page, 'off');
  await picture(page, 'toolbar-off', info);
  await button(page).click();
  await stateIs(page, 'saved');
  await panel(page);
  await expect(rows(page)).toHaveCount(1);
  await picture(page, 'toolbar-saved', info);
});
