import type { TranslationBundle } from '@jupyterlab/translation';

import * as React from 'react';

import type { ICheckpoint } from '../tokens';
import { agoText, sizeText, titleText } from '../wording';

/** What other users share with this one; nothing where that is nothing. */
export function SharedList(props: {
  checkpoints: readonly ICheckpoint[];
  now: number;
  trans: TranslationBundle;
  onOpen: (checkpoint: ICheckpoint) => void;
}): JSX.Element | null {
  const { checkpoints, now, trans, onOpen } = props;
  if (!checkpoints.length) {
    return null;
  }
  return (
    <details className="jp-RuntimeCheckpoints-shared" open>
      <summary>{trans.__('Shared with you (%1)', checkpoints.length)}</summary>
      <ul>
        {checkpoints.map(checkpoint => (
          <li key={checkpoint.id} data-shared={checkpoint.id}>
            <div>
              <strong>{titleText(checkpoint, now)}</strong>
              <span>
                {trans.__(
                  '%1 · %2 · %3',
                  checkpoint.owner,
                  agoText(checkpoint.created, now, trans),
                  sizeText(checkpoint.memory_size + checkpoint.files_size)
                )}
              </span>
            </div>
            <button
              type="button"
              className="jp-RuntimeCheckpoints-link"
              title={trans.__('Make a notebook that goes on from there')}
              onClick={() => onOpen(checkpoint)}
            >
              {trans.__('Open…')}
            </button>
          </li>
        ))}
      </ul>
    </details>
  );
}
