// Draws the same output with our terminal and with @xterm/headless, and describes what came of it.
//
// Reads a JSON array of [pieces, wanted, options] from standard input: the output in pieces; "ours" or "reference" for its
// lines, "progress" for what it tells of progress after each piece. Writes a JSON array of that. For the word "widths" it
// writes about which characters of Unicode we differ.
'use strict';
const Terminal = require('../../../bgmiddleware/_serving/static/terminal.js');

const FLAGS = ['bold', 'dim', 'italic', 'underline', 'strike', 'inverse'];

// A line as text, in which ⟦…⟧ tells of a change of look; the look of blanks is nobody's business.
function described(cells) {
  let line = '';
  let last = '';
  for (const [text, look] of cells) {
    if (text.trim() && look !== last) line += `⟦${last = look}⟧`;
    line += text;
  }
  return line.trimEnd();
}

function trimmed(lines) {
  while (lines.length && !lines.at(-1)) lines.pop();
  return lines;
}

function describedLine(line) {
  const cells = [];
  let column = 0;
  for (const {text, style} of line.pack()) {
    const look = [style.fg, style.bg, ...FLAGS.filter((flag) => style[flag])].join(' ').trim();
    for (const character of text) {
      const tab = character === '\t' ? 8 - column % 8 : 0;
      column += tab || Terminal.widthOf(character);
      cells.push([tab ? ' '.repeat(tab) : character, look]);
    }
  }
  return described(cells);
}

function ours(pieces, {raw = false}) {
  const read = raw ? (line) => line.text : describedLine;
  const lines = [];
  const screen = Terminal.createScreen((line) => lines.push(read(line)), () => {});
  for (const piece of pieces) screen.write(piece);
  return trimmed([...lines, ...screen.lines.map(read)]);
}

function reference(pieces, options) {
  const {Terminal: Reference} = require('@xterm/headless');
  const {Unicode11Addon} = require('@xterm/addon-unicode11');
  const terminal = new Reference({
    cols: 512, rows: 100, scrollback: 200_000, convertEol: true, scrollOnEraseInDisplay: true, allowProposedApi: true,
    ...options,
  });
  terminal.loadAddon(new Unicode11Addon());
  terminal.unicode.activeVersion = '11';
  for (const piece of pieces) terminal.write(piece);
  return new Promise((resolve) => terminal.write('', () => resolve(linesOf(terminal.buffer.active, options))));
}

function linesOf(buffer, {raw = false}) {
  const lines = [];
  for (let row = 0; row < buffer.length; row++) {
    const line = buffer.getLine(row);
    const cells = [];
    for (let column = 0; column < line.length; column++) {
      const cell = line.getCell(column);
      if (cell.getWidth()) cells.push([cell.getChars() || ' ', raw ? '' : lookOf(cell)]);
    }
    if (line.isWrapped) lines.push(lines.pop() + described(cells));
    else lines.push(described(cells));
  }
  return trimmed(lines);
}

function lookOf(cell) {
  const fg = colour(cell.isFgDefault(), cell.isFgPalette(), cell.getFgColor());
  const bg = colour(cell.isBgDefault(), cell.isBgPalette(), cell.getBgColor());
  const is = {
    bold: cell.isBold(), dim: cell.isDim(), italic: cell.isItalic(), underline: cell.isUnderline(),
    strike: cell.isStrikethrough(), inverse: cell.isInverse(),
  };
  return [fg, bg, ...FLAGS.filter((flag) => is[flag])].join(' ').trim();
}

function colour(isDefault, isPalette, value) {
  if (isDefault) return '';
  if (!isPalette) return `rgb(${value >> 16},${value >> 8 & 255},${value & 255})`;
  if (value < 16) return `${value}`;
  if (value > 231) return `rgb(${Array(3).fill(8 + 10 * (value - 232))})`;
  const levels = [0, 95, 135, 175, 215, 255];
  const index = value - 16;
  return `rgb(${levels[index / 36 | 0]},${levels[(index / 6 | 0) % 6]},${levels[index % 6]})`;
}

// [percentage in the lines, percentage reported] after each piece.
function progress(pieces) {
  let reported = null;
  const screen = Terminal.createScreen(() => {}, (percent) => { reported = percent; });
  const gauge = Terminal.createGauge();
  return pieces.map((piece) => {
    screen.write(piece);
    return [gauge(screen.lines), reported];
  });
}

// [code point, our width, theirs] for each character about which we differ.
function differingWidths() {
  const {Unicode11Addon} = require('@xterm/addon-unicode11');
  let theirs;
  new Unicode11Addon().activate({unicode: {register: (provider) => { theirs = provider; }}});
  const differing = [];
  for (let code = 0xa0; code < 0x110000; code++) {
    const character = String.fromCodePoint(code);
    if (/[\p{Cs}\p{Cn}]/u.test(character)) continue;
    const widths = [Terminal.widthOf(character), theirs.wcwidth(code)];
    if (widths[0] !== widths[1]) differing.push([code, ...widths]);
  }
  return differing;
}

async function main() {
  const jobs = JSON.parse(require('fs').readFileSync(0, 'utf8'));
  if (jobs === 'widths') return differingWidths();
  const results = [];
  for (const [pieces, wanted, options] of jobs) results.push(await {ours, reference, progress}[wanted](pieces, options));
  return results;
}

main().then((results) => process.stdout.write(JSON.stringify(results)));
