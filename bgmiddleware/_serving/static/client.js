// Follow a job of bgmiddleware from a page of your own. This file needs no other, and may be copied.
//
//   const end = await follow(job, { onOutput, onProgress, onEnd, signal });
//
// job: its URL, with the token. onOutput(text): what it prints, in order, once. onProgress(progress, state): whenever its
// state may have changed. onEnd(state): after all of that; the promise has the same state. If the site tries again what
// failed, all tries are followed. signal: of an AbortController; then nothing more is called, and the promise has
// undefined. The promise is rejected if the job is unknown or has expired, or the server is away for a minute.

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

export async function follow(url, { onOutput, onProgress, onEnd, signal } = {}) {
  const job = new URL(url, document.baseURI);
  job.hash = "";
  let offset = 0;
  const view = (name, more = "") => `${job}${job.search ? "" : "?"}&_view=${name}&_offset=${offset}${more}`;
  const told = (text, next) => {
    offset = next;
    if (text && !signal?.aborted) onOutput?.(text);
  };
  const changed = (state) => {
    if (!signal?.aborted) onProgress?.(state.progress, state);
    return state;
  };
  let end = (await streamed()) ?? (await polled());
  while (end.retry && !end.retry.is_over && !signal?.aborted) {
    if (end.rerun_as) return follow(new URL(end.rerun_as, job), { onOutput, onProgress, onEnd, signal });
    await pause(2);
    end = changed(await (await asked("status", "")).json());
  }
  if (signal?.aborted) return undefined;
  onEnd?.(end);
  return end;

  // Has the last state, or null where there is no room for a stream.
  function streamed() {
    return new Promise((resolve) => {
      const source = new EventSource(view("events"));
      const stop = (end) => {
        source.close();
        resolve(end);
      };
      source.onmessage = (event) => told(JSON.parse(event.data).text, Number(event.lastEventId));
      source.addEventListener("status", (event) => changed(JSON.parse(event.data)));
      source.addEventListener("done", (event) => stop(changed(JSON.parse(event.data))));
      source.onerror = () => source.readyState === 2 && stop(null); // 2: it was refused
      signal?.addEventListener("abort", () => stop(null));
      if (signal?.aborted) stop(null);
    });
  }

  async function polled() {
    for (let every = 0; !signal?.aborted; await pause(every)) {
      const answer = await asked("status", `&_wait=10&_every=${every}`);
      const state = changed(await answer.json());
      for (let last = -1; last < offset && offset < state.output.end; ) {
        last = offset;
        const piece = await asked("log");
        told(await piece.text(), Number(piece.headers.get("Job-Next-Offset")));
      }
      if (state.ended_at) return state;
      every = Number(answer.headers.get("Job-Poll")) || 0.1;
    }
  }

  async function asked(name, more) {
    for (const until = Date.now() + 60000; ; ) {
      const answer = await fetch(view(name, more)).catch(() => null);
      if (answer?.ok) return answer;
      if (answer?.status < 502 || Date.now() > until) throw new Error(`no job: ${answer?.status ?? "no answer"}`);
      await pause(Number(answer?.headers.get("Retry-After")) || 1);
    }
  }
}
