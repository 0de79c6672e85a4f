import { nullTranslator } from '@jupyterlab/translation';

import {
  agoText,
  freshestMoment,
  sizeText,
  sizesText,
  titleText
} from '../wording';
import { checkpoint } from './checkpoints';

const trans = nullTranslator.load('jupyter_runtime_checkpoints');

describe('sizeText', () => {
  it.each([
    [0, '0 B'],
    [999, '999 B'],
    [1000, '1.0 kB'],
    [37_060_000, '37.1 MB'],
    [999_700, '1.0 MB'],
    [4_294_967_296, '4.3 GB'],
    [123_456_789_000, '123 GB']
  ])('%d bytes', (bytes, text) => {
    expect(sizeText(bytes)).toBe(text);
  });
});

describe('sizesText', () => {
  it('tells what others hold as well, if they do', () => {
    const alone = checkpoint({ held: 37_000_000, shared: 0 });
    expect(sizesText(alone, trans)).toBe(
      '37.0 MB on the disk, shared with no other'
    );
    const together = checkpoint({ held: 37_000_000, shared: 30_000_000 });
    expect(sizesText(together, trans)).toBe(
      '37.0 MB on the disk, 30.0 MB of it shared with other checkpoints'
    );
  });
});

describe('agoText', () => {
  const moment = '2026-11-24T14:00:00.000+00:00';
  const at = (minutes: number) => Date.parse(moment) + minutes * 60000;
  it.each([
    [-5, 'just now'],
    [0.9, 'just now'],
    [2, '2 min ago'],
    [59.9, '59 min ago'],
    [61, '1 h ago'],
    [60 * 49, '2 d ago']
  ])('after %d minutes', (minutes, text) => {
    expect(agoText(moment, at(minutes), trans)).toBe(text);
  });
});

describe('titleText', () => {
  it('is the name, if there is one', () => {
    expect(titleText(checkpoint({ name: 'mine' }), 0)).toBe('mine');
    expect(titleText(checkpoint({}), 0)).toMatch(/Nov|11/);
  });
});

describe('freshestMoment', () => {
  it('is when nothing had changed still', () => {
    const touched = '2026-11-24T15:00:00.000+00:00';
    expect(freshestMoment(checkpoint({ touched }))).toBe(touched);
    expect(freshestMoment(checkpoint({}))).toBe(checkpoint({}).created);
  });
});
