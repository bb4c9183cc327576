// The jobs of this browser, which keeps their list by itself: a line each, looked at until it has ended.
const NAME = "bgmiddleware-jobs";
// Of an owner the server has the list: then it is asked for again and again.
const list = document.getElementById("mine");
const {words, looks} = JSON.parse(list?.dataset.said ?? "{}");
const rows = new Map();

function known() {
  try {
    return new Map(JSON.parse(localStorage[NAME]).filter(([path]) => /^\/(?![/\\])/.test(path)));
  } catch {
    return new Map();
  }
}

// Another tab may have changed the list since.
function remember(path, state) {
  const jobs = known();
  if (state === "expired") jobs.delete(path);
  else if (jobs.has(path)) jobs.set(path, {...jobs.get(path), state});
  try {
    localStorage[NAME] = JSON.stringify([...jobs]);
  } catch {
    // What is kept is a convenience.
  }
}

function show(path, {title, at, state}, status) {
  const look = status?.state === "finished" && status.status_code >= 400 ? "refused" : (status?.state ?? state);
  const [symbol, , word] = looks[look] ?? ["", "", look];
  const row = made("li", "");
  const badge = made("span", `${symbol} ${word}`, {className: "job-badge"});
  badge.dataset.job = look;
  row.append(badge, " ", made("a", status?.title ?? title, {href: path}), " ");
  const percent = status?.progress?.percent;
  if (status && !status.ended_at && percent != null) {
    row.append(Object.assign(document.createElement("progress"), {max: 100, value: percent}), " ");
  }
  row.append(made("time", new Date(at * 1000).toLocaleString(), {}));
  if (status?.response) row.append(" ", made("a", words.result, {href: `${path}&_view=result`}));
  const before = rows.get(path);
  if (before) before.row.replaceWith(row);
  else list.prepend(row);
  rows.set(path, {row, state: look});
}

const runs = ({state}) => state === "running" || state === "pending";

async function look(path, job) {
  const answer = await fetch(`${path}&_view=status`, {headers: {Accept: "application/json"}});
  const ours = answer.headers.get("Content-Type")?.includes("problem+json");
  if (ours && /404|410/.test(answer.status)) {
    show(path, {...job, state: "expired"});
    remember(path, "expired");
  } else if (answer.ok) {
    show(path, job, await answer.json());
    remember(path, rows.get(path).state);
  }
  return Number(answer.headers.get("Job-Poll"));
}

async function round(first) {
  const jobs = [...known()];
  let pace = 2;
  for (const [path, job] of jobs) if (!rows.has(path)) show(path, job);
  for (const [path, job] of jobs) {
    if (first || runs(rows.get(path))) pace = Math.max(pace, await look(path, job).catch(() => 5));
    tell();
  }
  return pace;
}

function tell() {
  const count = [...rows.values()].filter(runs).length;
  document.title = count ? `(${count}) ${words.mine}` : words.mine;
  document.getElementById("none").hidden = rows.size > 0;
}

async function run() {
  for (let first = true; ; first = false) {
    const pace = document.hidden ? 2 : await round(first);
    await new Promise((done) => setTimeout(done, 1000 * pace));
  }
}
async function renew() {
  const live = document.getElementById("live");
  await new Promise((done) => setTimeout(done, 1000 * Number(live.dataset.every)));
  if (document.hidden || live.contains(document.activeElement) || !getSelection().isCollapsed) return;
  const answer = await fetch(location.href, {headers: {Accept: "text/html"}});
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  document.title = page.title;
  live.replaceWith(page.getElementById("live"));
}

async function follow() {
  for (;;) await renew().catch(() => {});
}

if (list) {
  tell();
  run();
} else follow();
