import AxeBuilder from '@axe-core/playwright';

import {
  button,
  expect,
  open,
  panel,
  picture,
  rows,
  run,
  stateIs,
  test
} from './fixtures';

/** Serious faults of what is ours on the page. */
async function faults(
  page: Parameters<typeof panel>[0],
  ...parts: string[]
): Promise<string[]> {
  const builder = new AxeBuilder({ page: page as never });
  parts.forEach(part => builder.include(part));
  const { violations } = await builder.analyze();
  return violations
    .filter(({ impact }) => impact === 'serious' || impact === 'critical')
    .map(({ id, nodes }) => `${id}: ${nodes.map(n => n.html).join('\n')}`);
}

for (const [theme, name] of [
  ['JupyterLab Light', 'light'],
  ['JupyterLab Dark', 'dark'],
  ['JupyterLab Dark High Contrast', 'high-contrast']
]) {
  test(`is accessible in ${theme}`, async ({ page, tmpPath }, info) => {
    await page.theme.setTheme(theme);
    await open(page, `${tmpPath}/themed.ipynb`, {
      cells: ['x = 1; print("set")']
    });
    await run(page, 0, 'set');
    await button(page).click();
    await panel(page);
    await expect(rows(page)).toHaveCount(1);
    await page.click('text="Save As…"');
    await page.locator('.jp-Dialog input').fill('a name');
    await page.keyboard.press('Enter');
    await expect(rows(page)).toHaveCount(2);
    expect(
      await faults(
        page,
        '#jp-runtime-checkpoints',
        '.jp-RuntimeCheckpoints-split',
        '.jp-RuntimeCheckpoints-status'
      )
    ).toEqual([]);
    await picture(page, name, info);
  });
}

test('works by the keyboard alone', async ({ page, tmpPath }, info) => {
  await open(page, `${tmpPath}/keys.ipynb`, {
    cells: ['x = 1; print("set")', 'x = 2; print("changed")', 'print(x)']
  });
  await run(page, 0, 'set');
  await button(page).focus();
  await page.keyboard.press('Enter');
  await stateIs(page, 'saved');
  await run(page, 1, 'changed');
  await page.keyboard.press('Escape');
  await page.keyboard.press('Control+Shift+C');
  await page.keyboard.type('Show Runtime Checkpoints');
  await page.keyboard.press('Enter');
  await expect(rows(page)).toHaveCount(1);

  await rows(page).first().focus();
  await page.keyboard.press('F2');
  await page.locator('.jp-Dialog input').fill('by keyboard');
  await page.keyboard.press('Enter');
  await expect(rows(page).first()).toContainText('by keyboard');

  await rows(page).first().focus();
  await page.keyboard.press('Shift+F10');
  await expect(page.locator('.lm-Menu')).toBeVisible();
  await picture(page, 'menu', info);
  await page.keyboard.type('p');
  await page.keyboard.press('Enter');
  await expect(
    rows(page).first().locator('.jp-RuntimeCheckpoints-pin')
  ).toBeVisible();

  await rows(page).first().focus();
  await page.keyboard.press('Enter');
  await expect(page.locator('.jp-Dialog')).toContainText('Go Back');
  await page.keyboard.press('Shift+Tab');
  await page.keyboard.press('Enter');
  await expect(page.locator('.Toastify__toast')).toContainText('is back');
  await run(page, 2, '1');
});

test('scrolls through ten thousand', async ({ page, tmpPath }) => {
  await open(page, `${tmpPath}/many.ipynb`, { cells: ['x = 1'] });
  await button(page).click();
  await panel(page);
  await expect(rows(page)).toHaveCount(1);
  // One that is real, told ten thousand times: a server would need days to make them.
  await page.route(
    /jupyter-checkpoints\/checkpoints\?notebook=/,
    async route => {
      const [real] = await (await route.fetch()).json();
      await route.fulfill({
        json: Array.from({ length: 10000 }, (_, index) => ({
          ...real,
          id: `many-${index}`,
          name: `number ${index}`,
          created: new Date(1.7e12 - index * 60000).toISOString(),
          parent: `many-${index + 1 + (index % 7 === 0 ? 5 : 0)}`
        }))
      });
    }
  );
  await button(page).click();
  await expect(rows(page).first()).toContainText('number 0');
  expect(await rows(page).count()).toBeLessThan(60);
  await rows(page).first().focus();
  await page.keyboard.press('End');
  await expect(rows(page).last()).toContainText('number 9999');
  await expect(rows(page).last()).toBeFocused();

  const slowest = await page.evaluate(async () => {
    const list = document.querySelector('.jp-RuntimeCheckpoints-history')!;
    let worst = 0;
    for (let step = 0; step < 60; step++) {
      const before = performance.now();
      list.scrollTop = (step * 7919) % (list.scrollHeight - 500);
      await new Promise(requestAnimationFrame);
      await new Promise(requestAnimationFrame);
      worst = Math.max(worst, performance.now() - before);
    }
    return worst;
  });
  // Two frames take 33 ms where nothing has to be waited for; this machine may be busy.
  expect(slowest).toBeLessThan(500);
  expect(await rows(page).count()).toBeLessThan(60);
});
