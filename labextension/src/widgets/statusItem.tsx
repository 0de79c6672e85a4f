import type { TranslationBundle } from '@jupyterlab/translation';
import { ReactWidget, UseSignal } from '@jupyterlab/ui-components';

import * as React from 'react';

import type { Clock } from '../clock';
import { stateIcon } from '../icons';
import type { IRuntimeCheckpoints } from '../tokens';
import { stateExplanation, stateLabel } from '../wording';

/** The state of the notebook in front; opens the panel. Says nothing where it is off. */
export class StatusItem extends ReactWidget {
  constructor(private readonly _options: StatusItem.IOptions) {
    super();
    this.addClass('jp-RuntimeCheckpoints-status');
  }

  protected render(): JSX.Element {
    const { model, clock } = this._options;
    return (
      <UseSignal signal={model.currentChanged}>
        {() => (
          <UseSignal signal={clock.ticked}>
            {() =>
              model.current ? (
                <UseSignal signal={model.current.changed}>
                  {() => this._item()}
                </UseSignal>
              ) : null
            }
          </UseSignal>
        )}
      </UseSignal>
    );
  }

  private _item(): JSX.Element | null {
    const { model, clock, trans, onClick } = this._options;
    const runtime = model.current;
    if (!runtime || runtime.state === 'off') {
      return null;
    }
    const icon = stateIcon(runtime.state);
    return (
      <button
        type="button"
        title={stateExplanation(runtime, clock.now, trans)}
        onClick={onClick}
      >
        <icon.react tag="span" />
        <span>{stateLabel(runtime, clock.now, trans)}</span>
      </button>
    );
  }
}

/** Namespace of {@link StatusItem}. */
export namespace StatusItem {
  /** What the item is made from. */
  export interface IOptions {
    model: IRuntimeCheckpoints;
    clock: Clock;
    trans: TranslationBundle;
    onClick: () => void;
  }
}
