// Keeps the list up to date, at the pace that the server says; not while somebody selects, types or looks away.
const name = "live";
const live = () => document.getElementById(name);
const busy = () =>
  document.hidden || live().querySelector("input:checked, details[open]") !== null || live().contains(document.activeElement) ||
  !getSelection().isCollapsed;
async function renew() {
  if (busy()) return;
  const answer = await fetch(location.href, {headers: {accept: "text/html"}});
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const fresh = page.getElementById(name);
  if (!fresh || busy()) return;
  document.title = page.title;
  live().replaceWith(fresh);
}
async function run() {
  for (;;) {
    await new Promise((done) => setTimeout(done, 1000 * Number(live().dataset.every)));
    try {
      await renew();
    } catch {
      // The server is away; the next time.
    }
  }
}
run();
