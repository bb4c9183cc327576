// The live page of a job. The document says all of it without a script too; this keeps it up to date.
const $ = new Proxy({}, {get: (_, name) => document.getElementById("job-" + name)});
const root = document.getElementById("job");
const given = JSON.parse($.data.textContent);
const {self, looks, words, operator} = given;
let {job} = given;
const over = () => job.ended_at !== null;
// Until the next try begins.
const waits = () => job.retry?.next_in != null;
// Who was just sent here, to a job that has ended meanwhile, wants its result; who comes back, reloads, or has sent a
// form of this page, the page.
const [entry] = performance.getEntriesByType("navigation");
const sent = entry?.type === "navigate" && entry.redirectCount > 0 && !document.referrer.includes(self);
const early = over() && !operator && sent;
let finished = over() && !early;
// What the page looks like: the state, but what was refused is no success.
const face = () => (job.state === "finished" && job.status_code >= 400 ? "refused" : job.state);
const view = (name) => `${self}&_view=${name}`;

// What is said.

const say = (name, values) => words[name].replace(/\{(\w+)\}/g, (_, key) => values[key]);
const count = (number) => number.toLocaleString();
const SIZE = {notation: "compact", style: "unit", unit: "byte", unitDisplay: "narrow"};
const size = (bytes) => bytes.toLocaleString(undefined, SIZE);
const moment = (at) => new Date(at * 1000).toLocaleString();

function span(seconds, digits = 1) {
  if (seconds < 10) return `${seconds.toFixed(digits)} s`;
  const all = Math.round(seconds);
  const [hours, minutes] = [Math.floor(all / 3600), Math.floor(all / 60) % 60];
  return hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min ${all % 60} s` : `${all} s`;
}

// Asking the server. Who waits can be woken: when the network is there again, when the reader comes or goes.

class Gone extends Error {}

async function ask(url, options) {
  const headers = {Accept: "application/json"};
  const answer = await fetch(url, {headers, signal: AbortSignal.timeout(30000), ...options});
  // Only our own word counts: what stands in for a server that restarts may say 404 to everything.
  const ours = answer.headers.get("Content-Type")?.includes("problem+json");
  if (ours && /404|410/.test(answer.status)) throw new Gone();
  if (!answer.ok) throw new Error(answer.status);
  return answer;
}

let wake = () => {};
addEventListener("online", () => wake());
document.addEventListener("visibilitychange", () => wake());

function pause(seconds) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, seconds * 1000);
    wake = () => resolve(clearTimeout(timer));
  });
}

// The output: one offset in bytes, whichever way they come.

// Six digits for light and six for dark: of text, then of what is behind it.
const sheet = new CSSStyleSheet();
sheet.replaceSync(
  COLOURS.match(/.{12}/g)
    .map((colour, index) => {
      const [name, property] = index < 16 ? ["fg", "color"] : ["bg", "background"];
      return `.${name}${index % 16}{${property}:light-dark(#${colour.slice(0, 6)},#${colour.slice(6)})}`;
    })
    .join(""),
);
document.adoptedStyleSheets = [sheet];

const screen = made("div", "", {id: "job-text"});
const terminal = new Terminal(screen, {
  onprogress: (read) => show(job, read),
  ondraw: () => (arranging ||= setTimeout(arrange, 100)),
  earlier: (lines) => say("lines", {lines: count(lines)}),
});
let offset, midline;

function begin(at) {
  terminal.clear();
  beginLines(at);
  offset = at;
  midline = at > 0;
  $.earlier.hidden = !at;
  $.earlier.replaceChildren(say("earlier", {bytes: size(at)}), " ", made("button", words.load, {onclick: loadAll}));
}

// What begins behind the offset tells of bytes that are not there any more.
function write(at, text) {
  if (midline) {
    const cut = text.indexOf("\n") + 1;
    at += encoder.encode(text.slice(0, cut)).length;
    text = text.slice(cut);
    beginLines(at);
  } else if (at > offset) {
    unnumbered = Math.min(unnumbered, starts.length - 1);
    starts.push(at, at);
    const gap = say("dropped", {bytes: size(at - offset), begin: count(offset), end: count(at)});
    terminal.write(`\n\x1b[0;2m[${gap}]\x1b[0m\n`);
  }
  midline = false;
  takeLines(at, text);
  terminal.write(text);
}

