import type { IFinding } from './tokens';

const SCHEMAS = 'https://schema.jupyter.org/jupyter_checkpoints/';

/** What the server tells of saves, resumes and checkpoints; only `action` is always there. */
export interface IServerEvent {
  action: string;
  trigger?: string;
  kernel_id?: string;
  notebook?: string;
  runtime?: string;
  checkpoint?: string;
  operation?: string;
  source_notebook?: string;
  in_place?: boolean;
  stage?: string;
  done?: number;
  total?: number;
  message?: string;
  reason?: string;
  hint?: string;
  findings?: IFinding[];
}

/** The event if it is one of ours that has an action. */
export function asServerEvent(emission: {
  schema_id: string;
}): IServerEvent | null {
  const { action } = emission as Record<string, unknown>;
  return emission.schema_id.startsWith(SCHEMAS) && typeof action === 'string'
    ? (emission as unknown as IServerEvent)
    : null;
}
