import { LabIcon } from '@jupyterlab/ui-components';

import type { NotebookState } from './tokens';

// A processor, for a kernel's state; what is inside tells how it is. `jp-icon3` follows the theme.
const CHIP =
  '<path class="jp-icon3" fill="#616161" fill-rule="evenodd" d="M5 1h1v2h4V1h1v2h1a1 1 0 0 1 1 1v1h2v1h-2v4h2v1h-2v1a1 1 0 0 1-1 1h-1v2h-1v-2H6v2H5v-2H4a1 1 0 0 1-1-1v-1H1v-1h2V6H1V5h2V4a1 1 0 0 1 1-1h1V1zM4 4v8h8V4H4z"/>';

function icon(name: string, inside: string): LabIcon {
  return new LabIcon({
    name: `jupyter-runtime-checkpoints:${name}`,
    svgstr: `<svg xmlns="http://www.w3.org/2000/svg" width="16" height="16" viewBox="0 0 16 16">${inside}</svg>`
  });
}

function chip(name: string, inside: string): LabIcon {
  return icon(name, `${CHIP}<g class="jp-icon3" fill="#616161">${inside}</g>`);
}

export const checkpointIcon = chip(
  'checkpoint',
  '<path d="M7.2 10.6 5.1 8.5l.8-.8 1.3 1.3 2.9-2.9.8.8z"/>'
);
const offIcon = chip('off', '<path d="M5.5 7.5h5v1h-5z"/>');
const onIcon = chip('on', '<circle cx="8" cy="8" r="1.6"/>');
const savingIcon = chip(
  'saving',
  '<path d="M7.5 5h1v3.4l1.3-1.3.7.7L8 10.4 5.5 7.8l.7-.7 1.3 1.3zM5.5 10.6h5v.9h-5z"/>'
);
const resumingIcon = chip('resuming', '<path d="M6.5 5.4v5.2L10.7 8z"/>');
const failedIcon = chip(
  'failed',
  '<path d="M7.4 5h1.2v3.6H7.4zM7.4 9.6h1.2v1.2H7.4z"/>'
);
export const asleepIcon = icon(
  'asleep',
  '<path class="jp-icon3" fill="#616161" d="M6.5 2.2a5 5 0 0 0 7.3 6.7A6 6 0 1 1 6.5 2.2z"/>'
);
export const pinIcon = icon(
  'pin',
  '<path class="jp-icon3" fill="#616161" d="m9.8 1.5 4.7 4.7-1.1.7-1-.2-2.3 2.3.2 2.7-1 1-2.9-2.9-3.7 3.7-.7-.7 3.7-3.7L2.800 6.2l1-1 2.7.2 2.3-2.3-.2-1z"/>'
);
export const verifiedIcon = icon(
  'verified',
  '<path class="jp-icon3" fill="#616161" d="M8 1 2.500 3v4.400c0 3.400 2.300 6.200 5.500 7.600 3.200-1.400 5.500-4.200 5.500-7.600V3zm-.9 10L4.300 8.200l1-1 1.800 1.800 3.700-3.700 1 1z"/>'
);
export const damagedIcon = icon(
  'damaged',
  '<path class="jp-icon-warn0" fill="#d84315" d="M8 1.500 1 14h14zm-.7 4.500h1.400v4H7.300zm0 5h1.400v1.400H7.300z"/>'
);

/** The icon of a notebook's state. */
export function stateIcon(state: NotebookState): LabIcon {
  switch (state) {
    case 'saved':
      return checkpointIcon;
    case 'on':
      return onIcon;
    case 'off':
      return offIcon;
    case 'saving':
      return savingIcon;
    case 'resuming':
      return resumingIcon;
    case 'asleep':
      return asleepIcon;
    default:
      return failedIcon;
  }
}
