const fs = require('fs');

const base = require('@jupyterlab/galata/lib/playwright-config');

// The distribution's browser, where it has one: Playwright's may not be reachable.
const CHROMIUM = '/usr/bin/chromium';

module.exports = {
  ...base,
  // They share one server, and kernels that are culled by the clock.
  workers: 1,
  timeout: 180000,
  expect: { timeout: 30000 },
  reporter: [['list']],
  // Pictures of what went well, too.
  preserveOutput: 'always',
  use: {
    ...base.use,
    viewport: { width: 1280, height: 760 },
    video: 'off',
    trace: 'off',
    screenshot: 'only-on-failure',
    launchOptions: {
      args: ['--no-sandbox'],
      ...(fs.existsSync(CHROMIUM) ? { executablePath: CHROMIUM } : {})
    }
  }
};
