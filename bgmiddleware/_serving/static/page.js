// The live page of a job. It is the same document as without a script, so all that is here only adds to it.
const $ = (name) => document.getElementById("job-" + name);
const root = document.getElementById("job");
const {symbols, icon, colours, words, tail, ...given} = JSON.parse($("data").textContent);
let job = given.job;
const links = job.links;
const seenRunning = !over();

function over() {
  return job.ended_at !== null;
}

function say(name, values = {}) {
  return words[name].replace(/\{(\w+)\}/g, (_, key) => values[key]);
}

function made(tag, text, properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  element.textContent = text;
  return element;
}

// Times and sizes, as short as a person would say them.

function span(seconds) {
  if (seconds < 10) return `${Math.max(0, seconds).toFixed(1)} s`;
  const [s, m, h] = [Math.round(seconds) % 60, Math.floor(Math.round(seconds) / 60) % 60, Math.floor(Math.round(seconds) / 3600)];
  return h ? `${h} h ${m} min` : m ? `${m} min ${s} s` : `${s} s`;
}

function size(bytes) {
  const power = bytes < 1000 ? 0 : bytes < 1e6 ? 1 : 2;
  return `${(bytes / 1000 ** power).toLocaleString(undefined, {maximumFractionDigits: 1})} ${["B", "kB", "MB"][power]}`;
}

function count(number) {
  return number.toLocaleString(undefined, {maximumFractionDigits: 2});
}

function moment(at) {
  const time = new Date(at * 1000);
  const today = new Date().toDateString() === time.toDateString();
  return today ? time.toLocaleTimeString() : time.toLocaleString();
}

// Asking the server. All that waits can be woken: by the network's return, or the reader's.

class Gone extends Error {}

async function ask(url, options = {}) {
  const headers = {Accept: "application/json"};
  const answer = await fetch(url, {headers, cache: "no-store", signal: AbortSignal.timeout(30000), ...options});
  // Only our own word counts: what stands in for a server that restarts may say 404 to everything.
  const ours = (answer.headers.get("Content-Type") ?? "").startsWith("application/problem+json");
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
    wake = () => {
      clearTimeout(timer);
      resolve();
    };
  });
}

// The output: one offset in bytes, whichever way they come.

const terminal = new Terminal(made("div", "", {className: "job-text terminal"}), {onprogress: (told) => show({told})});
let decoder = new TextDecoder();
let offset = 0;
let whole = false;
let midline = false;

// What begins behind the offset tells of bytes that are not there any more.
function write(at, text) {
  if (at > offset && !midline) {
    const gap = say("dropped", {bytes: size(at - offset), begin: count(offset), end: count(at)});
    text = `${decoder.decode()}\n\x1b[0;2m[${gap}]\x1b[0m\n${text}`;
  }
  if (midline) text = text.slice(text.indexOf("\n") + 1);
  midline = false;
  terminal.write(text);
}

function begin(at) {
  terminal.clear();
  decoder = new TextDecoder();
  offset = at;
  midline = at > 0;
  $("earlier").hidden = !at;
  $("earlier").replaceChildren(say("earlier", {bytes: size(at)}), " ", made("button", words.load, {onclick: loadAll}));
}

async function read() {
  if (offset > job.output.end) begin(0);
  while (offset < job.output.end) {
    const answer = await ask(`${links.log}&_offset=${offset}`);
    const next = Number(answer.headers.get("Job-Next-Offset"));
    const bytes = await answer.arrayBuffer();
    write(Number(answer.headers.get("Job-Offset")), decoder.decode(bytes, {stream: true}));
    if (next <= offset) break;
    offset = next;
  }
}

function loadAll() {
  whole = true;
  this.textContent = words.loading;
  wake();
  if (over()) live();
}

// The end of the output stays in sight until the reader scrolls away from it, and again when they come back.

const pane = $("output");
let following = true;
let lastTop = 0;

function toEnd() {
  pane.scrollTop = pane.scrollHeight;
}

function follow(wanted) {
  following = $("follow").checked = wanted;
  $("end").hidden = wanted;
  if (wanted) toEnd();
}

