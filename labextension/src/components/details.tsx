import type { TranslationBundle } from '@jupyterlab/translation';

import * as React from 'react';

import type { ICheckpoint, IPreflight, IVerification } from '../tokens';
import { sizeText, sizesText, triggerText } from '../wording';
import { ProblemDetails } from './problem';

/** What is inside a checkpoint, and whether it can be resumed here. */
export function CheckpointDetails(props: {
  checkpoint: ICheckpoint;
  preflight: IPreflight | null;
  trans: TranslationBundle;
}): JSX.Element {
  const { checkpoint, preflight, trans } = props;
  const unchanged: [string, string] = [
    trans.__('Unchanged until'),
    new Date(checkpoint.touched).toLocaleString()
  ];
  const facts: [string, string][] = [
    [trans.__('Saved'), new Date(checkpoint.created).toLocaleString()],
    ...(checkpoint.touched ? [unchanged] : []),
    [trans.__('Why'), triggerText(checkpoint.trigger, trans)],
    [
      trans.__('Last cell'),
      checkpoint.execution_count === null
        ? trans.__('unknown')
        : `[${checkpoint.execution_count}]`
    ],
    [
      trans.__('Holds'),
      checkpoint.mode === 'process'
        ? trans.__('memory of all processes, and files')
        : trans.__('files only')
    ],
    [trans.__('Memory'), sizeText(checkpoint.memory_size)],
    [trans.__('Files'), sizeText(checkpoint.files_size)],
    [trans.__('Held'), sizesText(checkpoint, trans)],
    [
      trans.__('Freed if deleted'),
      sizeText(checkpoint.held - checkpoint.shared)
    ],
    [trans.__('Verified'), verification(checkpoint.verified, trans)],
    [trans.__('Kernel'), checkpoint.kernel_name],
    [trans.__('Image'), checkpoint.image],
    [
      trans.__('Kernel stood still for'),
      trans.__('%1 ms', Math.round(checkpoint.pause_seconds * 1000))
    ],
    [trans.__('Id'), checkpoint.id]
  ];
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

function verification(
  verified: IVerification | null,
  trans: TranslationBundle
): string {
  if (!verified) {
    return trans.__('not read again yet');
  }
  const when = new Date(verified.at).toLocaleString();
  return verified.ok
    ? trans.__('%1, all of it is there', when)
    : trans.__('%1, damaged: %2', when, verified.problems.join(' '));
}