async function read() {
  if (offset > job.output.end) begin(0);
  while (offset < job.output.end) {
    const answer = await ask(`${view("log")}&_offset=${offset}`);
    // The server cuts between characters.
    write(+answer.headers.get("Job-Offset"), await answer.text());
    const next = +answer.headers.get("Job-Next-Offset");
    // Half of a character waits for its other half.
    if (next <= offset) break;
    offset = next;
  }
  terminal.drawn.then(takeOver);
}

// From now on the terminal shows the output, not what the server made of it.
function takeOver() {
  if (screen.isConnected) return;
  $.text.replaceWith(screen);
  root.classList.add("job-live");
  arrange();
  toEnd();
}

let whole = false;

function loadAll() {
  whole = true;
  if (over()) live();
  else wake();
}

// The end stays in sight until the reader scrolls away from it, and again when they come back to it.

const pane = $.output;
let following = !/^#L\d/.test(location.hash);
let lastTop = 0;

function toEnd() {
  if (following && !$.search.value) pane.scrollTop = pane.scrollHeight;
}

function follow(wanted) {
  following = $.follow.checked = $.end.hidden = wanted;
  // At the end nothing needs to be held in its place, which takes the browser long.
  pane.style.overflowAnchor = wanted ? "none" : "";
  toEnd();
}

pane.onscroll = () => {
  const {scrollTop: top, scrollHeight, clientHeight} = pane;
  const near = scrollHeight - top - clientHeight < 30;
  if (near && top > lastTop) follow(true);
  // Not where the output only became shorter.
  if (!near && top < lastTop) follow(false);
  lastTop = top;
};
for (const box of [screen, pane]) new ResizeObserver(toEnd).observe(box);
$.follow.onchange = () => follow($.follow.checked);
$.end.onclick = () => {
  follow(true);
  pane.focus();
};

// The keys that scroll do so wherever the reader is, but for the places that need them.
addEventListener("keydown", ({key}) => {
  if (!/^(Arrow(Up|Down)|Page|Home|End)/.test(key)) return;
  if (document.activeElement === document.body) pane.focus({preventScroll: true});
  if (key === "End" && document.activeElement === pane) follow(true);
});

addEventListener("keydown", (event) => {
  const {activeElement: at, body} = document;
  if (at !== body && !root.contains(at)) return;
  if (!/INPUT|SELECT/.test(at.tagName) && !event.ctrlKey && !event.metaKey && !event.altKey && KEYS[event.key]) {
    event.preventDefault();
    KEYS[event.key]();
  }
  if (event.key !== "Escape") return;
  close();
  $.search.value = "";
  $.search.oninput();
  if (at.closest("#job-menu")) pane.focus();
});

// Transport: a stream while there is one to have, else looks at the pace that the server sets.

let waited = 0;
let pace = 1;
let quiet = 0;
let streamAfter = 0;

async function look() {
  const answer = await ask(view("status") + (waited === null ? "" : `&_every=${waited.toFixed(2)}`));
  // The next try has begun: whoever asks for this one gets that.
  if (answer.redirected) location.replace(self);
  pace = +answer.headers.get("Job-Poll") || pace;
  const before = job.output.end;
  show(await answer.json());
  quiet = job.output.end > before ? 0 : quiet + 1;
}

function interval() {
  // What takes a few seconds is not to seem longer.
  const calm = Math.max(pace, Math.min(5, pace * 1.3 ** (quiet - 4)), document.hidden ? 5 : 0);
  return calm * (0.9 + Math.random() / 5);
}

function stream() {
  return new Promise((resolve) => {
    const begun = performance.now();
    const source = new EventSource(`${view("events")}&_offset=${offset}`);
    let heard = false;
    const hear = (event) => {
      heard = true;
      return JSON.parse(event.data);
    };
    const after = (seconds, act) => setTimeout(act, seconds * 1000);
    const timers = [
      // The state comes at once, unless something between the server and us keeps all until the end.
      after(5, () => heard || wake((streamAfter = Infinity))),
      // The server ends a stream after 20 seconds; this is for a connection that died without a word.
      after(30, () => wake()),
    ];
    wake = () => {
      source.close();
      timers.forEach(clearTimeout);
      resolve(heard);
    };
    source.onmessage = (event) => {
      const {offset: at, text} = hear(event);
      write(at, text);
      offset = +event.lastEventId;
    };
    source.addEventListener("status", (event) => show(hear(event)));
    source.addEventListener("done", wake);
    source.onerror = () => {
      // Refused, or cut off at once.
      if (performance.now() < begun + 1000) streamAfter = begun + 15000;
      wake();
    };
  });
}

