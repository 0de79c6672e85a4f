/** This page's version; the server's should be the same. */
export const VERSION = '0.1.0';
