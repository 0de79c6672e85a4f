import * as fs from 'fs';

import {
  button,
  expect,
  front,
  kernelIs,
  notice,
  open,
  panel,
  rows,
  run,
  shown,
  test,
  write
} from './fixtures';

test('deletes, and undoes that', async ({ page, tmpPath }, info) => {
  await open(page, `${tmpPath}/deleted.ipynb`, { cells: ['x = 1'] });
  await button(page).click();
  await panel(page);
  await expect(rows(page)).toHaveCount(1);
  await rows(page).first().focus();
  await page.keyboard.press('Delete');
  await expect(rows(page)).toHaveCount(0);
  await shown(page, 'deleted', info);
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

test('tells what is inside, exports it, and imports that', async ({
  page,
  tmpPath
}, info) => {
  await open(page, `${tmpPath}/exported.ipynb`, {
    cells: ['x = 41; print("set")']
  });
  await run(page, 0, 'set');
  await button(page).click();
  await panel(page);
  await expect(rows(page)).toHaveCount(1);
  await rows(page).first().click({ button: 'right' });
  await page.click('.lm-Menu-itemLabel:text("What Is Inside")');
  await expect(page.locator('.jp-Dialog')).toContainText(
    'It can be resumed here.'
  );
  await shown(page, 'inside', info);
  await page.keyboard.press('Escape');

  // Which cell was the last, and whether it was read again since.
  await expect(rows(page).first()).toContainText('[1]');
  const mark = rows(page).first().getByTitle('Verified');
  await expect(mark).toHaveCount(0);
  await rows(page).first().click({ button: 'right' });
  await page.click('.lm-Menu-itemLabel:text("Verify")');
  await expect(mark).toBeVisible();
  await expect(notice(page, 'byte for byte')).toBeVisible();
  await shown(page, 'verified', info);

  const download = page.waitForEvent('download');
  await rows(page).first().click({ button: 'right' });
  await page.click('.lm-Menu-itemLabel:text("Export")');
  const archive = await (await download).path();
  expect(fs.statSync(archive).size).toBeGreaterThan(1_000_000);

  const chooser = page.waitForEvent('filechooser');
  await page.locator('#jp-runtime-checkpoints').getByText('Import…').click();
  await (
    await chooser
  ).setFiles({
    name: 'elsewhere.tar',
    mimeType: 'application/x-tar',
    buffer: fs.readFileSync(archive)
  });
  await shown(page, 'import-name', info);
  await page.keyboard.press('Enter');
  await expect(
    page.locator('.jp-mod-current .lm-TabBar-tabLabel', {
      hasText: 'elsewhere.ipynb'
    })
  ).toBeVisible();
  await kernelIs(page, 'idle');
  await write(page, 0, 'x += 1; print(x)');
  await page.keyboard.press('Control+Enter');
  // IPython also says that it cannot go on with its history there.
  await expect(
    front(page).locator('.jp-OutputArea-output', { hasText: /^42/ })
  ).toBeVisible();
  await shown(page, 'imported', info);
});

test('takes no archive that is none', async ({ page, tmpPath }) => {
  await panel(page);
  const chooser = page.waitForEvent('filechooser');
  await page.locator('#jp-runtime-checkpoints').getByText('Import…').click();
  await (
    await chooser
  ).setFiles({
    name: 'rubbish.tar',
    mimeType: 'application/x-tar',
    buffer: Buffer.alloc(1_000_000, 'rubbish')
  });
  await page.keyboard.press('Enter');
  await expect(
    page.locator('.Toastify__toast').getByRole('button', { name: 'Details' })
  ).toBeVisible();
  // The notebook that was to get it is gone again.
  expect(await page.contents.fileExists(`${tmpPath}/rubbish.ipynb`)).toBe(
    false
  );
});

test('scrolls through ten thousand as smoothly as an empty page', async ({
  page,
  tmpPath
}) => {
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
  await rows(page).first().focus();
  await page.keyboard.press('End');
  await expect(rows(page).last()).toContainText('number 9999');
  await expect(rows(page).last()).toBeFocused();

  const list = await page.evaluate(scroll, '.jp-RuntimeCheckpoints-history');
  const plain = await page.context().newPage();
  await plain.setContent(
    '<div id="list" style="height: 500px; width: 300px; overflow: auto">' +
      '<div style="height: 460000px"></div></div>'
  );
  const empty = await plain.evaluate(scroll, '#list');
  await plain.close();
  console.log('frames', JSON.stringify({ list, empty }));
  // However long the history is, so many elements and no more.
  expect(list.mostElements).toBeLessThan(1000);
  expect(list.median / empty.median).toBeLessThan(2);
  expect(list.worst / empty.worst).toBeLessThan(8);
});

/** Scroll on in every frame for 200 frames; milliseconds between two frames, and elements. */
async function scroll(selector: string): Promise<{
  median: number;
  worst: number;
  mostElements: number;
}> {
  const list = document.querySelector(selector)!;
  const frame = () => new Promise<number>(requestAnimationFrame);
  const gaps: number[] = [];
  let mostElements = 0;
  list.scrollTop = 0;
  let before = await frame();
  for (let step = 0; step < 200; step++) {
    // By rows, then by far: as with a wheel, and as with the bar.
    list.scrollTop += step % 2 ? 30 : 2000;
    const now = await frame();
    gaps.push(now - before);
    before = now;
    mostElements = Math.max(mostElements, list.querySelectorAll('*').length);
  }
  gaps.sort((a, b) => a - b);
  return {
    median: gaps[gaps.length / 2],
    worst: gaps[gaps.length - 1],
    mostElements
  };
}
