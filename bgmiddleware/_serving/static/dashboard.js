// Keeps the list up to date: by events while the server has room for one more who listens, else at the pace that it says.
// Not while somebody selects or types, nor while nobody looks.
const find = (name) => document.getElementById(name);
const live = () => find("live");
const pace = find("pace");
const view = (name) => {
  const url = new URL(location.href);
  url.searchParams.set("_view", name);
  return url;
};
const until = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
const seen = () => new Promise((done) => document.hidden ? document.addEventListener("visibilitychange", done, {once: true}) : done());
let every = Number(pace.dataset.every);
let word = "";
let fresh = null;

const busy = () => {
  const focused = document.activeElement;
  return live().querySelector("input:checked") !== null || !getSelection().isCollapsed ||
    (live().contains(focused) && focused.tabIndex >= 0 && focused.getAttribute("role") !== "region");
};
// Only what differs is replaced: what stays keeps its focus, and how far it was scrolled.
function replace(old, now) {
  if (old.isEqualNode(now)) return;
  const parts = [...old.children];
  const others = [...now.children];
  const alike = parts.length && parts.length === others.length && parts.every((part, number) => part.tagName === others[number].tagName);
  if (alike && !["TR", "P", "LI", "svg"].includes(old.tagName)) parts.forEach((part, number) => replace(part, others[number]));
  else old.replaceWith(now);
}
function show() {
  const paused = busy();
  if (fresh && !paused) {
    replace(live(), fresh);
    fresh = null;
  }
  pace.hidden = false;
  const text = paused ? pace.dataset.paused : word;
  if (pace.textContent !== text) pace.textContent = text;
}
function take(html) {
  fresh = new DOMParser().parseFromString(html, "text/html").getElementById("live");
  show();
}
// Resolves when there are no events to be had: no slot is free, or nobody looks, who shall hold none.
function listen() {
  return new Promise((done) => {
    const source = new EventSource(view("events"));
    const end = () => {
      source.close();
      document.removeEventListener("visibilitychange", end);
      done();
    };
    document.addEventListener("visibilitychange", end);
    source.onmessage = (event) => {
      word = pace.dataset.live;
      take(JSON.parse(event.data).html);
    };
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) end();
    };
  });
}
async function poll() {
  const url = view("live");
  url.searchParams.set("_every", every);
  const answer = await fetch(url, {headers: {accept: "text/html"}});
  if (!answer.ok) return;
  every = Number(answer.headers.get("Job-Poll")) || every;
  word = pace.dataset.paced.replace("{seconds}", Math.round(every));
  take(await answer.text());
}
async function run() {
  for (;;) {
    await seen();
    await listen();
    for (const begun = Date.now(); Date.now() - begun < 60000 && !document.hidden;) {
      await until(every);
      try {
        if (!document.hidden) await poll();
      } catch {
        // The server is away; the next time.
      }
    }
  }
}
for (const name of ["selectionchange", "change", "focusin", "focusout", "toggle"]) document.addEventListener(name, () => setTimeout(show), true);
run();
