// The live page of a job. The document says all of it without a script too; this keeps it up to date.
const $ = new Proxy({}, {get: (_, name) => document.getElementById("job-" + name)});
const root = document.getElementById("job");
const {looks, icon, words, tail, ...given} = JSON.parse($.data.textContent);
let job = given.job;
const links = job.links;
const over = () => job.ended_at !== null;
const seenLive = !over();

// What is said.

const say = (name, values) => words[name].replace(/\{(\w+)\}/g, (_, key) => values[key]);

// What turns the direction of text is shown, as in the output: "gpj.exe" is not to be read as "exe.jpg".
function plain(text) {
  return text
    .replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (mark) => `[U+${mark.charCodeAt().toString(16)}]`)
    .replace(/[\0-\x1f\x7f-\x9f]/g, "");
}

function made(tag, text, properties) {
  const element = Object.assign(document.createElement(tag), properties);
  element.textContent = plain(text);
  return element;
}

const count = (number, digits = 2) => number.toLocaleString(undefined, {maximumFractionDigits: digits});

function size(bytes) {
  const power = bytes < 1e3 ? 0 : bytes < 1e6 ? 1 : 2;
  return `${count(bytes / 1e3 ** power, 1)} ${["B", "kB", "MB"][power]}`;
}

function span(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  const minutes = Math.floor(whole / 60);
  if (!minutes) return `${whole} s`;
  return minutes < 60 ? `${minutes} min ${whole % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function moment(at) {
  const time = new Date(at * 1000);
  return time.toDateString() === new Date().toDateString() ? time.toLocaleTimeString() : time.toLocaleString();
}

// Asking the server. Who waits can be woken: when the network is there again, when the reader comes or goes.

class Gone extends Error {}

async function ask(url, options) {
  const headers = {Accept: "application/json"};
  const answer = await fetch(url, {headers, cache: "no-store", signal: AbortSignal.timeout(30000), ...options});
  // Only our own word counts: what stands in for a server that restarts may say 404 to everything.
  const ours = answer.headers.get("Content-Type")?.startsWith("application/problem+json");
  if (ours && [404, 410].includes(answer.status)) throw new Gone();
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

const screen = made("div", "", {id: "job-text", className: "job-text"});
const terminal = new Terminal(screen, {
  onprogress: (read) => show(job, read),
  earlier: (lines) => say("lines", {lines: count(lines)}),
});
let decoder;
let offset;
let midline;

function begin(at) {
  terminal.clear();
  decoder = new TextDecoder();
  offset = at;
  midline = at > 0;
  $.earlier.hidden = !at;
  $.earlier.replaceChildren(say("earlier", {bytes: size(at)}), " ", made("button", words.load, {onclick: loadAll}));
}

// What begins behind the offset tells of bytes that are not there any more.
function write(at, text) {
  if (midline) text = text.slice(text.indexOf("\n") + 1);
  else if (at > offset) {
    const gap = say("dropped", {bytes: size(at - offset), begin: count(offset), end: count(at)});
    text = `${decoder.decode()}\n\x1b[0;2m[${gap}]\x1b[0m\n${text}`;
  }
  midline = false;
  terminal.write(text);
}

async function read() {
  if (offset > job.output.end) begin(0);
  while (offset < job.output.end) {
    const answer = await ask(`${links.log}&_offset=${offset}`);
    const bytes = await answer.arrayBuffer();
    write(Number(answer.headers.get("Job-Offset")), decoder.decode(bytes, {stream: true}));
    const next = Number(answer.headers.get("Job-Next-Offset"));
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
  toEnd();
}

let whole = false;

function loadAll(event) {
  whole = true;
  event.target.textContent = words.loading;
  if (over()) live();
  else wake();
}

// The end stays in sight until the reader scrolls away from it, and again when they come back to it.

const pane = $.output;
let following = true;
let lastTop = 0;

function toEnd() {
  if (following) pane.scrollTop = pane.scrollHeight;
}

function follow(wanted) {
  following = $.follow.checked = wanted;
  $.end.hidden = wanted;
  toEnd();
}

pane.onscroll = () => {
  const [top, before] = [pane.scrollTop, lastTop];
  const below = pane.scrollHeight - top - pane.clientHeight;
  lastTop = top;
  if (top > before && below < 30) follow(true);
  // Not where the output only became shorter.
  else if (top < before && below >= 30) follow(false);
};
const sizes = new ResizeObserver(toEnd);
sizes.observe(screen);
sizes.observe(pane);
$.follow.onchange = () => follow($.follow.checked);
$.end.onclick = () => {
  follow(true);
  pane.focus();
};

// The keys that scroll do so wherever the reader is, but for the places that need them.
addEventListener("keydown", (event) => {
  const scrolls = /^(Arrow(Up|Down)|Page|Home|End)/.test(event.key);
  if (scrolls && document.activeElement === document.body) pane.focus({preventScroll: true});
});

// Transport: a stream while there is one to have, else looks at the pace that the server sets.

let waited = 0;
let pace = 1;
let quiet = 0;
let streamAfter = 0;

async function look() {
  const answer = await ask(links.status + (waited === null ? "" : `&_every=${waited.toFixed(2)}`));
  pace = Number(answer.headers.get("Job-Poll")) || pace;
  const before = job.output.end;
  show(await answer.json());
  quiet = job.output.end > before ? 0 : quiet + 1;
}

function interval() {
  const calm = Math.min(Math.max(pace, 5), pace * 1.3 ** quiet);
  return (document.hidden ? Math.max(calm, 5) : calm) * (0.9 + Math.random() / 5);
}

function stream() {
  return new Promise((resolve) => {
    const source = new EventSource(`${links.events}&_offset=${offset}`);
    let opened = false;
    wake = () => {
      source.close();
      clearTimeout(timer);
      resolve(opened);
    };
    // The server ends a stream after 20 seconds; this is for a connection that died without a word.
    const timer = setTimeout(wake, 30000);
    source.onopen = () => (opened = true);
    source.onmessage = (event) => {
      const {offset: at, text} = JSON.parse(event.data);
      write(at, decoder.decode() + text);
      offset = Number(event.lastEventId);
    };
    source.addEventListener("status", (event) => show(JSON.parse(event.data)));
    source.addEventListener("done", wake);
    source.onerror = () => {
      if (!opened) streamAfter = performance.now() + 15000;
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
      failures = 0;
      sign("");
      if (over()) return finish();
      waited = (await streamed()) ? null : interval();
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
let shownAt;
let base = {at: 0, percent: 0};
let announced = 0;

const percent = () => (job.progress ? job.progress.percent : (bar?.percent ?? null));
const elapsed = () => job.elapsed + (over() || job.started_at === null ? 0 : (performance.now() - shownAt) / 1000);

function show(news, read = bar) {
  const before = percent();
  if (news !== job) shownAt = performance.now();
  [job, bar] = [news, read];
  const now = percent();
  // What begins anew, a second bar say, is estimated anew.
  if (now < before || before === null) base = job.progress ? {at: 0, percent: 0} : {at: elapsed(), percent: now};
  badge(job.state);
  $.cancel.hidden = over() || job.cancel_requested_at !== null;
  $.result.hidden = job.state !== "finished" && !(job.state === "failed" && job.status_code >= 500);
  const part = job.state === "finished" ? 100 : over() ? (now ?? 0) : now;
  if (part === null) $.progress.removeAttribute("value");
  else $.progress.value = part;
  $.notify.parentElement.hidden = over() || !window.Notification;
  $.nothing.hidden = job.output.end > 0;
  $.nothing.textContent = over() ? words.empty : words.nothing;
  tick();
  details();
  const step = over() ? 100 : Math.min(75, Math.floor(now / 25) * 25);
  if (seenLive && step > announced) {
    announced = step;
    $.status.textContent = over() ? words.states[job.state] : `${step} %`;
  }
}

function badge(state) {
  root.dataset.job = state;
  const [symbol, colour] = looks[state];
  $.badge.textContent = `${symbol} ${words.states[state]}`;
  $.icon.href = icon.replace("STATE", state).replace("COLOUR", colour).replace("SYMBOL", symbol);
}

function sign(text, ...more) {
  $.sign.replaceChildren(text, ...more);
  $.sign.hidden = !text;
}

function tick() {
  const shown = over() || percent() === null ? looks[job.state][0] : `${Math.floor(percent())}%`;
  document.title = plain(`${shown} ${job.title}`);
  $.time.textContent = job.started_at === null ? "" : span(elapsed());
  $.time.title = moment(job.started_at ?? job.created_at);
  $.note.textContent = plain(note().filter(Boolean).join(" · "));
}

setInterval(() => over() || tick(), 1000);

function note() {
  if (over()) return [job.cancel_requested_at && job.state !== "cancelled" ? words.asked : "", job.reason];
  if (job.cancel_requested_at !== null) return [words.cancelling];
  const now = percent();
  const {done, total, message} = job.progress ?? {};
  return [
    now !== null && `${Math.floor(now)} %`,
    message,
    total ? say("of", {done: count(done), total: count(total)}) : done !== undefined && count(done),
    job.queue?.position && say("queue", job.queue),
    now === null ? usual() : left(now),
  ];
}

function left(now) {
  const [gained, took] = [now - base.percent, elapsed() - base.at];
  return gained >= 1 && took >= 2 && now < 100 && say("left", {time: span((took * (100 - now)) / gained)});
}

function usual() {
  if (!job.estimate) return "";
  const {low, high, runs} = job.estimate;
  const rest = (low + high) / 2 - elapsed();
  const now = rest > 0 ? `${say("left", {time: span(rest)})}; ` : elapsed() > high ? `${words.longer}; ` : "";
  return now + say(runs > 1 ? "last" : "last_one", {runs, low: span(low), high: span(high)});
}

function details() {
  const {started_at: started, ended_at: ended, receipt = {}} = job;
  const rows = {
    started: started && moment(started),
    ended: ended && moment(ended),
    queued: started && span(started - job.created_at),
    took: started && span(elapsed()),
    size: size(job.output.end),
    code: job.status_code,
    ...receipt,
  };
  const said = (name, value) => (name in receipt && typeof value === "number" ? span(value) : `${value}`);
  const pairs = Object.entries(rows).filter(([, value]) => value !== null);
  $.details.lastElementChild.replaceChildren(
    ...pairs.flatMap(([name, value]) => [made("dt", words[name] ?? name), made("dd", said(name, value))]),
  );
}

// The end.

let finished = !seenLive;

function finish() {
  remember(job.state);
  if (finished) return;
  finished = true;
  if (document.hidden && $.notify.checked) {
    new Notification(document.title, {body: words.states[job.state], tag: links.self}).onclick = () => focus();
  }
  if (job.state === "finished" && job.status_code < 400 && job.status_code !== 204) openSoon(5);
}

// Who reads, selects or searches is not to be carried away.
const undisturbed = () => following && getSelection().isCollapsed && !$.search.value;

async function openSoon(seconds) {
  let stays = false;
  const stay = made("button", words.stay, {onclick: () => wake((stays = true))});
  while (seconds > 0 && !stays && undisturbed()) {
    sign(say("opens", {seconds}), stay);
    await pause(1);
    if (!document.hidden) seconds--;
  }
  sign("");
  if (!stays && undisturbed()) location.replace(links.result);
}

function gone() {
  sign(words.gone);
  badge("expired");
  $.cancel.hidden = $.result.hidden = true;
  remember("expired");
}

// What the reader can do.

$.wrap.onchange = () => screen.classList.toggle("nowrap", !$.wrap.checked);

$.notify.onchange = async () => {
  if ($.notify.checked) $.notify.checked = (await Notification.requestPermission()) === "granted";
};

$.copy.onclick = async () => {
  const link = new URL(links.self, location).href;
  try {
    await navigator.clipboard.writeText(link);
    $.copy.textContent = words.copied;
  } catch {
    prompt(words.copy, link);
  }
};

$.cancel.onsubmit = (event) => {
  event.preventDefault();
  $.ask.returnValue = "";
  $.ask.showModal();
};

$.ask.onclose = async () => {
  if (!$.ask.returnValue) return;
  try {
    const answer = await ask(links.cancel, {method: "POST", body: new URLSearchParams({_action: "cancel"})});
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

function search() {
  const wanted = $.search.value.toLowerCase();
  found = [];
  if (wanted) for (const chunk of screen.children) find(chunk, wanted);
  paint("job-found", found);
  here = 0;
  step(-1);
}

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
  for (let at = text.indexOf(wanted); at >= 0 && found.length < 5000; at = text.indexOf(wanted, at + wanted.length)) {
    const range = new Range();
    range.setStart(...place(at));
    range.setEnd(...place(at + wanted.length));
    found.push(range);
  }
}

// The last one first: that is what the reader has in sight.
function step(by) {
  here = found.length && (here + by + found.length) % found.length;
  $.matches.textContent = $.search.value && say("matches", {at: found.length && here + 1, count: found.length});
  paint("job-here", found.slice(here, here + 1));
  if (!found.length) return;
  follow(false);
  // Twice: what is far away is laid out only when it comes near.
  for (let times = 2; times--; ) {
    pane.scrollTop += found[here].getBoundingClientRect().top - pane.getBoundingClientRect().top - pane.clientHeight / 3;
  }
}

$.search.oninput = search;
$.search.onkeydown = (event) => {
  if (event.key === "Enter") step(event.shiftKey ? -1 : 1);
};
$.previous.onclick = () => step(-1);
$.next.onclick = () => step(1);

// The jobs of this browser: it keeps the list, no server does.

const KEPT = "bgmiddleware-jobs";
const own = location.pathname + links.self;

function kept() {
  try {
    return JSON.parse(localStorage[KEPT]).filter(({href}) => new URL(href, location).origin === location.origin);
  } catch {
    return [];
  }
}

function remember(state, href = own) {
  const before = kept();
  const others = before.filter((other) => other.href !== href);
  const {title, at} = before.find((other) => other.href === href) ?? {title: job.title, at: job.created_at};
  if (state !== "expired") others.unshift({href, title, at, state});
  try {
    localStorage[KEPT] = JSON.stringify(others.slice(0, 20));
  } catch {
    // No room, or not allowed: the list is a convenience.
  }
}

const others = () => kept().filter(({href}) => href !== own);

function listJobs() {
  const rows = others().map(({href, title, at, state}) => {
    const row = made("li", `${looks[state][0]} `);
    row.append(made("a", title, {href}), made("span", moment(at), {className: "job-dim"}));
    return row;
  });
  $.mine.lastElementChild.replaceChildren(...(rows.length ? rows : [made("li", words.none)]));
}

$.mine.ontoggle = async () => {
  listJobs();
  if (!$.mine.open) return;
  for (const {href} of others().reverse()) {
    try {
      const answer = await ask(`${href}&_view=status`);
      remember((await answer.json()).state, href);
    } catch (error) {
      if (error instanceof Gone) remember("expired", href);
    }
  }
  listJobs();
};

// Begin.

const wide = matchMedia("(min-width: 44rem)");
wide.onchange = () => ($.menu.open = wide.matches);
wide.onchange();
addEventListener("click", (event) => {
  for (const fold of root.querySelectorAll(".job-fold[open]")) fold.open = fold.contains(event.target);
});
root.classList.add("job-scripted");
$.wrap.onchange();
remember(job.state);
begin(Math.max(0, job.output.end - tail));
show(job);
live();
