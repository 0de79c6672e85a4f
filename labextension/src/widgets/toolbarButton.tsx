import type { TranslationBundle } from '@jupyterlab/translation';
import {
  ReactWidget,
  ToolbarButtonComponent,
  UseSignal,
  caretDownIcon
} from '@jupyterlab/ui-components';

import type { Menu } from '@lumino/widgets';
import * as React from 'react';

import type { Clock } from '../clock';
import { stateIcon } from '../icons';
import type { INotebookRuntime } from '../tokens';
import { stateExplanation, stateLabel } from '../wording';

/** A notebook's button: shows the state, saves on a click, and has a menu beside it. */
export class CheckpointButton extends ReactWidget {
  constructor(private readonly _options: CheckpointButton.IOptions) {
    super();
    this.addClass('jp-RuntimeCheckpoints-button');
  }

  protected render(): JSX.Element {
    const { runtime, clock, trans, onClick } = this._options;
    return (
      <UseSignal signal={clock.ticked}>
        {() => (
          <UseSignal signal={runtime.changed}>
            {() => {
              const label = stateLabel(runtime, clock.now, trans, true);
              const explanation = stateExplanation(runtime, clock.now, trans);
              return (
                <div
                  className="jp-RuntimeCheckpoints-split"
                  role="group"
                  aria-label={trans.__('Runtime checkpoints')}
                >
                  <ToolbarButtonComponent
                    className={`jp-RuntimeCheckpoints-state jp-mod-${runtime.state}`}
                    icon={stateIcon(runtime.state)}
                    label={label}
                    tooltip={explanation}
                    dataset={{ 'data-state': runtime.state }}
                    onClick={onClick}
                    noFocusOnClick
                  />
                  <ToolbarButtonComponent
                    className="jp-RuntimeCheckpoints-menuButton"
                    icon={caretDownIcon}
                    tooltip={trans.__('Runtime checkpoints: more')}
                    aria-haspopup="menu"
                    onClick={this._openMenu}
                    noFocusOnClick
                  />
                </div>
              );
            }}
          </UseSignal>
        )}
      </UseSignal>
    );
  }

  private readonly _openMenu = (): void => {
    const { left, bottom } = this.node.getBoundingClientRect();
    this._options.menu().open(left, bottom);
  };
}

/** Namespace of {@link CheckpointButton}. */
export namespace CheckpointButton {
  /** What the button is made from. */
  export interface IOptions {
    runtime: INotebookRuntime;
    clock: Clock;
    trans: TranslationBundle;
    onClick: () => void;
    menu: () => Menu;
  }
}
