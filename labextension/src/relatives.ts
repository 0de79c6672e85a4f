import type { IRuntime } from './request';
import type { IRelative } from './tokens';

/** The remixes of a runtime, and what it is a remix of, as far as they are on this server. */
export function relativesOf(
  runtime: string,
  runtimes: readonly IRuntime[]
): IRelative[] {
  const open = runtimes.filter(({ notebook, deleted }) => notebook && !deleted);
  const found: IRelative[] = [];
  for (const other of open) {
    if (other.origin?.runtime === runtime) {
      found.push({
        relation: 'remix',
        id: other.runtime,
        notebook: other.notebook,
        parent: other.origin.checkpoint,
        created: other.origin.created,
        aside: true
      });
    }
  }
  const origin = runtimes.find(own => own.runtime === runtime)?.origin;
  const original = open.find(other => other.runtime === origin?.runtime);
  if (origin && original) {
    found.push({
      relation: 'original',
      id: origin.checkpoint,
      notebook: original.notebook,
      parent: '',
      created: '',
      aside: false
    });
  }
  return found;
}
