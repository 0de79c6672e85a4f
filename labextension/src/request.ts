import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';
import type { TranslationBundle } from '@jupyterlab/translation';

import type {
  ICheckpoint,
  IFinding,
  IPreflight,
  IProblem,
  Mode
} from './tokens';

/** The server extension's part of the server's address space. */
const NAMESPACE = 'jupyter-checkpoints';

/** How often a request that does not get through is made, and milliseconds between. */
const ATTEMPTS = 4;
const ATTEMPT_INTERVAL = 250;

/** What the server extension says of itself and of its agent. */
export interface IServerStatus extends IProblem {
  version: string;
  /** Whether kernels can be saved; if not, the problem says why. */
  available: boolean;
}

/** Long work that the server does, as it stands. */
export interface IOperation {
  id: string;
  kind: string;
  state: 'running' | 'done' | 'failed' | 'cancelled';
  kernel_id: string;
  checkpoint: string;
  stage: string;
  done: number;
  total: number;
  result: unknown;
  error: IProblem | null;
}

/** The line of states of one notebook. */
export interface IRuntime {
  runtime: string;
  /** The notebook's path on this server; empty if it is none of this server's. */
  notebook: string;
  /** When the notebook was deleted, if it was. */
  deleted: string;
  /** Ids of its kernels that run. */
  kernels: string[];
  newest: ICheckpoint | null;
  /** If it is a remix, what of. */
  origin: {
    /** The other runtime's checkpoint that it began with. */
    checkpoint: string;
    runtime: string;
    /** When the remix was made. */
    created: string;
  } | null;
}

/** One of those who may copy a checkpoint. */
export interface IShare {
  /** The number of a user of the server's host, or `*` for everybody there. */
  user: number | '*';
  /** His name; his number if he is gone. */
  name: string;
}

/** With whom a checkpoint is shared. */
export interface IShares {
  shares: IShare[];
  /** What is given away, for whoever is about to share it. */
  warning: string;
}

/** What the server answered instead of what was asked for. */
export class ServerError extends Error implements IProblem {
  constructor(problem: IProblem, status: number) {
    super(problem.message);
    this.name = 'ServerError';
    this.reason = problem.reason ?? '';
    this.hint = problem.hint ?? '';
    this.findings = problem.findings ?? [];
    this.status = status;
  }

  readonly reason: string;
  readonly hint: string;
  readonly findings: readonly IFinding[];
  /** The HTTP status; 0 if no answer came. */
  readonly status: number;
}

/** What was asked for was cancelled by somebody; nothing was changed, and nothing is wrong. */
export class Cancelled extends Error {
  constructor() {
    super('cancelled');
    this.name = 'Cancelled';
  }
}

/** Any error as a problem to show. */
export function asProblem(error: unknown): IProblem {
  if (error instanceof ServerError) {
    return error;
  }
  return { message: error instanceof Error ? error.message : String(error) };
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null;
}

function parsed(text: string): unknown {
  try {
    return text ? JSON.parse(text) : null;
  } catch {
    // An error page of something between the server and here.
    return null;
  }
}

/** The routes of the server extension, one method for each. All raise {@link ServerError}. */
export class CheckpointsApi {
  constructor(
    readonly serverSettings: ServerConnection.ISettings,
    private readonly _trans: TranslationBundle
  ) {}

  status(): Promise<IServerStatus> {
    return this._request<IServerStatus>('GET', ['status']);
  }

  runtimes(): Promise<IRuntime[]> {
    return this._request<IRuntime[]>('GET', ['runtimes']);
  }

  checkpoints(
    of: { notebook: string } | { runtime: string } | { shared: '1' }
  ): Promise<ICheckpoint[]> {
    return this._request<ICheckpoint[]>('GET', ['checkpoints'], { query: of });
  }

  save(options: {
    kernel_id: string;
    name?: string;
    mode?: Mode;
  }): Promise<IOperation> {
    // Who asks twice for the same save gets the one that waits, or at worst another one.
    return this._request<IOperation>('POST', ['checkpoints'], {
      body: options,
      again: true
    });
  }

  change(
    id: string,
    changes: { name?: string; pinned?: boolean }
  ): Promise<ICheckpoint> {
    return this._request<ICheckpoint>('PATCH', ['checkpoints', id], {
      body: changes
    });
  }

  delete(id: string): Promise<void> {
    return this._request<void>('DELETE', ['checkpoints', id]);
  }

  preflight(id: string): Promise<IPreflight> {
    return this._request<IPreflight>('GET', ['checkpoints', id, 'preflight']);
  }

  /** Whether a kernel can be saved now, as far as can be seen. */
  presave(kernelId: string): Promise<IPreflight> {
    return this._request<IPreflight>('GET', ['kernels', kernelId, 'preflight']);
  }

  /** In place in a kernel, or in a new one of a notebook. */
  resume(
    id: string,
    where: { kernel_id: string } | { notebook: string }
  ): Promise<IOperation> {
    return this._request<IOperation>('POST', ['checkpoints', id, 'resume'], {
      body: where
    });
  }

  /** With whom a checkpoint is shared. */
  shares(id: string): Promise<IShares> {
    return this._request<IShares>('GET', ['checkpoints', id, 'shares']);
  }

  /** Let a user, by name or number, make copies of a checkpoint; `*`: everybody. */
  share(id: string, user: string): Promise<IShares> {
    return this._request<IShares>('PUT', ['checkpoints', id, 'shares', user]);
  }

  /** Take a share back; copies that were made stay. */
  unshare(id: string, user: string): Promise<IShares> {
    const parts = ['checkpoints', id, 'shares', user];
    return this._request<IShares>('DELETE', parts);
  }

