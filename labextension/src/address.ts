import type { IRouter } from '@jupyterlab/application';
import { URLExt } from '@jupyterlab/coreutils';

/** Where pages of JupyterLab, of its simple mode and of Notebook 7 name the notebook that they open. */
const NOTEBOOK =
  /^\/?(?:(?:lab|doc)(?:\/workspaces\/[^/]+)?\/tree|notebooks)\/(.+)$/;

/** The path of the notebook that the page's address names; empty if it names none. */
export function notebookOf(location: IRouter.ILocation): string {
  const [, path = ''] = (location.path ?? '').match(NOTEBOOK) ?? [];
  return decodeURIComponent(path);
}

/** Whether the page's address asks for something, with `=1`. */
export function asks(location: IRouter.ILocation, name: string): boolean {
  return URLExt.queryStringToObject(location.search ?? '')[name] === '1';
}

/** Take a wish out of the page's address, so that a reload does not ask again. */
export function drop(name: string): void {
  const url = new URL(window.location.href);
  url.searchParams.delete(name);
  window.history.replaceState(window.history.state, '', url);
}
