import type { ICheckpoint } from '../tokens';

/** A checkpoint as the server gives it, but for what a test says of it. */
export function checkpoint(given: Partial<ICheckpoint>): ICheckpoint {
  return {
    id: 'c1',
    kernel_id: 'k1',
    runtime: 'r1',
    created: '2026-11-24T14:02:00.000+00:00',
    touched: '',
    name: '',
    trigger: 'manual',
    mode: 'process',
    parent: '',
    pinned: false,
    memory_size: 37_000_000,
    files_size: 100_000,
    pause_seconds: 0.1,
    save_seconds: 0.2,
    execution_count: 1,
    verified: null,
    held: 1000,
    shared: 0,
    owner: '',
    image: 'python3',
    kernel_name: 'checkpoints-python3',
    ...given
  };
}