pane.addEventListener("scroll", () => {
  const left = pane.scrollHeight - pane.scrollTop - pane.clientHeight;
  if (left < 30) {
    // Not where it only became shorter.
    if (!following && pane.scrollTop > lastTop) follow(true);
  } else if (pane.scrollTop < lastTop - 1) follow(false);
  lastTop = pane.scrollTop;
});
new ResizeObserver(() => following && toEnd()).observe(terminal.element);
new ResizeObserver(() => following && toEnd()).observe(pane);
$("follow").onchange = (event) => follow(event.target.checked);
$("end").onclick = () => {
  follow(true);
  pane.focus();
};

// Transport: a stream while there is one to have, else looks at the pace that the server sets.

let every = 0;
let pace = 1;
let quiet = 0;
let streamAfter = 0;

async function look() {
  const answer = await ask(`${links.status}&_every=${every.toFixed(2)}`);
  pace = Number(answer.headers.get("Job-Poll")) || pace;
  const before = job.output.end;
  show({job: await answer.json()});
  quiet = job.output.end > before ? 0 : quiet + 1;
}

function waiting() {
  const calm = Math.min(Math.max(pace, 5), pace * 1.3 ** quiet);
  return (document.hidden ? Math.max(calm, 5) : calm) * (0.9 + Math.random() / 5);
}

function stream() {
  return new Promise((resolve) => {
    const source = new EventSource(`${links.events}&_offset=${offset}`);
    let opened = false;
    const leave = () => {
      source.close();
      clearTimeout(timer);
      resolve(opened);
    };
    // The server ends a stream after 20 seconds; this is for a connection that died without a word.
    const timer = setTimeout(leave, 30000);
    wake = leave;
    source.onopen = () => {
      opened = true;
    };
    source.onmessage = (event) => {
      const {offset: at, text} = JSON.parse(event.data);
      write(at, decoder.decode() + text);
      offset = Number(event.lastEventId);
    };
    source.addEventListener("status", (event) => show({job: JSON.parse(event.data)}));
    source.addEventListener("done", leave);
    source.onerror = () => {
      if (!opened) streamAfter = performance.now() + 15000;
      leave();
    };
  });
}

// One stream for all tabs of a browser, which has six connections to a host in all.
async function streamed() {
  if (document.hidden || performance.now() < streamAfter) return false;
  if (!navigator.locks) return stream();
  return navigator.locks.request("bgmiddleware", {ifAvailable: true}, (lock) => lock !== null && stream());
}

async function live() {
  let failures = 0;
  for (;;) {
    try {
      await look();
      if (whole && !$("earlier").hidden) begin(0);
      await read();
      terminal.drawn.then(takeOver);
      failures = 0;
      sign();
      if (over()) return finish();
      if (!(await streamed())) {
        every = waiting();
        await pause(every);
      }
    } catch (error) {
      if (error instanceof Gone) return gone();
      sign(words.reconnecting);
      await pause(Math.min(20, 2 ** failures++) * (0.75 + Math.random() / 2));
    }
  }
}

function gone() {
  sign(words.gone);
  badge("expired");
  $("cancel").hidden = $("result").hidden = true;
  $("progress").hidden = true;
  clearInterval(ticking);
  remember("expired");
}

// What is known of the job, shown.

let told = null;
let shownAt = performance.now();
let base = {at: 0, percent: 0};
let announced = 0;

// From now on the terminal shows the output, and not what the server made of it.
function takeOver() {
  if (terminal.element.isConnected) return;
  $("text").replaceWith(terminal.element);
  terminal.element.id = "job-text";
  root.classList.add("job-live");
  toEnd();
}

function sign(text, ...more) {
  $("sign").replaceChildren(text ?? "", ...more);
  $("sign").hidden = !text;
}

function badge(state) {
  root.dataset.state = state;
  $("badge").textContent = `${symbols[state]} ${words.states[state]}`;
  $("icon").href = icon.replace("COLOUR", colours[state]).replace("SYMBOL", encodeURIComponent(symbols[state]));
}

function elapsed() {
  return job.elapsed + (over() || job.started_at === null ? 0 : (performance.now() - shownAt) / 1000);
}

function percent() {
  return job.progress ? job.progress.percent : (told?.percent ?? null);
}

function left() {
  const now = percent();
  if (now === null) return fromEarlier();
  const gained = now - base.percent;
  const took = elapsed() - base.at;
  return gained >= 1 && took >= 2 && now < 100 ? say("left", {time: span((took * (100 - now)) / gained)}) : "";
}

