// A terminal in the shape of a log, for output that a job has printed.
//
// It has no size: lines are as long as they were printed, and all of them are text of the page, so that the browser's
// own find, select, copy, print and screen reader work on them. What programs do to move about works on the last 100
// lines, the screen; what has scrolled off it never changes again.
//
//     const terminal = new Terminal(element, {onprogress: (progress) => …, ondraw: () => …, earlier: (count) => …});
//     terminal.write(text);
//     await terminal.drawn;
//
// Output is hostile until proven otherwise. It only ever becomes text, spans with classes of the list below, and links
// to http and https; what it can make us keep, or make the browser lay out, is bounded by constants.
//
// The element gets the class "terminal", and a div for each chunk of lines, in it one for each line: its property number
// says how many line feeds came before it. Classes of the spans, for terminal.css: bold
// dim italic underline strike inverse; fg0 … fg15 and bg0 … bg15, the sixteen colours; target, the host that a link really
// leads to. The div "earlier" says how much is no longer shown. All other colours are set through the CSSOM, which a
// content security policy without 'unsafe-inline' allows.
//
// This file is served without comments and indentation: a comment has its lines for itself, and no string spans two.
const Terminal = (() => {
  'use strict';

  const ROWS = 100;
  // The cursor is not moved further right than this; text may go on to MAX_WIDTH, then its line is split.
  const COLUMNS = 512;
  const MAX_WIDTH = 8192;
  // When the style has changed so often, the rest of the line is plain, and so are the lines that it is split into.
  const MAX_RUNS = 3000;
  const MAX_STRING = 8192;
  // A character has no more marks than this, for none takes the browser so long; further ones belong to a blank.
  const MAX_MARKS = 16;
  const MAX_ADDRESS = 2048;
  // Of styles, and of characters, how many are remembered.
  const MAX_KNOWN = 5000;

  // ------------------------------------------------------------------------------------------------------- characters

  // Text of which each UTF-16 unit is one column: most of what is ever printed.
  const NARROW = /^[ -~\xa0-\u02ff\u0370-\u0482\u048a-\u052f\u2010-\u2027\u2030-\u205e\u2190-\u2319\u2500-\u25fc\u2800-\u28ff]*$/;
  // No column: combining marks, joiners and variation selectors, the vowels and finals of Korean syllables.
  const ZERO = /[\p{Mn}\p{Me}\p{Cf}\u1160-\u11ff]/u;
  // Two columns: East Asian Wide, and emoji; a flag is two letters of one column each.
  const WIDE = /(?!\p{RI})[\p{EPres}\u1100-\u115f\u2329\u232a\u2e80-\u303e\u3041-\u3247\u3250-\ua4cf\ua960-\ua97f\uac00-\ud7a3\uf900-\ufaff\ufe10-\ufe19\ufe30-\ufe6f\uff01-\uff60\uffe0-\uffe6\u{16fe0}-\u{1b2ff}\u{1f200}-\u{1f265}\u{20000}-\u{3fffd}]/u;
  // Controls that turn the order of text about, and so can make it say what it does not: shown by their names.
  const BIDI = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/;

  // A character, or an emoji however joined, that a browser may take from another font, where it is wider or narrower.
  const FOREIGN = new RegExp(
    String.raw`(\p{RI}{2}|\p{ExtPict}(?:[\p{M}\p{Cf}\p{EMod}]|(?<=\u200d)\p{ExtPict})*|${WIDE.source}${ZERO.source}*)`, 'u');

  const widthOf = (character) => NARROW.test(character) ? 1 : ZERO.test(character) ? 0 : WIDE.test(character) ? 2 : 1;

  // ------------------------------------------------------------------------------------------------------------ styles

  // How text looks: a value. fg and bg are an index below 16 or a CSS colour, as text, or empty; link is an address or
  // empty; of the others most are 1 or 0. Equal looks are one object, so that styles are compared by identity. The last
  // two belong to those who make and draw it.
  const RESET = {fg: '', bg: '', bold: 0, dim: 0, italic: 0, underline: 0, strike: 0, inverse: ''};
  const PLAIN = {...RESET, link: '', key: '', look: null};
  const CHANGES = {
    0: RESET, 1: {bold: 1}, 2: {dim: 1}, 3: {italic: 1}, 4: {underline: 1}, 7: {inverse: 'inverse'},
    9: {strike: 1}, 21: {underline: 1}, 22: {bold: 0, dim: 0}, 23: {italic: 0}, 24: {underline: 0},
    '4:0': {underline: 0}, 27: {inverse: ''}, 29: {strike: 0}, 39: {fg: ''}, 49: {bg: ''},
  };
  // By the key of a style, and by the key of another and what was changed about it.
  const styles = new Map();

  // The style that a change makes of another; changesOf(change) is asked once.
  function changed(style, change, changesOf) {
    const path = `${style.key}\t${change}`;
    let made = styles.get(path);
    if (!made) {
      if (styles.size > MAX_KNOWN) styles.clear();
      const looks = {...style, ...changesOf(change), key: '', look: null};
      looks.key = Object.values(looks).join('\n');
      made = looks.key === PLAIN.key ? PLAIN : styles.get(looks.key) || looks;
      styles.set(looks.key, made).set(path, made);
    }
    return made;
  }
  PLAIN.key = Object.values(PLAIN).join('\n');

  // What "ESC [ parameters m" changes.
  function changesOf(parameters) {
    const changes = {};
    const codes = parameters.split(';');
    while (codes.length) {
      const [code, ...parts] = codes.shift().split(':');
      const ground = {3: 'fg', 4: 'bg', 9: 'fg', 10: 'bg'}[Math.floor(code / 10)];
      if (/^[345]8$/.test(code)) {
        // 38:2::r:g:b has a place for a colour space; 38;2;r;g;b is codes of their own.
        if (parts.length > 4) parts.splice(1, 1);
        const colour = colourOf(parts.length ? parts : codes.splice(0, codes[0] === '5' ? 2 : 4));
        if (ground && colour) changes[ground] = colour;
      } else if (ground && code % 10 < 8) {
        changes[ground] = `${code % 10 + (code < 90 ? 0 : 8)}`;
      } else Object.assign(changes, CHANGES[+code + (parts[0] === '0' ? ':0' : '')]);
    }
    return changes;
  }

  // Of [5, index] or [2, red, green, blue].
  function colourOf([kind, ...numbers]) {
    const [index] = numbers;
    if (numbers.some((number) => number > 255)) return '';
    if (kind === '2' && numbers.length === 3) return `rgb(${numbers.map(Number)})`;
    if (kind !== '5') return '';
    if (index < 16) return `${+index}`;
    if (index > 231) return `rgb(${Array(3).fill(index * 10 - 2312)})`;
    // A cube of six levels each way.
    return `rgb(${[36, 6, 1].map((step) => [0, 95, 135, 175, 215, 255][Math.floor((index - 16) / step) % 6])})`;
  }

  // ------------------------------------------------------------------------------------------------------------- lines

  const BLANK = {text: ' ', style: PLAIN};
  const blanks = (count) => Array(count).fill(BLANK);

  // As long as text is only added to its end, a line is pieces of text of one style. When something within it changes
  // it becomes cells, one for each column, until it is looked at.
  class Line {
    pieces = [];
    cells = null;
    // In columns.
    width = 0;
    // How many pieces it may have.
    most = MAX_RUNS;
    // Not in the page as it is now; not seen by who looks for progress; written over, as lines that show progress are.
    dirty = true;
    touched = true;
    rewritten = false;
    // What it is in the page, and how much; how many line feeds came before it.
    node = null;
    weight = 0;
    held = false;

    constructor(number) {
      this.number = number;
    }

    get text() {
      return this.pack().map((run) => run.text).join('');
    }

    write(column, text, width, style) {
      this.dirty = this.touched = true;
      if (column < this.width) return this.splice(column, width, cellsOf(text, style));
      if (column > this.width) this.add(' '.repeat(column - this.width), PLAIN);
      this.add(text, style);
      this.width = column + width;
    }

    add(text, style) {
      if (this.cells) return cellsOf(text, style, this.cells);
      const last = this.pieces.at(-1);
      if (this.pieces.length >= this.most) style = PLAIN;
      if (last?.style === style) last.text += text;
      else this.pieces.push({text, style});
    }

    // Add to the character before the column, if there is room.
    mark(column, mark) {
      this.write(Math.max(column, this.width), '', 0, PLAIN);
      return addMark(this.explode(), column, mark);
    }

    // Put other cells in the place of some. A character that is only partly among them leaves blanks.
    splice(column, count, put) {
      this.dirty = this.touched = this.rewritten = true;
      const cells = this.explode();
      for (const edge of [column, column + count]) {
        let at = edge;
        while (cells[at] === null) at--;
        while (at < edge || cells[at] === null) cells[at++] = BLANK;
      }
      cells.splice(column, count, ...put);
      while (cells.at(-1) === BLANK) cells.pop();
      this.width = cells.length;
    }

    erase(from, to = Infinity) {
      if (from < this.width) this.splice(from, to - from, to < this.width ? blanks(to - from) : []);
    }

    explode() {
      this.cells ??= this.pieces.reduce((cells, {text, style}) => cellsOf(text, style, cells), []);
      return this.cells;
    }

    pack() {
      const {cells} = this;
      if (cells) {
        this.pieces = [];
        this.cells = null;
        for (const cell of cells) if (cell) this.add(cell.text, cell.style);
      }
      return this.pieces;
    }
  }

  // Add a {text, style} for each column; null for further columns of the same character.
  function cellsOf(text, style, cells = []) {
    for (const character of text) {
      let width = character === '\t' ? 8 - cells.length % 8 : widthOf(character);
      if (!width && addMark(cells, cells.length, character)) continue;
      cells.push({text: character, style});
      while (--width > 0) cells.push(null);
    }
    return cells;
  }

  function addMark(cells, column, mark) {
    while (cells[--column] === null);
    const cell = cells[column];
    if (!cell || cell.text.length > MAX_MARKS) return false;
    cells[column] = {...cell, text: cell.text + mark};
    return true;
  }

  // ------------------------------------------------------------------------------------------------------------ screen

  const TEXT = /[^\x00-\x1f\x7f-\x9f]+/y;
  const CSI = /\x1b\[([\d:;]{0,256})([@-~])/y;
  const UNFINISHED = /\x1b(?:\[[0-?]{0,256}[ -/]{0,8}|[ -/]{0,8})$/y;
  // All other; and what is broken off by a character that cannot be part of it, which then counts.
  const ESCAPE = /\x1b(?:\[[0-?]{0,256}[ -/]{0,8}[@-~]?|[ -/]{0,8}[0-~]?)/y;
  const SCREENS = /^\x1b\[\?(?:\d*;)*(?:10)?4[79](?:;\d*)*[hl]$/;
  // A string ends with its line at the latest, so that none swallows all that follows.
  const STRING = /[^\x07\x18\x1a\x1b\r\n]*/y;

  // The lines that can still change, and a cursor among them. Knows nothing of a page.
  //
  // Lines that scroll off are given to onscrolled(line); progress that is reported by OSC 9;4 to onprogress(percent),
  // null if there is none. However the text is divided into writes, the effect is the same.
  function createScreen(onscrolled, onprogress) {
    // From the top down to the lowest that was ever written to.
    const lines = [];
    let scrolled = 0;
    let feeds = 0;
    let row, column, style, saved;
    // What stands on the screen was printed line by line, by nobody who places text on it; the cursor was just sent home;
    // the style that the other screen was entered with.
    let flows = true;
    let home = false;
    let other = null;
    // What the next write goes on with: half of a character or of an escape; the string that we are within.
    let rest = '';
    let string = null;

    function line() {
      while (lines.length <= row) lines.push(new Line(feeds));
      return lines[row];
    }

    function put(text, width) {
      const room = MAX_WIDTH - column;
      if (width > room) {
        const fits = NARROW.test(text) ? room : 0;
        put(text.slice(0, fits), fits);
        const most = line().most - line().pack().length;
        newline();
        line().most = most;
        return put(text.slice(fits), width - fits);
      }
      line().write(column, text, width, style);
      column += width;
      home = false;
    }

    function print(text) {
      if (NARROW.test(text)) return put(text, text.length);
      for (const character of text) {
        const width = widthOf(character);
        if (BIDI.test(character)) printName(character);
        else if (width || !column) put(character, width || 1);
        else if (!line().mark(column, character)) put(' ' + character, 1);
      }
    }

    function printName(character) {
      const before = style;
      style = changed(PLAIN, 'name', () => CHANGES[7]);
      print(`U+${character.charCodeAt().toString(16).toUpperCase().padStart(4, 0)}`);
      style = before;
    }

    // A tab is kept as one, for who copies the text, unless it only moves over what is there already.
    function tab() {
      const width = 8 - column % 8;
      if (column < line().width) column += width;
      else put('\t', width);
    }

    // LF is CR and LF: what was captured went through no terminal driver that makes it so.
    function newline() {
      column = 0;
      index();
    }

    function feed() {
      line();
      feeds++;
      newline();
    }

    function index() {
      if (row < ROWS - 1) row++;
      else if (line()) scroll(1, flows = true);
    }

    function scroll(count) {
      lines.splice(0, count).forEach(onscrolled);
      scrolled += count;
    }

    function move(toRow, toColumn) {
      row = Math.min(Math.max(toRow, 0), ROWS - 1);
      // Text may have gone further to the right than the cursor can be moved.
      column = Math.min(Math.max(toColumn, 0), Math.max(COLUMNS - 1, column));
    }

    // Clearing the screen, or writing over all of it, does not take away what was said: it scrolls off.
    function clear() {
      scroll(lines.findLastIndex((line) => line.width) + 1);
      flows = true;
    }

    // Who places text on the screen writes over their own again and again, but not over what was there before.
    function goTo(n, first, second) {
      move(n - 1, (second || 1) - 1);
      home = !row && !column;
      if (!home || !flows) return;
      clear();
      flows = false;
    }

    // Programs that fill the screen do so on another one; what they said stays too.
    function changeScreen(enters) {
      if (enters === !!other) return;
      clear();
      row = column = 0;
      [style, other] = enters ? [style, style] : [other, null];
    }

    function erase(mode) {
      if (mode === 2 || !mode && home && !row && !column) clear();
      if (mode > 1) return;
      eraseColumns(mode);
      for (const other of mode ? lines.slice(0, row) : lines.slice(row + 1)) other.erase(0);
    }

    const eraseColumns = (mode) => lines[row]?.erase(mode ? 0 : column, mode === 1 ? column + 1 : Infinity);

    function shift(removed, inserted) {
      const {width} = line();
      if (column >= width) return;
      line().splice(column, removed, blanks(inserted));
      line().erase(Math.max(width, COLUMNS));
    }

    // The place that is saved scrolls with the lines.
    const save = () => saved = {at: row + scrolled, column, style};

    function restore() {
      row = Math.max(saved.at - scrolled, 0);
      ({column, style} = saved);
    }

    function reset() {
      row = column = 0;
      style = PLAIN;
      save();
    }

    // By a control, an escape, or the last character of a control sequence, which gives its first parameter as a count
    // that is never 0, and both as they are.
    const ACTIONS = {
      '\n': feed, '\v': newline, '\f': newline, '\t': tab,
      '\r': () => column = 0,
      '\b': () => column = Math.max(column - 1, 0),
      '\x1b7': save, '\x1b8': restore, '\x1bD': index, '\x1bE': newline,
      '\x1bM': () => move(row - 1, column),
      '\x1bc': () => { clear(); reset(); },
      A: (n) => move(row - n, column),
      B: (n) => move(row + n, column),
      C: (n) => move(row, column + n),
      D: (n) => move(row, column - n),
      E: (n) => move(row + n, 0),
      F: (n) => move(row - n, 0),
      G: (n) => move(row, n - 1),
      H: goTo, f: goTo,
      J: (n, mode) => erase(mode),
      K: (n, mode) => eraseColumns(mode),
      P: (n) => shift(n, 0),
      X: (n) => lines[row]?.erase(column, column + n),
      d: (n) => move(n - 1, column),
      s: save, u: restore,
      '@': (n) => shift(0, Math.min(n, COLUMNS)),
    };

    // Of the operating system commands, links and progress count; all other strings were for nothing.
    function endString() {
      const [, link, state, percent] = /^](?:8;[^;]*;(.*)|9;4;(\d);?(\d*))/.exec(string) || [];
      if (link !== undefined) style = changed(style, `link ${link}`, () => ({link: address(link)}));
      if (state) onprogress(/[124]/.test(state) && percent ? Math.min(percent, 100) : null);
      string = null;
    }

    function write(text) {
      text = rest + text;
      rest = '';
      let at = 0;
      let found;
      const match = (pattern) => {
        pattern.lastIndex = at;
        found = pattern.exec(text);
        if (found) at = pattern.lastIndex;
        return found;
      };
      while (at < text.length) {
        if (string !== null) {
          match(STRING);
          string = (string + found[0]).slice(0, MAX_STRING);
          if (at < text.length) endString();
          if (text[at] === '\x07') at++;
        } else if (match(TEXT)) {
          if (at === text.length) rest = /[\ud800-\udbff]?$/.exec(text)[0];
          print(rest ? found[0].slice(0, -1) : found[0]);
        } else if (match(CSI)) {
          const [, parameters, final] = found;
          const [first, second] = parameters.split(';').map((number) => Math.min(parseInt(number) || 0, MAX_WIDTH));
          if (final === 'm') style = changed(style, parameters, changesOf);
          else ACTIONS[final]?.(first || 1, first, second);
        } else if (match(UNFINISHED)) rest = found[0];
        else {
          const [sequence] = match(ESCAPE) || text[at++];
          if (/^\x1b[\]PX^_]/.test(sequence)) string = sequence[1];
          else if (SCREENS.test(sequence)) changeScreen(sequence.endsWith('h'));
          else ACTIONS[sequence]?.();
        }
      }
    }

    reset();
    return {lines, write};
  }

  // An address that a link may lead to, or ''.
  function address(text) {
    return text.length <= MAX_ADDRESS && /^https?:\/\//i.test(text) && URL.canParse(text) ? new URL(text).href : '';
  }

  // ---------------------------------------------------------------------------------------------------------- progress

  // A bar; tqdm's own figure stands before one.
  const GLYPHS = /[\u2501\u2588-\u258f\u25a0\u25b0\u28ff]{2}/;
  const BAR = /\[([#=>*. -]{5,})\]/;
  const TQDM = /(\d{1,3})%\|(?:[#\u2580-\u259f]+\d? *|\d? +)(?:\||$)/;
  // A line printed once tells of progress only if it looks like it: by a bar, "[ 45%]" of pytest and CMake, "[3/7]" of ninja
  // and Docker at its start. In one that is written over and over any percentage or fraction does.
  const SHAPED = /\[ *\d{1,3}%\]|^\[ *\d+\/\d+\]/;
  const PERCENT = /(?<![\w.,]|(?<!\S)[-+])(?:(?:100|\d{1,2})(?:[.,]\d\d?|\.\d+)?[ \xa0\u202f]?(?:[%\uff05\u066a](?!\w)|percent|pct|prozent)|%(?:100|\d\d?)(?!\S))/i;
  // "12/345", "1.5/20.3 MB", "3 of 7"; not a date, a path, or different units.
  const NUMBER = String.raw`(\d[\d,]*(?:\.\d+)?)`;
  const FRACTION = new RegExp(String.raw`(?<![\w./,:-])${NUMBER} ?([a-z]*) ?(\/|of) ?${NUMBER}(?: ?([a-z]+))?(?![\w/:-])`, 'gi');
  // "11/28 10:00" is a date.
  const CLOCK = /^\]?,?(?: ?[a-z]{2,9}\.?,?)? ?(?:\d\d:\d\d|\d:\d\d ?[ap]m)/i;
  // What is not the job's progress is named, before it or behind it.
  const NAMES = String.raw`(?:[cg]pus?|mem(?:ory)?|v?ram|swap|disk|load|util\w*|usage|used|free|full|idle|\w*acc(?:uracy)?|loss|rate|iowait|heap|batt\w*|users?)`;
  const NAMED = new RegExp(String.raw`\b${NAMES}[ #]?\d{0,3}[^\w%]*$`, 'i');
  const NAMES_IT = new RegExp(String.raw`^ ?\(?(?:of )?(?:the )?${NAMES}\b`, 'i');

  function isNamed({0: match, index, input}) {
    return NAMED.test(input.slice(0, index)) || NAMES_IT.test(input.slice(index + match.length));
  }

  // Does a bar show as much as the figure beside it? What only looks like one does not.
  function agrees(bar, percent) {
    const filled = 100 * /^(.)\1*>?/.exec(bar)[0].length / bar.length;
    return Math.abs((/^[. -]/.test(bar) && percent < 50 ? 0 : filled) - percent) <= Math.max(15, 100 / bar.length);
  }

  // The percentage that a line shows, or null.
  function percentOf(line) {
    const text = line.text.slice(0, 1000);
    const tqdm = TQDM.exec(text);
    if (tqdm) return Math.min(tqdm[1], 100);
    const bar = BAR.exec(text);
    const barred = bar || GLYPHS.test(text);
    if (!line.rewritten && !barred && !SHAPED.test(text)) return null;
    const percent = PERCENT.exec(text);
    const shown = percent && !isNamed(percent)
      ? Math.min(parseFloat(percent[0].replace(/^%/, '').replace(',', '.')), 100) : fractionOf(text, barred);
    return shown !== null && !line.rewritten && bar && !agrees(bar[1], shown) ? null : shown;
  }

  function fractionOf(text, barred) {
    for (const found of text.matchAll(FRACTION)) {
      const [match, done, unit, slash, total, unitOfTotal] = found;
      const [part, all] = [done, total].map((number) => +number.replaceAll(',', ''));
      const isDate = slash === '/' && !barred && part < 32 && all < 32 && CLOCK.test(text.slice(found.index + match.length));
      if (all > 0 && part <= all && !isDate && !isNamed(found) && (!unit || unit === unitOfTotal)) return 100 * part / all;
    }
    return null;
  }

  // Returns a function that returns what the lines of a screen tell, by those that were touched since it was last asked:
  // {percent, text}, or null where nothing is known.
  function createGauge() {
    let progress = null;
    return (lines) => {
      const touched = lines.map((line) => line.touched && !(line.touched = false));
      if (!touched.includes(true)) return progress;
      const percents = lines.map(percentOf);
      let row = percents.findLastIndex((percent, index) => percent !== null && touched[index]);
      // Of bars below each other the first that is not at its end counts: nested ones have the outermost on top.
      for (let above = row - 1; (percents[above] ?? null) !== null; above--) if (percents[above] < 100) row = above;
      if (row >= 0) progress = {percent: percents[row], text: lines[row].text.trim().slice(0, 200)};
      // What goes on after the end of a bar is not at its end.
      else if (progress?.percent === 100) progress = null;
      return progress;
    };
  }

  // -------------------------------------------------------------------------------------------------------------- page

  // Of the chunks the browser lays out only those that are seen. This is about 100,000 lines of usual length.
  const MAX_CHUNKS = 400;
  const PIECE = 8192;
  const FRAME_MS = 20;
  const LOOK_MS = 100;

  const URLS = /(https?:\/\/[^\s<>"'`{}|\\^]*[^\s<>"'`{}|\\^.,:;!?)\]])/i;
  // What a reader takes for the name of a host.
  const HOST = /[\p{L}\p{N}][\p{L}\p{N}-]*(?:\.[\p{L}\p{N}-]+)*\.\p{L}{2,}/giu;

  // How a page draws characters, as far as it was asked.
  const spacings = new Map();
  let pen;

  const make = (name, properties) => Object.assign(document.createElement(name), properties);

  const hostOf = (href) => address(href) && new URL(href).host;

  // Does the text of a link name another host than it leads to?
  function misleads(text, href) {
    if (address(text)) return hostOf(text) !== hostOf(href);
    return text.length > 256 || text.match(HOST)?.some((name) => hostOf(`http://${name}`) !== hostOf(href));
  }

  // A span that looks like it.
  function lookOf(style) {
    const {fg, bg, inverse} = style;
    const look = make('span');
    const names = Object.keys(style).filter((name) => style[name] === 1);
    const paint = (ground, property, colour) => {
      if (/^\d/.test(colour)) names.push(ground + colour);
      else look.style.setProperty(property, colour);
    };
    paint('fg', 'color', inverse ? bg : fg);
    paint('bg', 'background', inverse ? fg : bg);
    // The sixteen are legible on the page; any other colour changes places with the page's own.
    if (!/\d/.test(names)) names.push(inverse);
    look.className = names.join(' ').trim();
    return look;
  }

  // Does something in the line stand below what is in others, behind wide characters? No table is wider than the screen.
  function hasColumns(line) {
    if (line.width > COLUMNS || line.pieces.every(({text}) => NARROW.test(text))) return false;
    const {text} = line;
    return /[|\u2500-\u259f\t]|  +[^ ]/.test(text.slice(text.search(FOREIGN)));
  }

  // What has to be added to a glyph for it to take as much room as its columns do.
  function spacingOf(glyph) {
    if (!pen) {
      pen = make('canvas').getContext('2d');
      pen.font = `100px ${getComputedStyle(document.querySelector('.terminal')).fontFamily}`;
    }
    if (!spacings.has(glyph)) {
      if (spacings.size > MAX_KNOWN) spacings.clear();
      const room = cellsOf(glyph).length * pen.measureText('0').width - pen.measureText(glyph).width;
      spacings.set(glyph, `letter-spacing: ${(room / 100).toFixed(4)}em`);
    }
    return spacings.get(glyph);
  }

  // Text, with spans for what has to be held to its columns. It stays inline text, or the browser would find nothing in it.
  function held(text) {
    const parts = [];
    let style;
    text.split(FOREIGN).forEach((part, odd) => {
      if (!part) return;
      const before = style;
      style = odd % 2 ? spacingOf(part) : '';
      if (style && style === before) parts.at(-1).textContent += part;
      else parts.push(style ? make('span', {style, textContent: part}) : part);
    });
    return parts;
  }

  function styled({text, style}, hold) {
    const parts = hold ? held(text) : [text];
    if (style === PLAIN) return parts;
    style.look ??= lookOf(style);
    const look = style.look.cloneNode();
    look.append(...parts);
    return [look];
  }

  function linked(pieces, href, hold) {
    const link = make('a', {href, target: '_blank', rel: 'noopener noreferrer nofollow'});
    link.append(...pieces.flatMap((run) => styled(run, hold)));
    return misleads(link.text, href) ? [link, make('span', {className: 'target', textContent: ` [→ ${hostOf(href)}]`})] : [link];
  }

  // Addresses in the text become links.
  function autolinked({text, style}, hold) {
    if (!text.includes('://')) return styled({text, style}, hold);
    return text.split(URLS).flatMap((part, odd) => {
      const run = {text: part, style};
      return odd % 2 && address(part) ? linked([run], part, hold) : styled(run, hold);
    });
  }

  function nodesOf(line) {
    const pieces = line.pack();
    const hold = line.held = hasColumns(line);
    const parts = [];
    for (let end, at = 0; at < pieces.length; at = end) {
      const {link} = pieces[at].style;
      end = at + 1;
      while (link && pieces[end]?.style.link === link) end++;
      parts.push(...(link ? linked(pieces.slice(at, end), link, hold) : autolinked(pieces[at], hold)));
    }
    if (typeof parts.at(-1) === 'string') parts.push(parts.pop() + '\n');
    else parts.push('\n');
    return parts.filter((part) => part).map((part) => part.nodeType ? part : new Text(part));
  }

  // onprogress({percent, text}) is called as the output tells of progress, onprogress(null) when it no longer does;
  // ondraw() after each change of the page; earlier(count) returns the words for lines that are no longer shown.
  function Terminal(element, {onprogress, ondraw, earlier = (count) => `⋯ ${count}`} = {}) {
    const {port1, port2} = new MessageChannel();
    let queue, screen, gauge, reported, chunks, dropped, splits;
    let told = null;
    let scheduled = false;
    let looking = 0;
    let drawn = Promise.resolve();
    let resolve;

    function write(text) {
      if (!text) return;
      for (let at = 0; at < text.length; at += PIECE) queue.push(text.slice(at, at + PIECE));
      if (!resolve) drawn = new Promise((done) => resolve = done);
      schedule();
    }

    function clear() {
      queue = [];
      chunks = [];
      dropped = splits = 0;
      reported = null;
      gauge = createGauge();
      screen = createScreen(settle, (percent) => reported = percent);
      element.replaceChildren();
      tell(null);
    }

    // A hidden page gets no animation frames, and only slow timers; messages come at once.
    function schedule() {
      if (scheduled) return;
      scheduled = true;
      if (document.hidden) port2.postMessage(0);
      else requestAnimationFrame(work);
    }

    function work() {
      if (!scheduled) return;
      scheduled = false;
      const begun = performance.now();
      // Some of the time is left for the screen, or no bar would move while much is written.
      while (queue.length && performance.now() < begun + FRAME_MS * 0.7) screen.write(queue.shift());
      const complete = drawScreen(begun + FRAME_MS);
      ondraw?.();
      look();
      if (queue.length || !complete) return schedule();
      resolve();
      resolve = null;
    }

    // Add a line to the last chunk, if that is not full.
    function place(line) {
      let last = chunks.at(-1);
      if (!last || last.lines >= 250 || last.weight >= 65536) {
        if (chunks.length - splits >= MAX_CHUNKS) drop();
        last = {div: make('div'), first: line.number, lines: 0, weight: 0};
        chunks.push(last);
        element.append(last.div);
      }
      line.node = make('div');
      line.node.number = line.number;
      last.div.append(line.node);
      last.lines++;
    }

    // Many at once: what is seen may move, and is laid out again.
    function drop() {
      if (!dropped) element.prepend(make('div', {className: 'earlier'}));
      for (const {div, lines} of chunks.splice(0, chunks.length / 4)) {
        div.remove();
        dropped += lines;
      }
      splits = Math.max(0, chunks.length - MAX_CHUNKS * 3 / 4);
      element.firstChild.textContent = earlier(dropped);
    }

    const holding = (number) => chunks.findLastIndex(({first}) => first <= number);

    // Have a chunk begin with the line of this number, or with the first one behind it, and return it, if it is there.
    function split(number) {
      const at = holding(number);
      const chunk = chunks[at];
      const moved = [...(chunk?.div.children ?? [])].filter((node) => node.number >= number);
      if (!moved.length || moved[0] === chunk.div.firstChild) return moved.length ? chunk : chunks[at + 1];
      const share = moved.length / chunk.lines;
      const rest = {div: make('div'), first: moved[0].number, lines: moved.length, weight: chunk.weight * share};
      rest.div.append(...moved);
      chunk.lines -= rest.lines;
      chunk.weight -= rest.weight;
      chunk.div.after(rest.div);
      chunks.splice(at + 1, 0, rest);
      splits++;
      return rest;
    }

    // A line leaves the screen: see to it that it is drawn as it is now.
    function settle(line) {
      if (line.dirty) draw(line);
      line.node = null;
    }

    function drawScreen(deadline) {
      const end = screen.lines.findLastIndex((line) => line.width) + 1;
      screen.lines.slice(end).forEach(undraw);
      for (const line of screen.lines.slice(0, end)) {
        // A long line is not drawn again and again while there is more to come.
        if (!line.dirty || queue.length && line.weight > MAX_WIDTH) continue;
        draw(line);
        if (performance.now() > deadline) return false;
      }
      return true;
    }

    // Draw a line in its place: where it is already, or after all others.
    function draw(line) {
      const made = nodesOf(line);
      line.dirty = false;
      if (!line.node) place(line);
      if (made.length === 1 && line.node.childNodes.length === 1) line.node.firstChild.data = made[0].data;
      else line.node.replaceChildren(...made);
      // How much is in a chunk, roughly: a change of style, or of the font, weighs as much as some characters.
      const weight = line.pieces.reduce((sum, run) => sum + run.text.length + 20, line.held ? 10 * line.width : 0);
      chunks.at(-1).weight += weight - line.weight;
      line.weight = weight;
    }

    function undraw(line) {
      line.node?.remove();
      line.node = null;
      line.dirty = true;
    }

    function look() {
      looking ||= setTimeout(() => {
        looking = 0;
        const progress = gauge(screen.lines);
        tell(reported === null ? progress : {percent: reported, text: ''});
      }, LOOK_MS);
    }

    function tell(progress) {
      if (JSON.stringify(progress) === JSON.stringify(told)) return;
      told = progress;
      onprogress?.(progress);
    }

    element.classList.add('terminal');
    port1.onmessage = work;
    document.addEventListener('visibilitychange', work);
    clear();
    return {
      write,
      clear,
      // A promise: all that was written so far is in the page.
      get drawn() {
        return drawn;
      },
      get chunks() {
        return chunks;
      },
      split,
      // The element of the line of this number, or of the first one behind it.
      line: (number) => [...(chunks[holding(number)]?.div.children ?? [])].find((node) => node.number >= number),
      // The lines that are in the page, joined by line feeds.
      text: () => chunks.map(({div}) => div.textContent).join('').replace(/\n$/, ''),
    };
  }

  return Object.assign(Terminal, {createScreen, createGauge, widthOf});
})();
if (typeof module === 'object') module.exports = Terminal;
