import { ServerConnection } from '@jupyterlab/services';

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
  return [new CheckpointsApi(serverSettings), seen];
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

  it('understands an error page of something in between', async () => {
    const [client] = api(502, '<html>Bad gateway</html>');
    await expect(client.status()).rejects.toMatchObject({
      message: '502 Status',
      status: 502
    });
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
