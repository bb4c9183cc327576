// A terminal in the shape of a log, for output that a job has printed.
//
// It has no size: lines are as long as they were printed, and all of them are kept as text of the page, so that the
// browser's own find, select, copy, print and screen reader work on them. What programs do to move about works on the
// last 100 lines, its screen; what has scrolled off the screen is never changed again.
//
//     const terminal = new Terminal(element, {onprogress: ({percent, text}) => …});
//     terminal.write(text);
//     await terminal.drawn;
//
// Output is hostile until proven otherwise. It only ever becomes text nodes, spans with classes of the list below, and
// links to http and https; what it can make us keep, or make the browser lay out, is bounded by the constants below.
//
// Classes, for terminal.css: bold dim italic underline inverse strike; fg0 … fg15 and bg0 … bg15, the sixteen colours;
// target, the host that a link really leads to; earlier, the line that says how much is no longer shown. All other
// colours are set through the CSSOM, which a content security policy without 'unsafe-inline' allows. The element itself
// gets the class terminal; its children are the chunks.
//
// The file is served without its comments and its indentation: a comment has its lines for itself, no string spans two.
const Terminal = (() => {
  'use strict';

  const ROWS = 100;
  // The cursor is not moved further right than this; text may go on to MAX_WIDTH columns, then a line is split.
  const COLUMNS = 512;
  const MAX_WIDTH = 8192;
  // A line has no more changes of style than this: the rest of it is plain.
  const MAX_RUNS = 3000;
  const MAX_ADDRESS = 2048;

  // ------------------------------------------------------------------------------------------------------- characters

  // Text of which each UTF-16 unit is one column: most of what is ever printed.
  const NARROW = /^[ -~\xa0-\u02ff\u0370-\u0482\u048a-\u052f\u2010-\u2027\u2030-\u205e\u2190-\u2319\u2500-\u25fc\u2800-\u28ff]*$/;
  // No room of its own: combining marks, joiners and variation selectors, the vowels and finals of Korean syllables.
  const ZERO = /[\p{Mn}\p{Me}\p{Cf}\u1160-\u11ff]/u;
  // Two columns: what Unicode calls East Asian Wide, and emoji; a flag is two letters of one column each.
  const WIDE = /(?![\u{1f1e6}-\u{1f1ff}])[\p{Emoji_Presentation}\u1100-\u115f\u2329\u232a\u2e80-\u303e\u3041-\u3247\u3250-\ua4cf\ua960-\ua97f\uac00-\ud7a3\uf900-\ufaff\ufe10-\ufe19\ufe30-\ufe6f\uff01-\uff60\uffe0-\uffe6\u{16fe0}-\u{1b2ff}\u{1f200}-\u{1f265}\u{1f300}-\u{1f320}\u{20000}-\u{3fffd}]/u;
  // Controls that turn the order of text about, and so can make it say what it does not. They are shown by their names.
  const BIDI = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/;

  function widthOf(character) {
    if (character < '\x7f' || NARROW.test(character)) return 1;
    return WIDE.test(character) ? 2 : ZERO.test(character) && character !== '\xad' ? 0 : 1;
  }

  // ------------------------------------------------------------------------------------------------------------ styles

  // How a run of text looks; a value. Equal looks are one object (as long as there are not too many of them), so that
  // runs can be compared and joined cheaply; each remembers what it became by which parameters of SGR.
  class Style {
    constructor(looks) {
      this.looks = looks;
      this.next = new Map();
    }

    with(changes) {
      const looks = {...this.looks, ...changes};
      const key = Object.values(looks).join('|');
      if (!Style.known.has(key)) {
        if (Style.known.size > 4096) Style.known = new Map([[Style.plainKey, PLAIN]]);
        Style.known.set(key, new Style(looks));
      }
      return Style.known.get(key);
    }

    // The style after "ESC [ parameters m".
    after(parameters) {
      let style = this.next.get(parameters);
      if (!style) {
        if (this.next.size > 256) this.next.clear();
        style = this.with(changesBy(parameters));
        this.next.set(parameters, style);
      }
      return style;
    }
  }

  // fg and bg: a number below 16, a CSS colour, or null; link: an address, or ''.
  const RESET = {fg: null, bg: null, bold: false, dim: false, italic: false, underline: false, inverse: false, strike: false};
  const PLAIN = new Style({...RESET, link: ''});
  Style.plainKey = Object.values(PLAIN.looks).join('|');
  Style.known = new Map([[Style.plainKey, PLAIN]]);

  const ATTRIBUTES = {
    0: RESET, 1: {bold: true}, 2: {dim: true}, 3: {italic: true}, 4: {underline: true}, 7: {inverse: true},
    9: {strike: true}, 21: {underline: true}, 22: {bold: false, dim: false}, 23: {italic: false},
    24: {underline: false}, 27: {inverse: false}, 29: {strike: false}, 39: {fg: null}, 49: {bg: null},
  };

  function changesBy(parameters) {
    const changes = {};
    const codes = parameters.split(';');
    while (codes.length) {
      const [code, ...parts] = codes.shift().split(':').map(Number);
      if (code === 38 || code === 48 || code === 58) {
        const colour = parts.length ? colourOfParts(parts) : colourOfCodes(codes);
        if (code !== 58 && colour !== null) changes[code === 38 ? 'fg' : 'bg'] = colour;
      } else if (code === 4 && parts[0] === 0) changes.underline = false;
      else if (code >= 30 && code < 38) changes.fg = code - 30;
      else if (code >= 40 && code < 48) changes.bg = code - 40;
      else if (code >= 90 && code < 98) changes.fg = code - 82;
      else if (code >= 100 && code < 108) changes.bg = code - 92;
      else Object.assign(changes, ATTRIBUTES[code]);
    }
    return changes;
  }

  // 38;5;n and 38;2;r;g;b: the parts are codes of their own, taken off the list.
  function colourOfCodes(codes) {
    const kind = Number(codes.shift());
    return colourOf(kind, codes.splice(0, kind === 5 ? 1 : kind === 2 ? 3 : 0).map(Number));
  }

  // 38:5:n, 38:2:r:g:b, and with the colour space that nobody names, 38:2::r:g:b.
  function colourOfParts([kind, ...parts]) {
    return colourOf(kind, kind === 2 && parts.length > 3 ? parts.slice(1, 4) : parts);
  }

  function colourOf(kind, numbers) {
    if (numbers.some((number) => !(number <= 255))) return null;
    const [index, green, blue] = numbers;
    if (kind === 2) return numbers.length === 3 ? `rgb(${index},${green},${blue})` : null;
    if (kind !== 5 || !numbers.length) return null;
    if (index < 16) return index;
    if (index > 231) return `rgb(${Array(3).fill(index * 10 - 2312)})`;
    // A cube of six steps each way.
    return `rgb(${[36, 6, 1].map((step) => Math.floor((index - 16) / step) % 6).map((level) => level && level * 40 + 55)})`;
  }

  // ------------------------------------------------------------------------------------------------------------- lines

  const BLANK = {text: ' ', style: PLAIN};

  // A line is runs of text of one style, as long as text is only added at its end; it becomes cells, one for a column,
  // when something within it is changed, and runs again when it is looked at.
  class Line {
    constructor() {
      this.runs = [];
      this.cells = null;
      // In columns, and in UTF-16 units: marks take no column, and a line may have too many of them all the same.
      this.width = 0;
      this.units = 0;
      // For who draws: has it changed since it was drawn? For who looks for progress: since that one last looked? Was
      // text in it ever written over? By such lines programs show progress.
      this.dirty = true;
      this.touched = true;
      this.rewritten = false;
      this.nodes = null;
    }

    get text() {
      return this.pack().map((run) => run.text).join('');
    }

    write(column, text, width, style) {
      this.dirty = this.touched = true;
      if (column < this.width) {
        this.rewritten = true;
        if (column > 0 || width < this.width) return this.overwrite(column, text, width, style);
        this.clear();
      }
      this.pad(column);
      this.add(text, style);
      this.width += width;
    }

    pad(column) {
      if (column <= this.width) return;
      this.add(' '.repeat(column - this.width), PLAIN);
      this.width = column;
    }

    add(text, style) {
      if (this.cells) return addCells(this.cells, text, style);
      const last = this.runs[this.runs.length - 1];
      if (this.runs.length >= MAX_RUNS) style = PLAIN;
      if (last && last.style === style) last.text += text;
      else this.runs.push({text, style});
      this.units += text.length;
    }

    // A mark belongs to the character before it.
    mark(column, mark) {
      this.dirty = true;
      this.pad(column);
      if (column < this.width) this.explode();
      if (this.cells) addMark(this.cells, column, mark);
      else this.runs[this.runs.length - 1].text += mark;
      this.units += mark.length;
    }

    overwrite(column, text, width, style) {
      const cells = this.explode();
      this.part(column);
      this.part(column + width);
      cells.splice(column, width, ...addCells([], text, style));
      this.width = cells.length;
    }

    erase(from, to) {
      if (from >= this.width || from >= to) return;
      this.dirty = this.touched = this.rewritten = true;
      if (from === 0 && to >= this.width) return this.clear();
      const cells = this.explode();
      this.part(from);
      this.part(to);
      if (to < this.width) cells.fill(BLANK, from, to);
      else cells.length = this.width = from;
    }

    insert(column, count) {
      if (column >= this.width) return;
      this.dirty = true;
      const cells = this.explode();
      const limit = Math.max(COLUMNS, this.width);
      this.part(column);
      cells.splice(column, 0, ...Array(count).fill(BLANK));
      this.part(limit);
      cells.length = this.width = Math.min(cells.length, limit);
    }

    remove(column, count) {
      if (column >= this.width) return;
      this.dirty = true;
      const cells = this.explode();
      this.part(column);
      this.part(column + count);
      cells.splice(column, count);
      this.width = cells.length;
    }

    clear() {
      this.runs = [];
      this.cells = null;
      this.width = this.units = 0;
      this.dirty = true;
    }

    // Take over the content of another line, and leave that one empty.
    take(other) {
      [this.runs, this.cells, this.width, this.units] = [other.runs, other.cells, other.width, other.units];
      other.clear();
      this.dirty = true;
      return this;
    }

    explode() {
      if (!this.cells) {
        this.cells = [];
        for (const {text, style} of this.runs) addCells(this.cells, text, style);
      }
      return this.cells;
    }

    pack() {
      if (!this.cells) return this.runs;
      const cells = this.cells;
      this.runs = [];
      this.cells = null;
      this.units = 0;
      for (const cell of cells) if (cell) this.add(cell.text, cell.style);
      return this.runs;
    }

    // See to it that no wide character lies on both sides of a column: half of one is a blank.
    part(column) {
      if (this.cells[column] === null) this.cells[column - 1] = this.cells[column] = BLANK;
    }
  }

  // One for each column: {text, style}, or null for the second half of a wide character. Tabs become blanks.
  function addCells(cells, text, style) {
    for (const character of text) {
      if (character === '\t') cells.push(...Array(8 - cells.length % 8).fill(BLANK));
      else if (!widthOf(character) && cells.length) addMark(cells, cells.length, character);
      else {
        cells.push({text: character, style});
        if (widthOf(character) === 2) cells.push(null);
      }
    }
    return cells;
  }

  function addMark(cells, column, mark) {
    const index = cells[column - 1] ? column - 1 : column - 2;
    cells[index] = {text: cells[index].text + mark, style: cells[index].style};
  }

  // ------------------------------------------------------------------------------------------------------------ screen

  // What can come next, tried where the last one ended. An escape that is broken off by a character which cannot be part
  // of it is dropped, and that character counts; a string ends with its line, so that none swallows all that follows.
  const TEXT = /[^\x00-\x1f\x7f]+/y;
  const CSI = /\x1b\[([0-?]{0,256})([ -/]{0,8})([@-~])/y;
  const STRING = /\x1b([\]PX^_])([^\x07\x18\x1a\x1b\r\n]{0,8192})(?:\x07|(?=[\x18\x1a\x1b\r\n]))/y;
  const ESCAPE = /\x1b(?![[\]PX^_])([ -/]{0,8})([0-~])/y;
  const UNFINISHED = /\x1b(?:\[[0-?]{0,256}[ -/]{0,8}|[\]PX^_][^\x07\x18\x1a\x1b\r\n]{0,8192}|[ -/]{0,8})$/y;
  const BROKEN = /\x1b(?:\[[0-?]{0,256}[ -/]{0,8})?/y;
  const STRING_END = /[\x07\x18\x1a\x1b\r\n]/g;

  // The lines that can still be changed, and a cursor among them. Knows nothing of a page.
  //
  // Lines that scroll off are given to onscrolled(line); progress that the output reports by OSC 9;4 to
  // onprogress(percent), null if it is unknown. Any division of the text into writes has the same effect.
  class Screen {
    constructor(onscrolled, onprogress = () => {}) {
      this.onscrolled = onscrolled;
      this.onprogress = onprogress;
      // Lines exist from the top down to the lowest that was ever written to.
      this.lines = [];
      this.row = this.column = 0;
      this.style = PLAIN;
      this.saved = {row: 0, column: 0, style: PLAIN};
      // An escape (or half a character) that goes on in the next write; are we within a string too long to keep?
      this.rest = '';
      this.skipping = false;
    }

    write(text) {
      // The C1 controls are short for escapes.
      text = this.rest + text.replace(/[\x80-\x9f]/g, (control) => '\x1b' + String.fromCharCode(control.charCodeAt(0) - 64));
      let at = 0;
      const match = (pattern) => {
        pattern.lastIndex = at;
        const found = pattern.exec(text);
        if (found) at = pattern.lastIndex;
        return found;
      };
      this.rest = '';
      while (at < text.length) {
        let found;
        if (this.skipping) at = this.skip(text, at);
        else if ((found = match(TEXT))) {
          const half = at === text.length && /[\ud800-\udbff]$/.test(text);
          if (half) this.rest = text.slice(-1);
          this.print(half ? found[0].slice(0, -1) : found[0]);
        } else if (text[at] !== '\x1b') this.control(text[at++]);
        else if ((found = match(CSI))) this.csi(...found.slice(1));
        else if ((found = match(STRING))) this.string(...found.slice(1));
        else if ((found = match(ESCAPE))) this.escape(...found.slice(1));
        else if ((found = match(UNFINISHED))) this.rest = found[0];
        else if (/[\]PX^_]/.test(text[at + 1])) {
          this.skipping = true;
          at += 2;
        } else match(BROKEN);
      }
    }

    skip(text, at) {
      STRING_END.lastIndex = at;
      const found = STRING_END.exec(text);
      if (!found) return text.length;
      this.skipping = false;
      return found.index + (found[0] === '\x07');
    }

    // The line of the cursor.
    get line() {
      while (this.lines.length <= this.row) this.lines.push(new Line());
      return this.lines[this.row];
    }

    print(text) {
      if (NARROW.test(text)) return this.printNarrow(text);
      for (const character of text) {
        if (BIDI.test(character)) this.printName(character);
        else if (widthOf(character) || !this.column) this.put(character, widthOf(character) || 1);
        else if (this.line.units < MAX_WIDTH) this.line.mark(this.column, character);
        else {
          this.newline();
          this.put(character, 1);
        }
      }
    }

    printNarrow(text) {
      while (text) {
        const room = Math.max(MAX_WIDTH - this.column, 0);
        if (room) this.put(text.slice(0, room), Math.min(room, text.length));
        else this.newline();
        text = text.slice(room);
      }
    }

    printName(character) {
      const style = this.style;
      this.style = PLAIN.with({inverse: true});
      this.printNarrow(`U+${character.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}`);
      this.style = style;
    }

    put(text, width) {
      if (this.column + width > MAX_WIDTH) this.newline();
      this.line.write(this.column, text, width, this.style);
      this.column += width;
    }

    control(character) {
      if (character === '\n' || character === '\v' || character === '\f') this.newline();
      else if (character === '\r') this.column = 0;
      else if (character === '\b') this.column = Math.max(this.column - 1, 0);
      else if (character === '\t') this.tab();
    }

    // A tab is kept as one, for who copies the text, unless it only moves over what is there already.
    tab() {
      if (this.column + 8 > MAX_WIDTH) this.newline();
      const stop = this.column + 8 - this.column % 8;
      if (this.column >= this.line.width) {
        this.line.pad(this.column);
        this.line.write(this.column, '\t', stop - this.column, PLAIN);
      }
      this.column = stop;
    }

    // Output was captured without the terminal driver that makes LF a new line; so a LF is CR and LF.
    newline() {
      this.column = 0;
      this.index();
    }

    index() {
      if (this.row < ROWS - 1) {
        this.row++;
      } else {
        this.line.touched = true;
        this.scroll(1);
      }
    }

    scroll(count) {
      for (const line of this.lines.splice(0, count)) this.onscrolled(line);
    }

    move(row, column) {
      this.row = Math.min(Math.max(row, 0), ROWS - 1);
      // Text may have gone further to the right than the cursor can be moved.
      this.column = Math.min(Math.max(column, 0), Math.max(COLUMNS - 1, this.column));
    }

    csi(parameters, intermediates, final) {
      if (intermediates || /[<-?]/.test(parameters)) return;
      if (final === 'm') {
        this.style = this.style.after(parameters);
        return;
      }
      const [first, second] = parameters.split(';').map((number) => Math.min(parseInt(number) || 0, 9999));
      const count = first || 1;
      const {row, column} = this;
      switch (final) {
        case 'A': return this.move(row - count, column);
        case 'B': case 'e': return this.move(row + count, column);
        case 'C': case 'a': return this.move(row, column + count);
        case 'D': return this.move(row, column - count);
        case 'E': return this.move(row + count, 0);
        case 'F': return this.move(row - count, 0);
        case 'G': case '`': return this.move(row, count - 1);
        case 'H': case 'f': return this.move(count - 1, (second || 1) - 1);
        case 'd': return this.move(count - 1, column);
        case 'J': return this.eraseLines(first);
        case 'K': return this.lines[row] && this.eraseColumns(first);
        case 'L': return this.shift(row, count);
        case 'M': return this.shift(row, -count);
        case 'P': return this.lines[row] && this.line.remove(column, count);
        case 'X': return this.lines[row] && this.line.erase(column, column + count);
        case '@': return this.lines[row] && this.line.insert(column, Math.min(count, COLUMNS));
        case 's': return this.save();
        case 'u': return this.restore();
      }
    }

    eraseColumns(mode) {
      this.line.erase(mode ? 0 : this.column, mode === 1 ? this.column + 1 : Infinity);
    }

    // Clearing the whole screen does not take away what was said: it scrolls off, and the screen is empty.
    eraseLines(mode) {
      if (mode > 1) return mode === 2 && this.scroll(this.lines.findLastIndex((line) => line.width) + 1);
      if (this.lines[this.row]) this.eraseColumns(mode);
      for (const line of mode ? this.lines.slice(0, this.row) : this.lines.slice(this.row + 1)) line.erase(0, Infinity);
    }

    // Move the lines from a row on down, or up by a negative count; what leaves the screen is gone. The lines stay where
    // they are, and hand on what they hold: so each keeps its place in the page.
    shift(from, count) {
      const {lines} = this;
      if (from >= lines.length) return;
      const old = lines.slice(from).map((line) => new Line().take(line));
      while (lines.length < Math.min(ROWS, from + old.length + count)) lines.push(new Line());
      lines.slice(from).forEach((line, index) => old[index - count] && line.take(old[index - count]));
      this.column = 0;
    }

    save() {
      this.saved = {row: this.row, column: this.column, style: this.style};
    }

    restore() {
      this.row = this.saved.row;
      this.column = this.saved.column;
      this.style = this.saved.style;
    }

    escape(intermediates, final) {
      if (intermediates) return;
      switch (final) {
        case '7': return this.save();
        case '8': return this.restore();
        case 'D': return this.index();
        case 'E': return this.newline();
        case 'M': return this.row ? this.row-- : this.reverse();
        case 'c': return this.reset();
      }
    }

    reverse() {
      const column = this.column;
      this.shift(0, 1);
      this.column = column;
    }

    reset() {
      this.eraseLines(2);
      this.row = this.column = 0;
      this.style = PLAIN;
      this.save();
    }

    // Operating system commands: of these, links and progress. All other strings are swallowed.
    string(kind, content) {
      if (kind !== ']') return;
      const link = /^8;[^;]*;(.*)$/.exec(content);
      const progress = /^9;4;([0-4])(?:;(\d{1,3}))?/.exec(content);
      if (link) this.style = this.style.with({link: address(link[1])});
      else if (progress) this.onprogress(/[124]/.test(progress[1]) && progress[2] ? Math.min(Number(progress[2]), 100) : null);
    }
  }

  // An address that a link may lead to, or ''.
  function address(text) {
    if (text.length > MAX_ADDRESS || !/^https?:\/\//i.test(text)) return '';
    try {
      return new URL(text).href;
    } catch {
      return '';
    }
  }

  // ---------------------------------------------------------------------------------------------------------- progress

  // A line printed once tells of progress only if it looks like it: tqdm's "45%|", "[ 45%]" of pytest and CMake, "[3/7]"
  // of ninja and Docker at its start, a bar. In a line that is written over and over any percentage or fraction does.
  const SHAPED = /\d%\||\[ *\d{1,3}%\]|^\[ *\d+\/\d+\]|[\u2501\u2588-\u258f\u25a0\u25b0\u28ff]{2}|\[[#=>*. -]{5,}\]/;
  const PERCENT = /(?<![\d.,])(100|\d{1,2})(\.\d+)? ?%/;
  // "12/345", "1.5/20.3 MB", "3 of 7"; not a date, a path, or different units.
  const FRACTION = /(?<![\w./,:-])(\d+(?:\.\d+)?) ?([a-z]*) ?(?:\/|of) ?(\d+(?:\.\d+)?)(?: ?([a-z]+))?(?![\w/:-])/i;

  // The percentage that a line shows, or null.
  function percentOf(line) {
    const text = line.text.slice(0, 1000);
    if (!line.rewritten && !SHAPED.test(text)) return null;
    const percent = PERCENT.exec(text);
    if (percent) return Math.min(parseFloat(percent[0]), 100);
    const [, done, unit, total, of] = FRACTION.exec(text) || [];
    return total > 0 && +done <= total && (!unit || unit === of) ? 100 * done / total : null;
  }

  // Finds progress among the lines of a screen that were touched since it last looked. Of bars below each other the first
  // that is not at its end counts: nested ones have the outermost on top.
  class Gauge {
    constructor() {
      this.now = null;
    }

    // Return {percent, text}, or null where nothing is known.
    look(lines) {
      const touched = lines.map((line) => line.touched && !(line.touched = false));
      let row = lines.findLastIndex((line, index) => touched[index] && percentOf(line) !== null);
      if (row < 0) {
        // What goes on after the end of a bar is not at its end.
        if (this.now && this.now.percent === 100 && touched.includes(true)) this.now = null;
        return this.now;
      }
      for (let above = row - 1; above >= 0 && percentOf(lines[above]) !== null; above--) {
        if (percentOf(lines[above]) < 100) row = above;
      }
      return this.now = {percent: percentOf(lines[row]), text: lines[row].text.trim().slice(0, 200)};
    }
  }

  // -------------------------------------------------------------------------------------------------------------- page

  // Lines are grouped: the browser lays out only the groups that are seen. A group ends when it has so many of any.
  const CHUNK = {lines: 250, spans: 3000, units: 65536};
  // About 100,000 lines of usual length.
  const MAX_CHUNKS = 400;
  const PIECE = 8192;
  const FRAME_MS = 10;
  const GAUGE_MS = 100;

  const URLS = /https?:\/\/[^\s<>"'`{}|\\^]*[^\s<>"'`{}|\\^.,:;!?)\]]/gi;
  // What a reader takes for the name of a host.
  const HOST = /[\p{L}\p{N}][\p{L}\p{N}-]*(?:\.[\p{L}\p{N}-]+)*\.\p{L}{2,}/giu;

  function element(name, className, text = '') {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.textContent = text;
    return made;
  }

  function linkTo(href) {
    const link = element('a');
    link.href = href;
    link.target = '_blank';
    link.rel = 'noopener noreferrer nofollow';
    return link;
  }

  function hostOf(href) {
    return address(href) && new URL(href).host.replace(/^www\./, '');
  }

  // Does the text of a link name another host than it leads to?
  function misleads(text, href) {
    const names = text.length > 256 ? [text] : text.match(HOST) || [];
    return names.some((name) => hostOf(`http://${name}`) !== hostOf(href));
  }

  // The classes and colours of a style, or null where there are none; the style remembers them.
  function lookOf(style) {
    if (style.look === undefined) {
      let {fg, bg, inverse} = style.looks;
      const names = ['bold', 'dim', 'italic', 'underline', 'strike'].filter((name) => style.looks[name]);
      if (inverse) {
        [fg, bg] = [bg, fg];
        // The sixteen are legible upon each other and upon the page; any other colour changes places with the page's own.
        if (typeof fg !== 'number' && typeof bg !== 'number') names.push('inverse');
      }
      if (typeof fg === 'number') names.push(`fg${fg}`);
      if (typeof bg === 'number') names.push(`bg${bg}`);
      const colours = [['color', fg], ['background-color', bg]].filter(([, colour]) => typeof colour === 'string');
      style.look = names.length || colours.length ? {className: names.join(' '), colours} : null;
    }
    return style.look;
  }

  // Puts lines into an element. Text without a style is gathered, over many lines, into one node.
  class Ink {
    constructor(parent) {
      this.parent = parent;
      this.text = '';
      this.lines = this.spans = this.units = 0;
    }

    get full() {
      return this.lines >= CHUNK.lines || this.spans >= CHUNK.spans || this.units >= CHUNK.units;
    }

    count({lines, spans, units}) {
      this.lines += lines;
      this.spans += spans;
      this.units += units;
    }

    line(line) {
      const runs = line.pack();
      for (let index = 0; index < runs.length;) {
        const href = runs[index].style.looks.link;
        if (!href) this.run(runs[index++]);
        else {
          let end = index;
          while (end < runs.length && runs[end].style.looks.link === href) end++;
          this.link(runs.slice(index, end), href);
          index = end;
        }
      }
      this.text += '\n';
      this.count({lines: 1, spans: 0, units: line.units + 1});
    }

    link(runs, href) {
      const inner = new Ink(linkTo(href));
      for (const {text, style} of runs) inner.styled(text, style);
      inner.flush();
      this.spans += inner.spans;
      this.node(inner.parent);
      if (misleads(inner.parent.textContent, href)) this.node(element('span', 'target', ` [→ ${new URL(href).host}]`));
    }

    // Addresses in the text become links.
    run({text, style}) {
      let from = 0;
      if (text.includes('://')) {
        for (const {0: url, index} of text.matchAll(URLS)) {
          this.styled(text.slice(from, index), style);
          from = index + url.length;
          if (address(url)) this.link([{text: url, style}], url);
          else this.styled(url, style);
        }
      }
      this.styled(text.slice(from), style);
    }

    styled(text, style) {
      const look = lookOf(style);
      if (!look || !text) this.text += text;
      else {
        const span = element('span', look.className, text);
        for (const [property, colour] of look.colours) span.style.setProperty(property, colour);
        this.node(span);
      }
    }

    node(node) {
      this.flush();
      this.parent.append(node);
      this.spans++;
    }

    flush() {
      if (this.text) this.parent.append(this.text);
      this.text = '';
    }
  }

  class Terminal {
    #element;
    #options;
    #port = new MessageChannel();
    #queue;
    #offset;
    #screen;
    #reported;
    #gauge;
    #told = null;
    #chunks;
    #note;
    #dropped;
    #scheduled = false;
    #looking = false;
    #waiting = null;

    // onprogress is called with {percent, text} as the output tells of progress, and with null when it no longer does;
    // ondraw() after each change of the page; earlier(count) says that so many lines are no longer shown.
    constructor(element, options = {}) {
      this.#element = element;
      this.#options = {
        onprogress() {},
        ondraw() {},
        earlier: (count) => `${count.toLocaleString()} earlier lines are not shown`,
        ...options,
      };
      element.classList.add('terminal');
      // A hidden page gets no animation frames, and only slow timers; messages come at once.
      this.#port.port1.onmessage = () => this.#work();
      document.addEventListener('visibilitychange', () => this.#scheduled && this.#port.port2.postMessage(0));
      this.clear();
    }

    write(text) {
      if (!text) return;
      this.#queue.push(text);
      this.#schedule();
    }

    // Resolved once all that was written is in the page.
    get drawn() {
      return this.#waiting ? this.#waiting.promise : Promise.resolve();
    }

    // The lines that are in the page, joined by line feeds.
    text() {
      return this.#chunks.map(({parent}) => parent.textContent).join('').replace(/\n$/, '');
    }

    clear() {
      this.#queue = [];
      this.#offset = 0;
      this.#screen = new Screen((line) => this.#settle(line), (percent) => (this.#reported = percent));
      this.#reported = null;
      this.#gauge = new Gauge();
      this.#chunks = [];
      this.#note = null;
      this.#dropped = 0;
      this.#element.replaceChildren();
      this.#tell(null);
    }

    #schedule() {
      if (this.#scheduled) return;
      this.#scheduled = true;
      if (!this.#waiting) {
        this.#waiting = {};
        this.#waiting.promise = new Promise((resolve) => (this.#waiting.resolve = resolve));
      }
      if (document.hidden) this.#port.port2.postMessage(0);
      else requestAnimationFrame(() => this.#work());
    }

    #work() {
      if (!this.#scheduled) return;
      this.#scheduled = false;
      const begun = performance.now();
      // Some of the time is for the screen, or nobody would see a bar move while much is written.
      while (this.#queue.length && performance.now() < begun + FRAME_MS * 0.7) this.#screen.write(this.#piece());
      if (this.#chunks.length) this.#last.flush();
      const complete = this.#drawScreen(begun + FRAME_MS);
      this.#options.ondraw();
      this.#look();
      if (this.#queue.length || !complete) return this.#schedule();
      this.#waiting.resolve();
      this.#waiting = null;
    }

    #piece() {
      const piece = this.#queue[0].slice(this.#offset, this.#offset + PIECE);
      this.#offset += PIECE;
      if (this.#offset >= this.#queue[0].length) {
        this.#queue.shift();
        this.#offset = 0;
      }
      return piece;
    }

    get #last() {
      return this.#chunks[this.#chunks.length - 1];
    }

    // The chunk that a new line goes to.
    #chunk() {
      if (this.#chunks.length && !this.#last.full) return this.#last;
      if (this.#chunks.length) this.#close(this.#last);
      if (this.#chunks.length === MAX_CHUNKS) this.#drop(this.#chunks.shift());
      this.#chunks.push(new Ink(element('div')));
      this.#element.append(this.#last.parent);
      return this.#last;
    }

    // Tell the browser how high a chunk may be that it has not laid out yet.
    #close(chunk) {
      chunk.flush();
      const height = Math.ceil(Math.max(chunk.lines, chunk.units / 150));
      chunk.parent.style.setProperty('contain-intrinsic-height', `auto ${height}lh`);
    }

    #drop(chunk) {
      chunk.parent.remove();
      this.#dropped += chunk.lines;
      if (!this.#note) this.#element.prepend(this.#note = element('div', 'earlier'));
      this.#note.textContent = this.#options.earlier(this.#dropped);
    }

    // A line has left the screen: see to it that it is drawn as it is now, and forget it.
    #settle(line) {
      if (!line.nodes) this.#chunk().line(line);
      else if (line.dirty) this.#draw(line);
    }

    #drawScreen(deadline) {
      const {lines} = this.#screen;
      const end = lines.findLastIndex((line) => line.width) + 1;
      for (const line of lines.slice(0, end)) {
        if (!line.dirty) continue;
        this.#draw(line);
        if (performance.now() > deadline) return false;
      }
      for (const line of lines.slice(end)) this.#undraw(line);
      return true;
    }

    // Draw a line in its place, which is after all lines that were drawn before it.
    #draw(line) {
      const ink = new Ink(document.createDocumentFragment());
      ink.line(line);
      ink.flush();
      const nodes = [...ink.parent.childNodes];
      line.dirty = false;
      if (line.nodes && line.nodes.length === 1 && nodes.length === 1) {
        line.nodes[0].data = nodes[0].data;
        return;
      }
      if (line.nodes) {
        line.nodes[0].before(ink.parent);
        this.#undraw(line);
      } else {
        const chunk = this.#chunk();
        chunk.flush();
        chunk.parent.append(ink.parent);
        chunk.count(ink);
      }
      line.nodes = nodes;
    }

    #undraw(line) {
      for (const node of line.nodes || []) node.remove();
      line.nodes = null;
    }

    #look() {
      if (this.#looking) return;
      this.#looking = true;
      setTimeout(() => {
        this.#looking = false;
        const seen = this.#gauge.look(this.#screen.lines);
        this.#tell(this.#reported === null ? seen : {percent: this.#reported, text: ''});
      }, GAUGE_MS);
    }

    #tell(progress) {
      if (JSON.stringify(progress) === JSON.stringify(this.#told)) return;
      this.#told = progress;
      this.#options.onprogress(progress);
    }
  }

  Object.assign(Terminal, {Screen, Gauge, widthOf});
  return Terminal;
})();
if (typeof module === 'object') module.exports = Terminal;
