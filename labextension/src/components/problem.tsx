import type { TranslationBundle } from '@jupyterlab/translation';

import * as React from 'react';

import type { IProblem } from '../tokens';

/** What went wrong, why, and what to do; the body of dialogs and a part of the panel. */
export function ProblemDetails(props: {
  problem: IProblem;
  trans: TranslationBundle;
}): JSX.Element {
  const { problem, trans } = props;
  const findings = problem.findings ?? [];
  return (
    <div className="jp-RuntimeCheckpoints-problem">
      <p>{problem.message}</p>
      {problem.reason ? <p>{sentence(problem.reason)}</p> : null}
      {problem.hint ? (
        <p>
          <strong>{trans.__('What to do')}</strong> {problem.hint}
        </p>
      ) : null}
      {findings.length ? (
        <ul>
          {findings.map((finding, index) => (
            <li key={index} data-severity={finding.severity}>
              <strong>
                {finding.severity === 'block'
                  ? trans.__('Prevents it')
                  : trans.__('Good to know')}
              </strong>{' '}
              {finding.message} {finding.hint}
            </li>
          ))}
        </ul>
      ) : null}
    </div>
  );
}

/** Reasons are parts of a sentence where they come from. */
function sentence(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