// One for all tabs of a browser, which has six connections to a host in all. Plain http knows no locks.
async function streamed() {
  if (document.hidden || performance.now() < streamAfter) return false;
  if (!navigator.locks) return stream();
  return navigator.locks.request("bgmiddleware", {ifAvailable: true}, (lock) => lock && stream());
}

async function live() {
  for (let failures = 0; ; ) {
    try {
      await look();
      if (whole && !$.earlier.hidden) begin(0);
      await read();
      if (!learned || over() || $.times.value) learn().catch(() => {});
      failures = 0;
      sign();
      if (over() && !waits()) return finish();
      waited = !over() && (await streamed()) ? null : interval();
      if (waited) await pause(waited);
    } catch (error) {
      if (error instanceof Gone) return gone();
      sign(words.reconnecting);
      await pause(Math.min(20, 2 ** failures++) * (0.75 + Math.random() / 2));
    }
  }
}

// What is known of the job, shown.

let bar = null;
let shownAt = performance.now();
let base = {at: 0, percent: 0};
let announced = 0;

const percent = () => (job.progress ? job.progress.percent : (bar?.percent ?? null));
const elapsed = () => job.elapsed + (over() || job.started_at === null ? 0 : (performance.now() - shownAt) / 1000);

function show(news, read = bar) {
  const before = percent();
  if (news !== job) shownAt = performance.now();
  [job, bar] = [{steps: job.steps, ...news}, read];  // said again only when one began or ended
  const now = percent();
  // What begins anew, a second bar say, is estimated anew.
  if (now < before || before === null) base = job.progress ? {at: 0, percent: 0} : {at: elapsed(), percent: now};
  const {state, status_code: code} = job;
  const [symbol, colour, word] = looks[face()];
  root.dataset.job = face();
  $.badge.textContent = `${symbol} ${plain(told())}`;
  $.icon.href = given.icon.replace("STATE", face()).replace("COLOUR", colour).replace("SYMBOL", symbol);
  $.cancel.hidden = (over() && !waits()) || job.cancel_requested_at !== null;
  $.result.hidden = !job.response || !/finished|failed/.test(state);
  if (state === "failed" && code < 400) $.result.textContent = words.form;
  $.again.hidden = !$.again.href || !over() || state === "finished";
  if ($.rerun) $.rerun.hidden = !over() || waits();
  $.save.hidden = state !== "finished" || code >= 400 || code === 204;
  $.notify.parentElement.hidden = over() || !window.Notification;
  const part = state === "finished" ? 100 : now;
  // How far it came, if anybody knows.
  $.progress.hidden = over() && part === null;
  if (part === null) $.progress.removeAttribute("value");
  else $.progress.value = part;
  $.nothing.hidden = job.output.end > 0;
  $.nothing.textContent = over() ? words.empty : words.nothing;
  $.failure.hidden = state !== "failed" && !job.steps.some((step) => step.state === "failed");
  $.replay.hidden = !over() || !job.output.end;
  // The server makes its form.
  const asked = job.waiting_for?.id;
  if (asked && $.question?.dataset.id !== asked) location.reload();
  else if ($.question) $.question.hidden = !asked;
  tick();
  details();
  drawShares();
  const step = over() ? 100 : Math.min(75, Math.floor(now / 25) * 25);
  if (!finished && step > announced) {
    announced = step;
    $.status.textContent = over() ? told() : `${step} %`;
  }
}

function told() {
  const [, , word] = looks[face()];
  return face() === "refused" ? `${word}: ${job.response?.status}` : word;
}

function sign(...said) {
  $.sign.replaceChildren(...said);
  $.sign.hidden = !said.length;
}

