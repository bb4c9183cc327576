// Follow a job of bgmiddleware from your own page. It needs no other file.
//
//   const end = await follow(job, { onOutput, onProgress, onEnd, signal });
//
// job: its URL with the token; its retries follow. onOutput(text): what it prints, in order, once.
// onProgress(progress, state): its state may have changed. onEnd(state): after all that; so has the promise, but
// undefined if signal aborts; it rejects if the job is unknown, or the server away for a minute.

const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

export async function follow(url, options = {}) {
  const { onOutput, onProgress, onEnd, signal } = options;
  const job = new URL(url, document.baseURI);
  job.hash = "";
  const gone = () => signal?.aborted;
  let offset = 0;
  const view = (name, more = "") => `${job}${job.search ? "" : "?"}&_view=${name}&_offset=${offset}${more}`;
  const told = (text, next) => {
    offset = next;
    if (text && !gone()) onOutput?.(text);
  };
  const changed = (state) => {
    if (!gone()) onProgress?.(state.progress, state);
    return state;
  };
  let end = (await streamed()) ?? (await polled());
  while (!gone() && end.retry && !end.retry.is_over) {
    if (end.rerun_as) return follow(new URL(end.rerun_as, job), options);
    await pause(2);
    end = await polled();
  }
  if (gone()) return;
  onEnd?.(end);
  return end;

  // null: no room for a stream.
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
      source.onerror = () => source.readyState === 2 && stop(null);
      signal?.addEventListener("abort", () => stop(null));
      if (gone()) stop(null);
    });
  }

  async function polled() {
    for (let every = 0; !gone(); await pause(every)) {
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
    for (const until = Date.now() + 6e4; ; ) {
      const answer = await fetch(view(name, more)).catch(() => null);
      if (answer?.ok) return answer;
      if (answer?.status < 502 || Date.now() > until) throw new Error(`no job: ${answer?.status ?? "no answer"}`);
      await pause(Number(answer?.headers.get("Retry-After")) || 1);
    }
  }
}
