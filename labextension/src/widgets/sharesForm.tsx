import type { Dialog } from '@jupyterlab/apputils';
import type { TranslationBundle } from '@jupyterlab/translation';
import { ReactWidget } from '@jupyterlab/ui-components';

import * as React from 'react';

import type { IShares } from '../request';

const EVERYONE = '*';

/** A dialog's body that asks with whom a checkpoint is to be shared. */
export class SharesForm
  extends ReactWidget
  implements Dialog.IBodyWidget<string[]>
{
  constructor(
    private readonly _shares: IShares,
    private readonly _trans: TranslationBundle
  ) {
    super();
    this.addClass('jp-RuntimeCheckpoints-shares');
  }

  /** Numbers and names of those it is to be shared with; `*` for everybody. */
  getValue(): string[] {
    const form = this.node.querySelector('form');
    const fields = form ? new FormData(form) : new FormData();
    const added = String(fields.get('added') ?? '').trim();
    return [...fields.getAll('user').map(String), ...(added ? [added] : [])];
  }

  protected render(): JSX.Element {
    const { shares, warning } = this._shares;
    const trans = this._trans;
    const users = shares.filter(({ user }) => user !== EVERYONE);
    return (
      <form onSubmit={event => event.preventDefault()}>
        <p>
          {trans.__(
            'They can make a notebook of their own that goes on from here. It stays yours, and as it is.'
          )}
        </p>
        <p role="note">{warning}</p>
        <fieldset>
          <legend>{trans.__('Shared with')}</legend>
          <label>
            <input
              type="checkbox"
              name="user"
              value={EVERYONE}
              defaultChecked={users.length < shares.length}
            />
            {trans.__('Everyone on this host who has runtime checkpoints')}
          </label>
          {users.map(({ user, name }) => (
            <label key={user}>
              <input type="checkbox" name="user" value={user} defaultChecked />
              {name}
            </label>
          ))}
          <label>
            {trans.__('And with')}
            <input
              type="text"
              name="added"
              className="jp-mod-styled"
              autoComplete="off"
              placeholder={trans.__('name of a user of this host')}
            />
          </label>
        </fieldset>
      </form>
    );
  }
}