function fromEarlier() {
  if (!job.estimate || job.started_at === null) return "";
  const {low, high, runs} = job.estimate;
  const usual = say(runs > 1 ? "last" : "last_one", {runs, low: span(low), high: span(high)});
  const rest = (low + high) / 2 - elapsed();
  return `${rest > 0 ? say("left", {time: span(rest)}) : elapsed() > high ? words.longer : ""}; ${usual}`.replace(/^; /, "");
}

function note() {
  if (over()) return [job.cancel_requested_at && job.state !== "cancelled" ? words.asked : "", job.reason];
  if (job.cancel_requested_at !== null) return [words.cancelling];
  const {done, total, message} = job.progress ?? {};
  const counted = total ? say("of", {done: count(done), total: count(total)}) : done === undefined ? "" : count(done);
  const queue = job.queue?.position ? say("queue", {position: job.queue.position}) : "";
  return [message, counted, told && !job.progress ? told.text : "", queue, left()];
}

function show(news) {
  const before = percent();
  if (news.job) shownAt = performance.now();
  ({job = job, told = told} = news);
  const now = percent();
  // What begins anew, a second bar say, is estimated anew.
  if (now !== null && (before === null || now < before)) base = job.progress ? {at: 0, percent: 0} : {at: elapsed(), percent: now};
  badge(job.state);
  $("cancel").hidden = over() || job.cancel_requested_at !== null;
  $("result").hidden = !hasResult();
  $("progress").hidden = over();
  $("notify").parentElement.hidden = over() || !("Notification" in window);
  $("nothing").hidden = job.output.end > 0;
  $("nothing").textContent = over() ? words.empty : words.nothing;
  if (now === null) $("progress").removeAttribute("value");
  else $("progress").value = now;
  tick();
  details();
  const step = over() ? 100 : Math.floor((now ?? 0) / 25) * 25;
  if (seenRunning && step > announced) {
    announced = step;
    $("status").textContent = over() ? words.states[job.state] : `${step} %`;
  }
}

function tick() {
  const now = percent();
  const shown = over() || now === null ? symbols[job.state] : `${Math.floor(now)}%`;
  document.title = `${shown} ${job.title}`;
  $("time").textContent = job.started_at === null ? "" : span(elapsed());
  $("time").title = moment(job.started_at ?? job.created_at);
  $("note").textContent = note().filter(Boolean).join(" · ");
}

const ticking = setInterval(() => over() || tick(), 1000);

function details() {
  const receipt = job.receipt ?? {};
  const rows = {
    started: job.started_at && moment(job.started_at),
    ended: job.ended_at && moment(job.ended_at),
    queued: job.started_at && span(job.started_at - job.created_at),
    took: job.started_at && span(elapsed()),
    size: size(job.output.end),
    code: job.status_code,
    ...receipt,
  };
  const shown = Object.entries(rows).filter(([, value]) => value !== null && value !== undefined);
  const text = (name, value) => (typeof value === "number" && name in receipt ? span(value) : String(value));
  $("details").lastElementChild.replaceChildren(
    ...shown.flatMap(([name, value]) => [made("dt", words[name] ?? name), made("dd", text(name, value))]),
  );
}

// The end.

let finished = false;

function hasResult() {
  return job.state === "finished" || (job.state === "failed" && job.status_code >= 500);
}

function finish() {
  remember(job.state);
  if (!seenRunning || finished) return;
  finished = true;
  if (document.hidden && $("notify").checked) {
    const notification = new Notification(document.title, {body: words.states[job.state], tag: links.self});
    notification.onclick = () => focus();
  }
  if (job.state === "finished" && job.status_code < 400 && job.status_code !== 204) openSoon(5);
}

// Whoever reads, selects or searches is not to be carried away.
function undisturbed() {
  return following && getSelection().isCollapsed && !$("search").value && !$("ask").open;
}

async function openSoon(seconds) {
  let stays = false;
  const stay = () => {
    stays = true;
    wake();
  };
  while (seconds > 0 && !stays && undisturbed()) {
    sign(say("opens", {seconds}), made("button", words.stay, {onclick: stay}));
    await pause(1);
    if (!document.hidden) seconds--;
  }
  sign();
  if (!stays && undisturbed()) location.replace(links.result);
}

// What the reader can do.

$("wrap").onchange = () => root.classList.toggle("job-wrapped", $("wrap").checked);

