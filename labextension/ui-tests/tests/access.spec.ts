import {
  SLEEPY,
  button,
  expect,
  front,
  notice,
  open,
  panel,
  shown,
  rows,
  run,
  stateIs,
  test
} from './fixtures';

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
    await shown(page, name, info);
  });
}

test('works by the keyboard alone', async ({ page, tmpPath }, info) => {
  await open(page, `${tmpPath}/keys.ipynb`, {
    cells: ['x = 1; print("set")', 'x = 2; print("changed")', 'print(x)']
  });
  const says = (index: number, output: string) =>
    expect(
      front(page)
        .locator('.jp-Cell')
        .nth(index)
        .locator('.jp-OutputArea-output')
    ).toHaveText(output);
  const command = async (label: string) => {
    await page.keyboard.press('Control+Shift+C');
    await page.keyboard.type(label);
    await page.keyboard.press('Enter');
  };
  await command('Run Selected Cell and Do not Advance');
  await says(0, 'set');
  // To the toolbar, and along it to the button.
  const focus = page.locator(':focus');
  const toolbar = front(page).locator('.jp-NotebookPanel-toolbar');
  for (let step = 0; step < 60; step++) {
    if (await button(page).and(focus).count()) {
      break;
    }
    const inToolbar = (await toolbar.locator(focus).count()) > 0;
    await page.keyboard.press(inToolbar ? 'ArrowRight' : 'Shift+Tab');
  }
  await page.keyboard.press('Enter');
  await stateIs(page, 'saved');
  await command('Select Cell Below');
  await command('Run Selected Cell and Do not Advance');
  await says(1, 'changed');

  await command('Show Runtime Checkpoints');
  await expect(rows(page)).toBeVisible();
  for (let step = 0; step < 100; step++) {
    if (await rows(page).and(focus).count()) {
      break;
    }
    await page.keyboard.press('Tab');
  }
  await page.keyboard.press('F2');
  await page.keyboard.type('by keyboard');
  await page.keyboard.press('Enter');
  await expect(rows(page)).toContainText('by keyboard');
  await expect(rows(page)).toBeFocused();

  await page.keyboard.press('Shift+F10');
  await expect(page.locator('.lm-Menu')).toBeVisible();
  await shown(page, 'menu', info);
  await page.keyboard.type('p');
  await page.keyboard.press('Enter');
  await expect(rows(page).getByTitle('Pinned')).toBeVisible();
  await expect(rows(page)).toBeFocused();

  await page.keyboard.press('Enter');
  await expect(page.locator('.jp-Dialog')).toContainText('Go Back');
  await page.keyboard.press('Shift+Tab');
  await page.keyboard.press('Enter');
  await expect(notice(page, 'is back')).toBeVisible();
  await command('Select Cell Below');
  await command('Run Selected Cell and Do not Advance');
  await says(2, '1');
});

test('moves nothing when its state changes', async ({ page, tmpPath }) => {
  await open(page, `${tmpPath}/still.ipynb`, {
    cells: ['x = 1; print("set")', 'print(x)'],
    kernel: SLEEPY,
    settings: { enabled: true, autosave: true }
  });
  await panel(page);
  await run(page, 0, 'set');
  const seen: string[] = [];
  await page.exposeFunction('saw', (state: string) => seen.push(state));
  await page.evaluate(() => {
    const shifted: string[] = [];
    Object.assign(window, { shifted });
    const toolbar = '.jp-NotebookPanel-toolbar';
    const head = '#jp-runtime-checkpoints header';
    const list = '.jp-RuntimeCheckpoints-history';
    new PerformanceObserver(report => {
      for (const entry of report.getEntries()) {
        const { sources } = entry as unknown as {
          sources: { node: Node | null }[];
        };
        for (const { node } of sources) {
          const element = node instanceof Element ? node : node?.parentElement;
          if (
            element?.closest(`${toolbar}, ${head}`) ||
            element?.matches(list)
          ) {
            shifted.push(element.outerHTML.slice(0, 200));
          }
        }
      }
    }).observe({ type: 'layout-shift' });
    const state = document.querySelector(
      '.jp-NotebookPanel:not(.lm-mod-hidden) .jp-RuntimeCheckpoints-state'
    )!;
    new MutationObserver(() =>
      (window as any).saw(state.getAttribute('data-state'))
    ).observe(state, { attributeFilter: ['data-state'] });
  });
  await button(page).click();
  await stateIs(page, 'saved');
  await stateIs(page, 'asleep');
  await run(page, 1, '1');
  await stateIs(page, 'asleep');
  expect(new Set(seen)).toEqual(
    new Set(['saving', 'saved', 'resuming', 'asleep'])
  );
  expect(await page.evaluate(() => (window as any).shifted)).toEqual([]);
});

test('asks the server for nothing while nobody looks', async ({
  page,
  tmpPath
}) => {
  await page.clock.install();
  await open(page, `${tmpPath}/hidden.ipynb`, { cells: ['x = 1'] });
  await button(page).click();
  await stateIs(page, 'saved');
  await panel(page);
  const asked: string[] = [];
  page.on('request', request => {
    if (request.url().includes('/jupyter-checkpoints/')) {
      asked.push(`${request.method()} ${request.url()}`);
    }
  });
  const look = (hidden: boolean) =>
    page.evaluate(value => {
      Object.defineProperty(document, 'hidden', {
        configurable: true,
        get: () => value
      });
      Object.defineProperty(document, 'visibilityState', {
        configurable: true,
        get: () => (value ? 'hidden' : 'visible')
      });
      document.dispatchEvent(new Event('visibilitychange'));
    }, hidden);
  await look(true);
  await page.clock.runFor('30:00');
  expect(asked).toEqual([]);
  const listed = Promise.all([
    page.waitForResponse(/checkpoints\?notebook=/),
    page.waitForResponse(/jupyter-checkpoints\/runtimes/)
  ]);
  await look(false);
  await listed;
  asked.length = 0;
  // Nor while somebody looks and nothing happens: the server tells.
  await page.clock.runFor('30:00');
  expect(asked).toEqual([]);
});
