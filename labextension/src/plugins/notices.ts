import type {
  JupyterFrontEnd,
  JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { Notification } from '@jupyterlab/apputils';
import { PathExt } from '@jupyterlab/coreutils';

import type { RuntimeCheckpoints } from '../model';
import type { IServerEvent } from '../serverEvents';
import type { IFinding } from '../tokens';
import { IWorkbench } from '../workbench';

/** Tells what went wrong without anybody having asked for it: a wake, an autosave. */
export const noticesPlugin: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-runtime-checkpoints:notices',
  description: 'Tells when a kernel could not be saved or resumed by itself.',
  autoStart: true,
  requires: [IWorkbench],
  activate: (_: JupyterFrontEnd, workbench: IWorkbench): void => {
    const { model, actions, trans } = workbench;
    const show = (text: string, event: IServerEvent) => {
      Notification.warning(text.slice(0, 140), {
        autoClose: false,
        actions: [
          {
            label: trans.__('Details'),
            callback: () => {
              void findings(model, event.checkpoint).then(found =>
                actions.showProblem(trans.__('Runtime Checkpoints'), {
                  message: text,
                  reason: [event.message, event.reason]
                    .filter(part => part)
                    .join(' '),
                  hint: event.hint,
                  findings: found
                })
              );
            }
          }
        ]
      });
    };
    model.serverEvent.connect((_, event) => {
      const name = PathExt.basename(event.notebook ?? '');
      if (event.action === 'resume_failed' && event.in_place === false) {
        show(
          trans.__(
            '%1 started fresh, as its saved kernel could not be resumed.',
            name
          ),
          event
        );
      } else if (event.action === 'kept') {
        show(
          trans.__(
            'The kernel of %1 could not be saved, so it was kept running.',
            name
          ),
          event
        );
      } else if (event.action === 'paused') {
        show(
          trans.__(
            'The kernel of %1 was paused: its cells wait until it goes on.',
            name
          ),
          event
        );
      } else if (event.action === 'bad_metadata') {
        show(
          trans.__(
            'Nothing is saved for %1: its settings cannot be read.',
            name
          ),
          event
        );
      } else if (event.action === 'failed' && event.trigger !== 'manual') {
        show(trans.__('The kernel of %1 could not be saved.', name), event);
      }
    });
  }
};

/** The preflight report of a checkpoint; nothing where there is none. */
async function findings(
  model: RuntimeCheckpoints,
  checkpoint: string | undefined
): Promise<IFinding[]> {
  if (!checkpoint) {
    return [];
  }
  const report = await model.api.preflight(checkpoint).catch(() => null);
  return report?.findings ?? [];
}
