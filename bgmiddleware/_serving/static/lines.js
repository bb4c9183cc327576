// The lines of the output: their numbers and times, what they fold into, and the way to one of them.
//
// A line is known by how many line feeds the page has read before it.

// Of each line where it begins, in bytes; of what came at one time where it ended, and when. Both begin where the page does.
let starts, ends, ats, partial, learned;
// What is known to have come on stderr, in bytes.
let errors = [];
// The number of the first line, if it is known; the line from which on nobody knows.
let firstNumber, unnumbered;
// The parts that fold: those of the job's steps, and those that lines of the output begin.
let stepFolds, groups, trace;
let arranging = 0;
// Where those begin that failed.
let failed = [];
let wantsLink = !following;

function beginLines(at) {
  starts = [at];
  [ends, ats, stepFolds, groups, partial, learned, trace] = [[], [], [], [], "", false, -1];
  firstNumber = at ? null : 1;
  unnumbered = Infinity;
}

// The index of the first that is not less; the list is sorted.
function firstOf(list, value) {
  let [low, high] = [0, list.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

const lineAt = (at) => firstOf(starts, at + 1) - 1;
// When a line was at its end, in seconds.
const timeOf = (line) => ats[Math.min(firstOf(ends, starts[line + 1] ?? Infinity), ats.length - 1)];
// Whether its first byte came on stderr.
const isError = (line) => errors.some(([begin, end]) => begin <= starts[line] && starts[line] < end);
const encoder = new TextEncoder();

// Take what is written to the terminal.
function takeLines(at, text) {
  const bytes = encoder.encode(text);
  const lines = (partial + text).split("\n");
  partial = lines.pop().slice(0, 999);
  lines.forEach((line, index) => takeMark(line, starts.length - 1 + index));
  for (let feed = -1; (feed = bytes.indexOf(10, feed + 1)) >= 0; ) starts.push(at + feed + 1);
  const end = at + bytes.length;
  if (!learned || end <= ends.at(-1)) return;
  ends.push(end);
  ats.push(elapsed());
}

// What GitHub, GitLab and Buildkite take for the begin and the end of a part; and what tells of a failure.
const MARKS =
  /^(?:::group::|(::endgroup::)|(?:\x1b\[0K)?section_start:\d+:([\w.-]+)|.*section_end:\d+:([\w.-]+)|((?:---|\+\+\+) )(?=\S)(?!.* ---$)|(Traceback \(|::error))/;

function takeMark(text, line) {
  const [found, ended, name, endedName, sign, failed] = MARKS.exec(text) ?? [];
  if (!found) return;
  const close = (wanted, to) => {
    const open = groups.findLast((group) => group.name === wanted && group.to === null);
    if (open) Object.assign(open, {to, state: "done"});
    return open;
  };
  if (failed) trace = line;
  else if (ended) {
    const group = close("", line + 1);
    if (group) group.hides = line;
  } else if (endedName) close(`:${endedName}`, line);
  else {
    const before = sign && close(sign && "-", line);
    // The head of a difference is none of theirs.
    if (sign === "+++ " && before?.from === line - 1 && before.sign === "--- ") groups.splice(groups.indexOf(before), 1);
    else groups.push({name: sign ? "-" : name ? `:${name}` : "", sign, from: line, to: null, state: "running"});
  }
}

// Learn from the server when all of it came, and what the number of the first line is.
async function learn() {
  const [from] = starts;
  const {line, times, stderr} = await (await ask(`${view("times")}&_offset=${from}`)).json();
  if (from !== starts[0]) return;
  const later = firstOf(ends, (times.at(-1)?.[0] ?? 0) + 1);
  ends = [...times.map(([end]) => end), ...ends.slice(later)];
  ats = [...times.map(([, at]) => at), ...ats.slice(later)];
  learned = true;
  firstNumber = line;
  errors = stderr ?? [];
  $.only.hidden = !errors.length;
  undress();
}

// Folds.

function takeSteps() {
  job.steps.forEach(({start, end, ...step}, index) => {
    if (start < starts[0] || start >= offset) return;
    const to = end === null ? null : firstOf(starts, end);
    Object.assign((stepFolds[index] ??= {from: lineAt(start)}), step, {to});
  });
}

function isOpen(fold) {
  const {state, to, from, sign} = fold;
  if ($.errors.checked) return true;
  if (fold.open !== undefined) return fold.open;
  if (following || fold.was === undefined) {
    const ends = to === null || to >= starts.length - 1;
    const few = starts.length < pane.clientHeight / 20 || to - from < 2;
    const fails = failed.some((line) => line > from && line < (to ?? Infinity));
    fold.was = few || fails || ends || state !== "done" || sign === "+++ ";
  }
  return fold.was;
}

const foldsOf = () => [...Object.values(stepFolds), ...groups].sort((one, other) => one.from - other.from);

// Bring the page in line with what is known: after each change of it.
function arrange() {
  arranging = 0;
  root.classList.toggle("job-filtered", $.errors.checked);
  takeSteps();
  const {chunks} = terminal;
  const drawn = chunks.at(-1)?.div.lastChild?.number ?? -1;
  const folds = foldsOf();
  failed = folds.flatMap(({state, from}) => (state === "failed" ? from : []));
  for (const fold of folds) {
    if (!fold.head && fold.from < drawn) makeHead(fold);
    if (fold.head && fold.to !== null && !fold.cut && fold.to <= drawn) {
      terminal.split(fold.to);
      fold.cut = true;
      if (fold.hides) terminal.line(fold.hides).hidden = true;
    }
    if (fold.head) tellHead(fold);
  }
  let until = -1;
  for (const chunk of chunks) {
    for (; folds[0]?.from < chunk.first; folds.shift())
      if (folds[0].head && !isOpen(folds[0])) until = Math.max(until, folds[0].to ?? Infinity);
    const hidden = chunk.first < until;
    if (!chunk.div.chunk) watcher.observe(chunk.div);
    chunk.div.chunk = chunk;
    // The browser's own search opens it.
    if (hidden !== !!chunk.hidden) chunk.div.hidden = (chunk.hidden = hidden) && "until-found";
    if (chunk.seen || $.errors.checked) dress(chunk);
  }
  if (wantsLink && screen.isConnected) goToLink();
}

function makeHead(fold) {
  const chunk = terminal.split(fold.from);
  if (chunk?.first !== fold.from) return;
  terminal.split(fold.from + 1);
  chunk.weight = Infinity;
  fold.head = chunk.div;
  const text = document.createTreeWalker(chunk.div, NodeFilter.SHOW_TEXT).nextNode();
  text.data = text.data.replace(/^( *)(?:▸ |::group::|--- |\+\+\+ )/, "$1");
  fold.title ??= chunk.div.textContent.trim();
  chunk.div.className = "job-head";
  chunk.div.onclick = (event) => {
    if (!getSelection().isCollapsed || event.target.closest("a") || numberAt(event)) return;
    fold.open = !isOpen(fold);
    arrange();
  };
  chunk.div.prepend(made("button", ""));
}

const SIGNS = {done: "✓", failed: "✗", running: "…", cancelled: "–"};

function tellHead(fold) {
  const {head, title, from, to, begun, ended} = fold;
  const state = over() && to === null ? (job.state === "finished" ? "done" : "failed") : fold.state;
  const now = ended ?? elapsed();
  const took = begun !== undefined ? now - begun : (to === null ? now : timeOf(to - 1)) - timeOf(from);
  const said = `${SIGNS[state]} ${took >= 0 ? span(took) : ""}`;
  const open = String(isOpen(fold));
  if (head.dataset.took === said && head.firstChild.ariaExpanded === open) return;
  head.dataset.took = said;
  head.dataset.state = state;
  head.firstChild.ariaExpanded = open;
  head.firstChild.ariaLabel = `${title}: ${looks[state === "done" ? "finished" : state][2]}`;
}

$.errors.onchange = arrange;

function unfold(line) {
  if (!isError(line)) $.errors.checked = false;
  for (const fold of foldsOf()) if (fold.from < line && line < (fold.to ?? Infinity)) fold.open = true;
  arrange();
}

screen.addEventListener("beforematch", ({target}) => unfold(target.chunk.first));

// Lines are dressed when they come in sight: with their numbers, their times, and how long nothing came behind them.

const watcher = new IntersectionObserver(
  (seen) => {
    for (const {target, isIntersecting} of seen) {
      target.chunk.seen = isIntersecting;
      if (isIntersecting) dress(target.chunk);
    }
  },
  {root: $.output, rootMargin: "400px"},
);

const QUIET = 30;

function dress(chunk) {
  const {children} = chunk.div;
  for (let at = chunk.dressed ?? 0; at < children.length; at++) {
    const {number: line, previousSibling, dataset} = children[at];
    if (line === undefined) continue;
    const numbered = firstNumber !== null && line < unnumbered && previousSibling?.number !== line;
    dataset.n = numbered ? firstNumber + line : "";
    if (isError(line)) dataset.stderr = "";
    // While the job runs, the last one may go on.
    if (!learned || (!over() && line > starts.length - 3)) break;
    const time = timeOf(line);
    const quiet = timeOf(line + 1) - time;
    if (quiet >= QUIET) dataset.quiet = say("quiet", {time: span(quiet, 0)});
    if ($.times.value) dataset.t = $.times.value === "1" ? clockOf(time) : new Date((job.started_at + time) * 1000).toLocaleTimeString();
    chunk.dressed = at + 1;
  }
}

const clockOf = (seconds) => new Date(seconds * 1000).toISOString().slice(seconds < 3600 ? 14 : 11, 21);

function undress() {
  for (const chunk of terminal.chunks) chunk.dressed = 0;
  arrange();
  drawStrip();
}

const TIMES = "bgmiddleware-times";

$.times.onchange = () => {
  store(TIMES, $.times.value);
  root.dataset.times = $.times.value;
  undress();
};

// Where it was silent: the time of the job from top to bottom, a stripe for each part of it in which something came.
function drawStrip() {
  const all = elapsed();
  const came = new Set(ats.map((at) => Math.floor((at / all) * 99.9)));
  $.strip.hidden = all < 5;
  const stripe = (_, part) => `${came.has(part) ? "var(--tone)" : "transparent"} ${part}% ${part + 1}%`;
  $.strip.style.background = `linear-gradient(${Array.from({length: 100}, stripe)})`;
}

$.strip.onclick = ({offsetY}) => {
  const at = firstOf(ats, (elapsed() * offsetY) / $.strip.clientHeight);
  goTo(lineAt((ends[at] ?? offset) - 1));
};

// The way to a line.

const topOf = (it) => it.getBoundingClientRect().top - pane.getBoundingClientRect().top;

// Twice: what is far away is laid out only when it comes near.
function reveal(it, part = 3) {
  for (let times = 2; times--; ) pane.scrollTop += topOf(it) - pane.clientHeight / part;
}

function goTo(line) {
  follow(false);
  unfold(line);
  const it = terminal.line(line);
  if (it) reveal(it);
}

function goToLink() {
  const [, from, to = from] = /^#L(\d+)(?:-L(\d+))?$/.exec(location.hash) ?? [];
  if (!from || firstNumber === null) return;
  if (+from < firstNumber) return whole || loadAll();
  const line = from - firstNumber;
  if (!terminal.line(line)) return;
  wantsLink = false;
  for (const it of screen.querySelectorAll(".job-marked")) it.className = "";
  for (let at = line; at <= Math.min(to - firstNumber, line + 2000); at++) {
    const it = terminal.line(at);
    if (it) it.className = "job-marked";
  }
  goTo(line);
}

addEventListener("hashchange", () => {
  wantsLink = true;
  follow(false);
  arrange();
});

// A click on a number links to its line; with the shift key, to all from the one before.
function numberAt({target, clientX}) {
  const {left} = target.getBoundingClientRect();
  return clientX < left + parseFloat(getComputedStyle(target).paddingLeft) && target.dataset.n;
}

screen.addEventListener("click", (event) => {
  const n = numberAt(event);
  if (!n) return;
  const [, from] = /^#L(\d+)/.exec((event.shiftKey && location.hash) || "") ?? [];
  location.hash = from ? `#L${Math.min(from, n)}-L${Math.max(from, n)}` : `#L${n}`;
});

// Where it failed: where it says so, else at the end of the innermost step that did.
$.failure.onclick = () => {
  const fold = foldsOf().findLast(({state}) => state === "failed");
  goTo(trace >= 0 ? trace : (fold?.to ?? starts.length - 1) - 1);
};

function goToHead(by) {
  const heads = [...screen.querySelectorAll(".job-head:not([hidden])")];
  const at = heads.indexOf(document.activeElement.parentElement);
  const next = at < 0 ? heads.findIndex((it) => topOf(it) > -1) + Math.min(by, 0) : at + by;
  const head = heads[next];
  if (!head) return;
  follow(false);
  reveal(head, Infinity);
  head.firstChild.focus({preventScroll: true});
}

const KEYS = {
  "/": () => {
    $.menu.open = true;
    $.search.focus();
  },
  n: () => goToHead(1),
  p: () => goToHead(-1),
  g: () => {
    follow(false);
    pane.scrollTop = 0;
  },
  G: () => follow(true),
};

// The outermost steps with their shares of the time.
function drawShares() {
  const steps = job.receipt?.steps ?? [];
  $.shares.hidden = steps.length < 2;
  if ($.shares.childElementCount === steps.length) return;
  const places = job.steps.flatMap(({parent}, index) => (parent === null ? index : []));
  $.shares.replaceChildren(
    ...steps.map(({title, share}, index) => {
      const text = `${title} ${Math.round(share * 100)} %`;
      const part = made("button", text, {onclick: () => goTo(stepFolds[places[index]]?.from ?? 0)});
      part.style.flexGrow = share + 0.001;
      return part;
    }),
  );
}

// Play it back, as it came.

let playing = null;

async function play(speed = 1) {
  const run = (playing = {});
  begin(0);
  follow(true);
  await learn();
  const controls = [1, 4, 16].map((times) => made("button", `${times}×`, {onclick: () => wake((speed = times))}));
  controls.push(made("button", words.stop, {onclick: () => wake((playing = null))}));
  const decoder = new TextDecoder();
  for (let last = 0; offset < job.output.end; ) {
    const answer = await ask(`${view("log")}&_offset=${offset}`);
    const begun = +answer.headers.get("Job-Offset");
    const bytes = new Uint8Array(await answer.arrayBuffer());
    for (let from = begun; from < begun + bytes.length; ) {
      const index = firstOf(ends, from + 1);
      const [at, to] = [ats[index] ?? last, Math.min(ends[index] ?? Infinity, begun + bytes.length)];
      sign(`${words.replay} ${span(last)} / ${span(elapsed())}`, ...controls);
      await pause(Math.min(2, at - last) / speed);
      if (playing !== run) return sign(), begin(0), live();
      write(from, decoder.decode(bytes.subarray(from - begun, to - begun), {stream: true}));
      [last, from, offset] = [at, to, to];
    }
  }
  sign();
  playing = null;
}

$.replay.onclick = () => playing || play();
