import type { ISessionContext } from '@jupyterlab/apputils';

import type { ISignal } from '@lumino/signaling';
import { Signal } from '@lumino/signaling';

const changed = new Signal<object, ISessionContext>({});
const waking = new WeakMap<ISessionContext, Promise<void>>();
const culled = new Set<string>();

/** The server has put this kernel to sleep: what was sent to it since was answered by nobody. */
export function noteCulled(kernelId: string): void {
  culled.add(kernelId);
}

/**
 * Run a cell when its notebook's kernel is there.
 *
 * If the kernel fell asleep just then, it has not run, and does so when the kernel is awake again.
 */
export async function runAwake(
  context: ISessionContext,
  run: () => Promise<boolean>
): Promise<boolean> {
  await wakened(context);
  const kernel = context.session?.kernel?.id ?? '';
  const ran = await run();
  if (ran || !culled.has(kernel)) {
    return ran;
  }
  await wakened(context);
  return run();
}

/**
 * Start a notebook's kernel if it has none, and wait until that is there.
 *
 * All who ask meanwhile wait for the same, so they go on in the order in which they asked. It is no
 * error if there is no kernel in the end.
 */
export function wakened(context: ISessionContext): Promise<void> {
  let waiting = waking.get(context);
  if (!waiting) {
    if (!isStarting(context) && !context.hasNoKernel && !isDead(context)) {
      return Promise.resolve();
    }
    waiting = wake(context).finally(() => {
      waking.delete(context);
      changed.emit(context);
    });
    waking.set(context, waiting);
    changed.emit(context);
  }
  return waiting;
}

/** Whether somebody has asked for the kernel, and it is not there yet. */
export function isWaking(context: ISessionContext): boolean {
  return waking.has(context);
}

/** Tells of notebooks whose kernel is asked for, or has come. */
export const wakingChanged: ISignal<object, ISessionContext> = changed;

async function wake(context: ISessionContext): Promise<void> {
  await started(context);
  if (isDead(context)) {
    // The page hears of its session's end later, and until then there is no other kernel for it.
    await context.sessionManager.refreshRunning().catch(() => undefined);
  }
  if (!context.isDisposed && context.hasNoKernel) {
    await context.startKernel();
  }
}

function isDead(context: ISessionContext): boolean {
  return context.session?.kernel?.status === 'dead';
}

function isStarting(context: ISessionContext): boolean {
  return (
    !context.isDisposed &&
    !context.session?.kernel &&
    ['initializing', 'starting'].includes(context.kernelDisplayStatus)
  );
}

/** Whoever is starting the kernel has done so, or has given up. */
function started(context: ISessionContext): Promise<void> {
  return new Promise(resolve => {
    const look = () => {
      if (!isStarting(context)) {
        context.statusChanged.disconnect(look);
        context.kernelChanged.disconnect(look);
        context.disposed.disconnect(look);
        resolve();
      }
    };
    context.statusChanged.connect(look);
    context.kernelChanged.connect(look);
    context.disposed.connect(look);
    // To be ready changes the status without a signal.
    void context.ready.then(look);
    look();
  });
}
