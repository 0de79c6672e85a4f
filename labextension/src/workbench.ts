import type { TranslationBundle } from '@jupyterlab/translation';

import { Token } from '@lumino/coreutils';

import type { Actions } from './actions';
import type { Clock } from './clock';
import type { RuntimeCheckpoints } from './model';

/** What the plugins of this extension share among themselves. */
export interface IWorkbench {
  readonly model: RuntimeCheckpoints;
  readonly actions: Actions;
  readonly clock: Clock;
  readonly trans: TranslationBundle;
  /** Bring the panel to the front. */
  openPanel(): void;
}

/** Not for other extensions: those use `IRuntimeCheckpoints`. */
export const IWorkbench = new Token<IWorkbench>(
  'jupyter-runtime-checkpoints:IWorkbench',
  'Shared by the parts of runtime checkpoints.'
);