function tick() {
  const now = percent();
  const [symbol] = looks[face()];
  const title = face() === "refused" ? `${told()} · ${job.title}` : job.title;
  document.title = plain(`${over() || now === null ? symbol : `${Math.floor(now)}%`} ${title}`);
  $.time.textContent = job.started_at === null ? "" : span(elapsed());
  if (starts) arrange();
  $.note.textContent = plain(note(now).filter(Boolean).join(" · "));
}

setInterval(() => (over() && !waits()) || tick(), 1000);

function note(now) {
  const {cancel_requested_at: asked, reason, response} = job;
  if (over())
    return [asked && job.state !== "cancelled" && words.asked, reason, face() === "finished" && response?.status, tries()];
  if (asked !== null) {
    const ago = job.started_at + elapsed() - asked;
    return [ago < 10 ? words.cancelling : say("asked_ago", {time: span(ago, 0)})];
  }
  const {done, total, message} = job.progress ?? {};
  return [
    now !== null && `${Math.floor(now)} %`,
    message,
    total ? say("of", {done: count(done), total: count(total)}) : done !== undefined && count(done),
    job.queue?.position && say("queue", job.queue),
    job.queue?.no_worker_for && say("no_worker", {time: span(job.queue.no_worker_for, 0)}),
    now === null ? usual() : left(now),
    tries(),
  ];
}

function tries() {
  const {retry} = job;
  if (!waits()) return retry?.try > 1 && !over() && say("try", retry);
  const rest = retry.next_in - (performance.now() - shownAt) / 1000;
  return say(rest > 0 ? "retry" : "retry_now", {...retry, next: retry.try + 1, time: span(rest, 0)});
}

function left(now) {
  const [gained, took] = [now - base.percent, elapsed() - base.at];
  return gained >= 1 && took >= 2 && now < 100 && say("left", {time: span((took * (100 - now)) / gained, 0)});
}

function usual() {
  if (!job.estimate) return "";
  const {low, high, runs} = job.estimate;
  const rest = (low + high) / 2 - elapsed();
  const now = rest > 0 ? say("left", {time: span(rest, 0)}) : elapsed() > high && words.longer;
  const last = runs > 1 && say("last", {runs, low: span(low), high: span(high)});
  return [now, last].filter(Boolean).join("; ");
}

function details() {
  const {started_at: started, ended_at: ended} = job;
  const {runner, version, cpu_time} = job.receipt ?? {};
  const rows = {
    started: started && moment(started),
    ended: ended && moment(ended),
    queued: started && span(started - job.created_at),
    took: started && span(elapsed()),
    size: size(job.output.end),
    code: job.response?.status,
    cpu_time,
    runner,
    version,
  };
  const text = (value) => (typeof value === "number" ? span(value) : `${value}`);
  const pairs = Object.entries(rows).filter(([, value]) => value != null);
  $.rows.replaceChildren(...pairs.flatMap(([name, value]) => [made("dt", words[name] ?? name), made("dd", text(value))]));
}

// The end.

function finish() {
  remember(face());
  if (finished) return;
  finished = true;
  const {state, status_code: code, cancel_requested_at: asked, response} = job;
  // A file is saved, and the page stays; what was printed may still be read.
  if (!operator && state === "finished" && asked === null && (early || code < 400) && code !== 204)
    openSoon(early || response.attachment || !job.output.end ? 0 : 5);
  if (!document.hidden || !$.notify.checked) return;
  new Notification(document.title, {body: told(), tag: self}).onclick = () => focus();
}

// Who reads, selects, searches or looks at the details is not to be carried away.
const undisturbed = () =>
  following && getSelection().isCollapsed && !$.search.value && !$.details.open && !$.ask.open;
let touch = () => {};
for (const name of ["pointerdown", "keydown", "wheel"]) addEventListener(name, (event) => touch(event), {passive: true});

async function openSoon(seconds) {
  let touched = false;
  const stay = made("button", words.stay, {onclick: () => wake((touched = true))});
  // Its own press is not the end of it: then there would be nothing left to click.
  if (seconds) touch = ({target}) => target !== stay && stay.onclick();
  await terminal.drawn;
  const stays = () => touched || !undisturbed();
  for (; seconds > 0 && !stays(); document.hidden || seconds--) {
    sign(say("opens", {seconds}), stay);
    await pause(1);
  }
  sign();
  if (stays()) return;
  // Back leads here again: what goes on before all is loaded would take the place of this page.
  if (document.readyState === "complete") location.href = view("result");
  else addEventListener("load", () => setTimeout(() => (location.href = view("result"))));
}

