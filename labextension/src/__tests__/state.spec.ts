import type { IFacts } from '../state';
import { notebookState, readSettings } from '../state';

const facts = (given: Partial<IFacts>): IFacts => ({
  availability: 'available',
  settings: { enabled: true, autosave: true, runtime: 'r1' },
  progress: null,
  problem: null,
  hasKernel: true,
  supported: true,
  hasCheckpoints: false,
  ...given
});
const off = { enabled: false, autosave: true, runtime: '' };
const saving = {
  kind: 'saving' as const,
  stage: '',
  done: 0,
  total: 0,
  operation: ''
};
const problem = { message: 'It failed.' };

describe('notebookState', () => {
  it.each<[string, Partial<IFacts>, string]>([
    ['a notebook that says nothing', { settings: off }, 'off'],
    ['nothing saved yet', {}, 'on'],
    ['something saved', { hasCheckpoints: true }, 'saved'],
    ['a save under way', { progress: saving, problem }, 'saving'],
    [
      'a resume under way',
      { progress: { ...saving, kind: 'resuming' }, hasKernel: false },
      'resuming'
    ],
    [
      'no kernel, something saved',
      { hasKernel: false, hasCheckpoints: true },
      'asleep'
    ],
    ['no kernel, nothing saved', { hasKernel: false }, 'on'],
    ['a failed save', { problem, hasCheckpoints: true }, 'failed'],
    ['a kernel outside of a container', { supported: false }, 'unsupported'],
    ['no agent', { availability: 'unavailable' }, 'unavailable'],
    ['no server extension', { availability: 'no-extension' }, 'unavailable'],
    ['a server not asked yet', { availability: 'unknown' }, 'on'],
    ['off, with a problem of before', { settings: off, problem }, 'off']
  ])('%s', (_, given, state) => {
    expect(notebookState(facts(given))).toBe(state);
  });
});

describe('readSettings', () => {
  it.each([undefined, null, 'yes', 3, []])('takes %p for off', value => {
    expect(readSettings(value).enabled).toBe(false);
  });

  it('takes only what is right', () => {
    expect(
      readSettings({
        enabled: true,
        autosave: 'perhaps',
        mode: 'magic',
        runtime: 7
      })
    ).toEqual({ enabled: true, autosave: true, runtime: '' });
    expect(
      readSettings({
        enabled: true,
        autosave: false,
        mode: 'filesystem',
        runtime: 'r'
      })
    ).toEqual({
      enabled: true,
      autosave: false,
      mode: 'filesystem',
      runtime: 'r'
    });
  });
});