  /** Copy a notebook with a checkpoint; without it, make one of what somebody shares. */
  remix(options: {
    source?: string;
    target: string;
    checkpoint?: string;
  }): Promise<{ notebook: string; runtime: string; checkpoint: ICheckpoint }> {
    return this._request('POST', ['remix'], { body: options });
  }

  operation(id: string): Promise<IOperation> {
    return this._request<IOperation>('GET', ['operations', id]);
  }

  /** Have it end as if it had never begun. */
  cancel(id: string): Promise<IOperation> {
    return this._request<IOperation>('DELETE', ['operations', id]);
  }

  /** Read every byte of a checkpoint again, and compare. */
  verify(id: string): Promise<IOperation> {
    return this._request<IOperation>('POST', ['checkpoints', id, 'verify'], {
      body: {}
    });
  }

  /** The notebook's next kernel starts without a checkpoint, once. */
  startFreshNext(notebook: string): Promise<void> {
    return this._request<void>('POST', ['fresh'], { body: { notebook } });
  }

  /** Where a browser downloads a checkpoint's archive from. */
  archiveUrl(id: string): string {
    const { token } = this.serverSettings;
    const query =
      this.serverSettings.appendToken && token
        ? URLExt.objectToQueryString({ token })
        : '';
    return this._url(['checkpoints', id, 'archive']) + query;
  }

  /**
   * Make a checkpoint of an archive, for a notebook that is switched on.
   *
   * `progress` is told the share that is sent, 0 to 1. Raises {@link Cancelled} if `signal` says so.
   */
  importArchive(
    archive: Blob,
    notebook: string,
    progress: (share: number) => void,
    signal: AbortSignal
  ): Promise<ICheckpoint> {
    // Only this kind of request tells how much of it is sent.
    const request = new XMLHttpRequest();
    const query = URLExt.objectToQueryString({ notebook });
    request.open('POST', this._url(['archives']) + query);
    request.setRequestHeader('Content-Type', 'application/octet-stream');
    const { token } = this.serverSettings;
    const [, xsrf] = document.cookie.match(/(?:^|; )_xsrf=([^;]*)/) ?? [];
    if (token) {
      request.setRequestHeader('Authorization', `token ${token}`);
    } else if (xsrf) {
      request.setRequestHeader('X-XSRFToken', xsrf);
    }
    return new Promise((resolve, reject) => {
      request.upload.onprogress = ({ loaded, total }) =>
        progress(total ? loaded / total : 0);
      request.onload = () => {
        const { status, statusText } = request;
        const body = parsed(request.responseText);
        if (status === 201) {
          resolve(body as ICheckpoint);
        } else {
          reject(this._refusal(body, status, statusText));
        }
      };
      request.onerror = () => reject(this._silence());
      request.onabort = () => reject(new Cancelled());
      signal.addEventListener('abort', () => request.abort());
      request.send(archive);
    });
  }

  /** An answer that is none of success, in words for people. */
  private _refusal(
    body: unknown,
    status: number,
    statusText: string
  ): ServerError {
    const text = (value: unknown) => (typeof value === 'string' ? value : '');
    const given = isRecord(body) ? body : {};
    const message = text(given.message) || `${status} ${statusText}`.trim();
    const problem: IProblem = {
      message,
      reason: text(given.reason),
      hint: text(given.hint),
      findings: Array.isArray(given.findings) ? given.findings : []
    };
    // Jupyter Server's own refusals say nothing that would help.
    return new ServerError(
      status === 403 && !problem.hint
        ? {
            message: this._trans.__('You may not do this on this server.'),
            reason: problem.reason || message,
            hint: this._trans.__(
              'Ask whoever runs the server to allow you runtime checkpoints. Your kernels and notebooks work as always.'
            )
          }
        : problem,
      status
    );
  }

  private _silence(reason = ''): ServerError {
    const message = this._trans.__('The Jupyter server does not answer.');
    return new ServerError({ message, reason }, 0);
  }

  private _url(parts: readonly string[]): string {
    return URLExt.join(
      this.serverSettings.baseUrl,
      NAMESPACE,
      ...parts.map(encodeURIComponent)
    );
  }

  /** Browsers give requests up when their network changes; what does no harm is asked again. */
  private async _reach(
    url: string,
    init: RequestInit,
    attempts: number
  ): Promise<Response> {
    for (;;) {
      try {
        return await ServerConnection.makeRequest(
          url,
          init,
          this.serverSettings
        );
      } catch (error) {
        attempts -= 1;
        if (attempts <= 0) {
          throw this._silence(
            error instanceof Error ? error.message : String(error)
          );
        }
        await new Promise(resolve => setTimeout(resolve, ATTEMPT_INTERVAL));
      }
    }
  }

  private async _request<T>(
    method: string,
    parts: readonly string[],
    options: {
      query?: Record<string, string>;
      body?: unknown;
      /** Whether it does no harm if it reaches the server twice. */
      again?: boolean;
    } = {}
  ): Promise<T> {
    const query = options.query
      ? URLExt.objectToQueryString({ ...options.query })
      : '';
    const url = this._url(parts) + query;
    const init: RequestInit = { method };
    if (options.body !== undefined) {
      init.body = JSON.stringify(options.body);
    }
    const response = await this._reach(
      url,
      init,
      method === 'GET' || options.again === true ? ATTEMPTS : 1
    );
    const body = parsed(await response.text());
    if (!response.ok) {
      throw this._refusal(body, response.status, response.statusText);
    }
    return body as T;
  }
}