function gone() {
  sign(words.gone);
  show({...job, state: "expired", elapsed: elapsed(), ended_at: job.ended_at ?? undefined});
  $.download.hidden = true;
  remember("expired");
}

// What the reader can do.

$.wrap.onchange = () => screen.classList.toggle("nowrap", !$.wrap.checked);

$.notify.onchange = async () => {
  if ($.notify.checked) $.notify.checked = (await Notification.requestPermission()) === "granted";
};

$.copy.onclick = async () => {
  const link = new URL(self, location).href;
  try {
    await navigator.clipboard.writeText(link);
    $.copy.textContent = words.copied;
  } catch {
    prompt($.copy.textContent, link);
  }
};

function close(but) {
  if (!$.details.contains(but)) $.details.open = false;
  if (!but) $.menu.open = wide.matches;
}

$.cancel.onsubmit = (event) => {
  event.preventDefault();
  $.ask.returnValue = "";
  $.ask.showModal();
};

$.ask.onclose = async () => {
  if (!$.ask.returnValue) return;
  try {
    const answer = await ask(self, {method: "POST", body: new URLSearchParams({_action: "cancel"})});
    show(await answer.json());
    wake();
  } catch {
    sign(words.not_cancelled);
  }
};

// Search: the browser paints what is found, and no element is made for it.

let found = [];
let here = 0;

function paint(name, ranges) {
  CSS.highlights?.set(name, new Highlight(...ranges));
}

$.search.oninput = () => {
  const wanted = $.search.value.toLowerCase();
  found = [];
  if (wanted) for (const chunk of screen.children) find(chunk, wanted);
  paint("job-found", found);
  // The last one first: that is what the reader has in sight.
  here = 0;
  step(-1);
};

function find(chunk, wanted) {
  const text = chunk.textContent.toLowerCase();
  const nodes = document.createTreeWalker(chunk, NodeFilter.SHOW_TEXT);
  let [node, start] = [nodes.nextNode(), 0];
  const place = (at) => {
    while (at > start + node.length) {
      start += node.length;
      node = nodes.nextNode();
    }
    return [node, at - start];
  };
  for (let at = -1; (at = text.indexOf(wanted, at + 1)) >= 0 && found.length < 5000; at += wanted.length - 1) {
    const range = new Range();
    range.setStart(...place(at));
    range.setEnd(...place(at + wanted.length));
    found.push(range);
  }
}

function step(by) {
  const total = found.length;
  here = total && (here + by + total) % total;
  $.matches.textContent = $.search.value && `${total && here + 1}/${total}`;
  paint("job-here", found.slice(here, here + 1));
  if (!total) return;
  let it = found[here].startContainer;
  while (it.number === undefined) it = it.parentNode;
  unfold(it.number);
  reveal(found[here]);
}

$.search.onkeydown = ({key, shiftKey}) => {
  if (key === "Enter") step(shiftKey ? -1 : 1);
};
$.previous.onclick = () => step(-1);
$.next.onclick = () => step(1);

// The jobs of this browser, by their paths on this site: it keeps the list, no server does; mine.js shows it.

const KEPT = "bgmiddleware-jobs";
const own = location.pathname + self;

// No room, or not allowed: what is kept is a convenience.
function store(name, value) {
  try {
    localStorage[name] = value;
  } catch {}
}

function stored(name) {
  try {
    return localStorage[name];
  } catch {}
}

function kept() {
  try {
    return new Map(JSON.parse(stored(KEPT)).filter(([path]) => /^\/(?!\/)/.test(path)));
  } catch {
    return new Map();
  }
}

function remember(state) {
  // The jobs of others are none of his.
  if (operator) return;
  const jobs = kept();
  const {title, at} = jobs.get(own) ?? {title: job.title, at: job.created_at};
  jobs.delete(own);
  if (state !== "expired") jobs.set(own, {title, at, state});
  store(KEPT, JSON.stringify([...jobs].slice(-20)));
}
