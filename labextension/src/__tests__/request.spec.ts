import { ServerConnection } from '@jupyterlab/services';
import { nullTranslator } from '@jupyterlab/translation';

import { CheckpointsApi, ServerError, asProblem } from '../request';

/** Answers one request, and keeps it. */
function api(status: number, body: string): [CheckpointsApi, Request[]] {
  const seen: Request[] = [];
  const serverSettings = ServerConnection.makeSettings({
    baseUrl: 'http://server/base/',
    fetch: async (input, init) => {
      seen.push(new Request(input, init));
      return new Response(body, { status, statusText: 'Status' });
    }
  });
  return [
    new CheckpointsApi(serverSettings, nullTranslator.load('jupyterlab')),
    seen
  ];
}

describe('CheckpointsApi', () => {
  it('asks below the base URL, with everything quoted', async () => {
    const [client, seen] = api(200, '[]');
    await client.checkpoints({ notebook: 'a b/ü&.ipynb' });
    await client.preflight('../x');
    expect(seen[0].url).toContain(
      'http://server/base/jupyter-checkpoints/checkpoints?notebook=a%20b%2F%C3%BC%26.ipynb'
    );
    expect(seen[1].url).toContain('/checkpoints/..%2Fx/preflight');
  });

  it('raises what the server answers', async () => {
    const [client] = api(
      409,
      JSON.stringify({ message: 'No.', reason: 'Busy.', hint: 'Wait.' })
    );
    await expect(client.save({ kernel_id: 'k' })).rejects.toMatchObject({
      message: 'No.',
      reason: 'Busy.',
      hint: 'Wait.',
      status: 409
    });
  });

  it('says in plain words that a user may not', async () => {
    const [client] = api(
      403,
      JSON.stringify({ message: 'User is not authorized to write.' })
    );
    await expect(client.save({ kernel_id: 'k' })).rejects.toMatchObject({
      message: 'You may not do this on this server.',
      reason: 'User is not authorized to write.',
      status: 403
    });
  });

  it('understands an error page of something in between', async () => {
    const [client] = api(502, '<html>Bad gateway</html>');
    await expect(client.status()).rejects.toMatchObject({
      message: '502 Status',
      status: 502
    });
  });

  it('asks again when a request does not get through, if that does no harm', async () => {
    let attempts = 0;
    const client = new CheckpointsApi(
      ServerConnection.makeSettings({
        fetch: async () => {
          attempts += 1;
          if (attempts < 3) {
            throw new TypeError('Failed to fetch');
          }
          return new Response('[]');
        }
      }),
      nullTranslator.load('jupyterlab')
    );
    await expect(client.runtimes()).resolves.toEqual([]);
    attempts = 0;
    await expect(
      client.resume('c1', { kernel_id: 'k1' })
    ).rejects.toMatchObject({
      reason: 'Failed to fetch',
      status: 0
    });
    expect(attempts).toBe(1);
  });

  it('returns nothing for an empty answer', async () => {
    const [client, seen] = api(200, '');
    await expect(client.delete('c1')).resolves.toBeNull();
    expect(seen[0].method).toBe('DELETE');
  });
});

describe('asProblem', () => {
  it('takes any error', () => {
    const error = new ServerError({ message: 'm', hint: 'h' }, 500);
    expect(asProblem(error).hint).toBe('h');
    expect(asProblem(new Error('other')).message).toBe('other');
    expect(asProblem('text').message).toBe('text');
  });
});
