import * as fs from 'fs';
import * as path from 'path';

import {
  ROOT,
  button,
  expect,
  front,
  inFront,
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
    cells: ['x = 41; print("set")'],
    settings: { enabled: true, autosave: false, mode: 'process' }
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

  const download = (ending: string) =>
    page.waitForEvent('download', file =>
      file.suggestedFilename().endsWith(ending)
    );
  const downloads = [download('.tar'), download('.ipynb')];
  await rows(page).first().click({ button: 'right' });
  await page.click('.lm-Menu-itemLabel:text("Export")');
  const [tar, ipynb] = await Promise.all(downloads);
  // Beside each other they are found by each other's name.
  expect(ipynb.suggestedFilename()).toBe(
    tar.suggestedFilename().replace('.tar', '.ipynb')
  );
  const archive = await tar.path();
  expect(fs.statSync(archive).size).toBeGreaterThan(1_000_000);

  const chooser = page.waitForEvent('filechooser');
  await page.locator('#jp-runtime-checkpoints').getByText('Import…').click();
  // The cells are in the notebook's own file.
  const files = await chooser;
  await files.setFiles([
    {
      name: 'elsewhere.tar',
      mimeType: 'application/x-tar',
      buffer: fs.readFileSync(archive)
    },
    {
      name: 'elsewhere.ipynb',
      mimeType: 'application/json',
      buffer: fs.readFileSync(await ipynb.path())
    }
  ]);
  await shown(page, 'import-name', info);
  await page.keyboard.press('Enter');
  await inFront(page, 'elsewhere.ipynb');
  await kernelIs(page, 'idle');
  await expect(front(page).locator('.jp-Cell').first()).toContainText('x = 41');
  const stored = JSON.parse(
    fs.readFileSync(path.join(ROOT, tmpPath, 'elsewhere.ipynb'), 'utf8')
  );
  expect(stored.metadata.runtime_checkpoints).toMatchObject({
    enabled: true,
    autosave: false,
    mode: 'process'
  });
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
}, info) => {
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

  const plain = await page.context().newPage();
  await plain.setContent(
    '<div id="list" style="height: 500px; width: 300px; overflow: auto">' +
      '<div style="height: 460000px"></div></div>'
  );
  const [bare] = page.context().pages();
  const processor = await page.context().newCDPSession(bare);
  await processor.send('Performance.enable', { timeDomain: 'threadTicks' });
  const spent = async () => {
    const { metrics } = await processor.send('Performance.getMetrics');
    return metrics.find(({ name }) => name === 'TaskDuration')!.value;
  };
  // In turns, and the best of each: the machine may have other things to do.
  const ours: IScrolled[] = [];
  const empty: IScrolled[] = [];
  const budget: number[] = [];
  for (let round = 0; round < 3; round++) {
    await page.bringToFront();
    const before = await spent();
    ours.push(
      await page.evaluate(scroll, {
        selector: '.jp-RuntimeCheckpoints-history',
        frames: FRAMES
      })
    );
    budget.push(((await spent()) - before) / FRAMES);
    await plain.bringToFront();
    empty.push(
      await plain.evaluate(scroll, { selector: '#list', frames: FRAMES })
    );
  }
  await plain.close();
  const best = (of: IScrolled[], key: keyof IScrolled) =>
    Math.min(...of.map(round => round[key]));
  // However long the history is, so many elements and no more.
  expect(Math.max(...ours.map(round => round.elements))).toBeLessThan(1000);
  expect(best(ours, 'median') / best(empty, 'median')).toBeLessThan(4);
  expect(best(ours, 'worst') / best(empty, 'worst')).toBeLessThan(30);
  // Seconds of the processor's time; a frame has 1/60 s.
  expect(Math.min(...budget)).toBeLessThan(1 / 60);
  info.annotations.push({
    type: 'frames',
    description: JSON.stringify({ ours, empty, budget })
  });
});

/** Frames that are scrolled through, one step in each. */
const FRAMES = 120;

interface IScrolled {
  /** Milliseconds between two frames. */
  median: number;
  worst: number;
  /** At most, in the list. */
  elements: number;
}

/** Scroll on in every frame. Runs in the page. */
async function scroll(options: {
  selector: string;
  frames: number;
}): Promise<IScrolled> {
  const list = document.querySelector(options.selector)!;
  const frame = () => new Promise<number>(requestAnimationFrame);
  const gaps: number[] = [];
  let elements = 0;
  list.scrollTop = 0;
  let before = await frame();
  for (let step = 0; step < options.frames; step++) {
    // By rows, then by far: as with a wheel, and as with the bar.
    list.scrollTop += step % 2 ? 30 : 2000;
    const now = await frame();
    gaps.push(now - before);
    before = now;
    elements = Math.max(elements, list.querySelectorAll('*').length);
  }
  gaps.sort((a, b) => a - b);
  return {
    median: gaps[gaps.length / 2],
    worst: gaps[gaps.length - 1],
    elements
  };
}
