import type {
  Availability,
  INotebookSettings,
  IProblem,
  IProgress,
  Mode,
  NotebookState
} from './tokens';

/** All that a notebook's state depends on. */
export interface IFacts {
  availability: Availability;
  settings: INotebookSettings;
  progress: IProgress | null;
  problem: IProblem | null;
  hasKernel: boolean;
  /** Whether the notebook's kernel runs in a container that can be saved. */
  supported: boolean;
  hasCheckpoints: boolean;
}

/** The one state that is shown; what is under way comes first, then what is wrong. */
export function notebookState(facts: IFacts): NotebookState {
  if (facts.progress) {
    return facts.progress.kind;
  }
  if (!['available', 'unknown'].includes(facts.availability)) {
    return 'unavailable';
  }
  if (!facts.settings.enabled) {
    return 'off';
  }
  if (facts.problem) {
    return 'failed';
  }
  if (!facts.hasKernel) {
    return facts.hasCheckpoints ? 'asleep' : 'on';
  }
  if (!facts.supported) {
    return 'unsupported';
  }
  return facts.hasCheckpoints ? 'saved' : 'on';
}

const DEFAULTS: INotebookSettings = {
  enabled: false,
  autosave: true,
  runtime: ''
};

function isMode(value: unknown): value is Mode {
  return value === 'process' || value === 'filesystem';
}

/** Settings from a notebook's metadata; whatever is not right there counts as not said. */
export function readSettings(value: unknown): INotebookSettings {
  if (typeof value !== 'object' || value === null) {
    return { ...DEFAULTS };
  }
  const given = value as Record<string, unknown>;
  const settings: INotebookSettings = {
    enabled: given.enabled === true,
    autosave: given.autosave !== false,
    runtime: typeof given.runtime === 'string' ? given.runtime : ''
  };
  if (isMode(given.mode)) {
    settings.mode = given.mode;
  }
  return settings;
}
