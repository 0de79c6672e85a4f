import type { TranslationBundle } from '@jupyterlab/translation';

import * as React from 'react';

import type { ICheckpoint, IPreflight } from '../tokens';
import { sizeText, triggerText } from '../wording';
import { ProblemDetails } from './problem';

/** What is inside a checkpoint, and whether it can be resumed here. */
export function CheckpointDetails(props: {
  checkpoint: ICheckpoint;
  preflight: IPreflight | null;
  trans: TranslationBundle;
}): JSX.Element {
  const { checkpoint, preflight, trans } = props;
  const facts: [string, string][] = [
    [trans.__('Saved'), new Date(checkpoint.created).toLocaleString()],
    [trans.__('Why'), triggerText(checkpoint.trigger, trans)],
    [
      trans.__('Holds'),
      checkpoint.mode === 'process'
        ? trans.__('memory of all processes, and files')
        : trans.__('files only')
    ],
    [trans.__('Memory'), sizeText(checkpoint.memory_size)],
    [trans.__('Files'), sizeText(checkpoint.files_size)],
    [trans.__('Kernel'), checkpoint.kernel_name],
    [trans.__('Image'), checkpoint.image],
    [
      trans.__('Kernel stood still for'),
      trans.__('%1 ms', Math.round(checkpoint.pause_seconds * 1000))
    ],
    [trans.__('Id'), checkpoint.id]
  ];
  if (typeof checkpoint.held === 'number') {
    facts.splice(5, 0, [
      trans.__('Freed if deleted'),
      sizeText(checkpoint.held)
    ]);
  }
  if (checkpoint.touched) {
    facts.splice(1, 0, [
      trans.__('Unchanged until'),
      new Date(checkpoint.touched).toLocaleString()
    ]);
  }
  return (
    <div className="jp-RuntimeCheckpoints-details">
      <dl>
        {facts.map(([name, value]) => (
          <React.Fragment key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </React.Fragment>
        ))}
      </dl>
      {preflight ? (
        <ProblemDetails
          problem={{
            message: preflight.ok
              ? trans.__('It can be resumed here.')
              : trans.__('It cannot be resumed here now.'),
            findings: preflight.findings
          }}
          trans={trans}
        />
      ) : null}
    </div>
  );
}
