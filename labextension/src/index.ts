import { corePlugin, servicePlugin } from './plugins/core';
import { cellExecutorPlugin } from './plugins/cellExecutor';
import { cellMarksPlugin } from './plugins/cellMarks';
import { commandsPlugin } from './plugins/commands';
import { freshLinkPlugin } from './plugins/freshLink';
import { kernelStatusPlugin } from './plugins/kernelStatus';
import { noticesPlugin } from './plugins/notices';
import { offerPlugin } from './plugins/offer';
import { panelPlugin } from './plugins/panel';
import { sleepingPlugin } from './plugins/sleeping';
import { statusPlugin } from './plugins/status';
import { toolbarPlugin } from './plugins/toolbar';

export * from './tokens';

export default [
  corePlugin,
  servicePlugin,
  commandsPlugin,
  toolbarPlugin,
  panelPlugin,
  statusPlugin,
  kernelStatusPlugin,
  noticesPlugin,
  cellExecutorPlugin,
  cellMarksPlugin,
  sleepingPlugin,
  offerPlugin,
  freshLinkPlugin
];