$("notify").onchange = async (event) => {
  event.target.checked &&= (await Notification.requestPermission()) === "granted";
};

$("copy").onclick = async (event) => {
  const link = new URL(links.self, location).href;
  try {
    await navigator.clipboard.writeText(link);
    event.target.textContent = words.copied;
  } catch {
    prompt(words.copy, link);
  }
};

$("cancel").onsubmit = (event) => {
  event.preventDefault();
  $("ask").returnValue = "";
  $("ask").showModal();
};

$("ask").onclose = async () => {
  if ($("ask").returnValue !== "cancel") return;
  try {
    show({job: await (await ask(links.cancel, {method: "DELETE"})).json()});
    wake();
  } catch {
    sign(words.not_cancelled);
  }
};

// Search: all matches are painted by the browser, and no element is made for them.

let ranges = [];
let here = -1;

function search() {
  const wanted = $("search").value.toLowerCase();
  ranges = [];
  here = -1;
  if (wanted) for (const chunk of terminal.element.children) find(chunk, wanted);
  CSS.highlights?.set("job-found", new Highlight(...ranges));
  if (ranges.length) step(-1);
  else matches();
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
  for (let at = text.indexOf(wanted); at >= 0 && ranges.length < 5000; at = text.indexOf(wanted, at + wanted.length)) {
    const range = new Range();
    range.setStart(...place(at));
    range.setEnd(...place(at + wanted.length));
    ranges.push(range);
  }
}

function matches() {
  $("matches").textContent = $("search").value && say("matches", {at: here + 1, count: ranges.length});
}

function step(by) {
  if (!ranges.length) return;
  here = here < 0 && by < 0 ? ranges.length - 1 : (here + by + ranges.length) % ranges.length;
  follow(false);
  CSS.highlights?.set("job-here", new Highlight(ranges[here]));
  // Twice: what is near is laid out only when it comes near.
  for (const _ of [1, 2]) pane.scrollTop += ranges[here].getBoundingClientRect().top - pane.getBoundingClientRect().top - pane.clientHeight / 3;
  matches();
}

$("search").oninput = search;
$("search").onkeydown = (event) => event.key === "Enter" && step(event.shiftKey ? -1 : 1);
$("previous").onclick = () => step(-1);
$("next").onclick = () => step(1);

// The jobs of this browser: it keeps the list, no server does.

const KEPT = "bgmiddleware-jobs";
const own = location.pathname + links.self;

function remembered() {
  try {
    return JSON.parse(localStorage.getItem(KEPT)).filter(({href}) => new URL(href, location).origin === location.origin);
  } catch {
    return [];
  }
}

function remember(state, href = own) {
  const others = remembered().filter((other) => other.href !== href);
  const kept = {href, title: job.title, at: job.created_at, ...remembered().find((other) => other.href === href), state};
  try {
    localStorage.setItem(KEPT, JSON.stringify((state === "expired" ? others : [kept, ...others]).slice(0, 20)));
  } catch {
    // No room, or not allowed: the list is a convenience.
  }
}

async function mine() {
  if (!$("mine").open) return;
  for (const {href, state} of remembered().filter((other) => other.href !== own)) {
    try {
      const now = state === "expired" ? state : (await (await ask(`${href}&_view=status`)).json()).state;
      remember(now, href);
    } catch (error) {
      if (error instanceof Gone) remember("expired", href);
    }
  }
  listed();
}

function listed() {
  const rows = remembered().filter((other) => other.href !== own).sort((a, b) => b.at - a.at).map(({href, title, at, state}) => {
    const row = made("li", `${symbols[state]} `);
    row.append(made("a", title, {href}), made("span", moment(at), {className: "job-dim"}));
    return row;
  });
  $("mine").lastElementChild.replaceChildren(...(rows.length ? rows : [made("li", words.none)]));
}

$("mine").ontoggle = () => {
  listed();
  mine();
};

// Begin.

root.classList.add("job-scripted", "job-wrapped");
const wide = matchMedia("(min-width: 44rem)");
const fold = () => ($("menu").open = wide.matches);
wide.addEventListener("change", fold);
fold();
addEventListener("click", (event) => {
  for (const open of root.querySelectorAll(".job-fold[open]")) if (!open.contains(event.target)) open.open = false;
});
remember(job.state);
begin(Math.max(0, job.output.end - tail));
show({job});
live();
pane.focus({preventScroll: true});
