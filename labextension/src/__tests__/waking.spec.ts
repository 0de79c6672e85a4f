import type { ISessionContext } from '@jupyterlab/apputils';

import { Signal } from '@lumino/signaling';

import { noteCulled, runAwake, wakened } from '../waking';

/** As much of a session as waking looks at. */
class Session {
  status = 'unknown';
  session: { kernel: { id?: string; status: string } | null } | null = null;
  sessionManager = { refreshRunning: () => Promise.resolve() };
  isDisposed = false;
  starts = 0;
  ready = Promise.resolve();
  statusChanged = new Signal<this, string>(this);
  kernelChanged = new Signal<this, void>(this);
  disposed = new Signal<this, void>(this);
  finish: () => void = () => undefined;

  get kernelDisplayStatus(): string {
    return this.status;
  }

  get hasNoKernel(): boolean {
    return !this.session?.kernel && this.status !== 'starting';
  }

  startKernel(): Promise<boolean> {
    this.starts += 1;
    this.status = 'starting';
    this.statusChanged.emit('starting');
    return new Promise(resolve => {
      this.finish = () => {
        this.there();
        resolve(false);
      };
    });
  }

  there(): void {
    this.status = 'idle';
    this.session = { kernel: { status: 'idle' } };
    this.kernelChanged.emit();
    this.statusChanged.emit('idle');
  }

  get context(): ISessionContext {
    return this as unknown as ISessionContext;
  }
}

describe('wakened', () => {
  it('has nothing to do for a kernel that is there', async () => {
    const session = new Session();
    session.there();
    await wakened(session.context);
    expect(session.starts).toBe(0);
  });

  it('starts one kernel for all cells, which go on in their order', async () => {
    const session = new Session();
    const ran: number[] = [];
    const cells = [1, 2, 3].map(async cell => {
      await wakened(session.context);
      ran.push(cell);
    });
    await new Promise(resolve => setTimeout(resolve));
    expect(session.starts).toBe(1);
    expect(ran).toEqual([]);
    session.finish();
    await Promise.all(cells);
    expect(ran).toEqual([1, 2, 3]);
    expect(session.starts).toBe(1);
  });

  it('waits for a kernel that somebody else is starting', async () => {
    const session = new Session();
    session.status = 'starting';
    let awake = false;
    const waiting = wakened(session.context).then(() => {
      awake = true;
    });
    await new Promise(resolve => setTimeout(resolve));
    expect(awake).toBe(false);
    session.there();
    await waiting;
    expect(session.starts).toBe(0);
  });

  it('starts another kernel for one that is gone', async () => {
    const session = new Session();
    session.session = { kernel: { status: 'dead' } };
    session.sessionManager.refreshRunning = () => {
      session.session = null;
      return Promise.resolve();
    };
    const waiting = wakened(session.context);
    await new Promise(resolve => setTimeout(resolve));
    session.finish();
    await waiting;
    expect(session.starts).toBe(1);
  });

  it('leaves a kernel that has died, and is still there, to its session', async () => {
    const session = new Session();
    session.session = { kernel: { status: 'dead' } };
    session.sessionManager.refreshRunning = () =>
      Promise.reject(new Error('no network'));
    await wakened(session.context);
    expect(session.starts).toBe(0);
  });

  it('ends with the session', async () => {
    const session = new Session();
    session.status = 'starting';
    const waiting = wakened(session.context);
    session.isDisposed = true;
    session.disposed.emit();
    await waiting;
    expect(session.starts).toBe(0);
  });
});

describe('runAwake', () => {
  function sleepy(id: string) {
    const session = new Session();
    session.session = { kernel: { id, status: 'idle' } };
    let runs = 0;
    const ran = runAwake(session.context, () => {
      runs += 1;
      if (runs === 1) {
        session.session = null;
        return Promise.resolve(false);
      }
      return Promise.resolve(true);
    });
    return { session, ran, runs: () => runs };
  }

  it('runs a cell again that came when its kernel fell asleep', async () => {
    noteCulled('culled');
    const { session, ran, runs } = sleepy('culled');
    await new Promise(resolve => setTimeout(resolve));
    session.finish();
    expect(await ran).toBe(true);
    expect(runs()).toBe(2);
    expect(session.starts).toBe(1);
  });

  it('does not where somebody shut the kernel down', async () => {
    const { session, ran, runs } = sleepy('shut-down');
    expect(await ran).toBe(false);
    expect(runs()).toBe(1);
    expect(session.starts).toBe(0);
  });
});
