"""``python -m bgmiddleware jobs``: inspect the jobs of a shared registry from outside the server."""

import argparse
import contextlib
import http.client
import json
import os
import re
import signal
import sys
import urllib.error
from collections.abc import Callable, Iterator

from .._jobs import EXIT_STATUS, Job, JobState, key_of
from .._running import taken_answer
from .._serving.cancel import cancelled
from .._serving.timed import Came
from ..client import JobClient
from ..errors import BackgroundError, ConfigurationError, JobNotFound
from ..registries import open_registry
from ..registries.base import Registry
from .stats import jobs_line, printable, run_stats, run_watch

__all__ = ["add_jobs_command", "count", "run_jobs_command"]

_TOKEN = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SEARCHED = 10_000
_INTERRUPTED = 130  # as shells have it


def count(text: str) -> int:
    """Return an argument as a whole number from 1. Raises ``ArgumentTypeError``."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1, not {text!r}")
    return int(text)


def add_jobs_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``jobs`` and its actions to the command line."""
    parser = commands.add_parser("jobs", help="look at the jobs of a shared registry", description=__doc__)
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")

    def add(name: str, text: str, *, by: str = "key") -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if by == "url":
            action.add_argument("url", metavar="URL", help="the job's URL, which has its token")
        else:
            action.add_argument("--registry", metavar="URL", required=True, help="spool:DIRECTORY or redis://…")
        if by == "key":
            action.add_argument("job", metavar="JOB", help="its token, its key, or the first characters of its key")
        return action

    _add_looks(add)
    _add_changes(add)


def _add_looks(add: Callable[..., argparse.ArgumentParser]) -> None:
    listing = add("list", "list jobs, newest first", by="")
    listing.add_argument("--state", choices=[state.value for state in JobState], help="only those in this state")
    listing.add_argument("--limit", type=count, default=50, help="how many at most (default: %(default)s)")
    listing.add_argument("--json", action="store_true", help="a JSON document per line")
    showing = add("show", "show a job as JSON")
    showing.add_argument("--times", action="store_true", help="also when its output came: offsets, and seconds")
    following = add(
        "follow",
        "print a job's output as it comes, and exit by how it ended (0 finished, 1 failed, 3 cancelled, 4 lost)",
    )
    following.add_argument("--times", action="store_true", help="begin each line with the seconds since the job began")
    for name, text in (
        ("stats", "print how many jobs wait and run, and what was counted of each path"),
        ("watch", "print what stats prints, and the newest jobs, again and again"),
    ):
        counting = add(name, text, by="")
        counting.add_argument("--minutes", type=count, default=60, help="how far back (default: %(default)s)")
        counting.add_argument("--json", action="store_true", help="a JSON document per line")
    counting.add_argument("--every", type=float, default=2.0, help="seconds between two looks (default: %(default)s)")
    counting.add_argument("--limit", type=count, default=20, help="how many jobs at most (default: %(default)s)")
    counting.add_argument("--rounds", type=count, help="end after so many looks")


def _add_changes(add: Callable[..., argparse.ArgumentParser]) -> None:
    add("cancel", "ask a job to stop")
    answering = add("answer", "answer what a job asks")
    answering.add_argument("answer", metavar="ANSWER", help="one of the choices, or a line")
    add("rerun", "run an ended job again, by its URL; print that of the new one", by="url")
    sharing = add("share", "make a link that shows a job to others; print it", by="url")
    sharing.add_argument("--scope", choices=["output", "result", "both"], default="both", help="what it shows")
    sharing.add_argument("--for", dest="seconds", type=count, default=604800, help="seconds (default: %(default)s)")
    add("unshare", "take back all links that show a job to others", by="url")
    add("keep", "keep an ended job beyond its TTL")
    add("unkeep", "let a job that is kept expire")
    evicting = add("evict", "make losses permanent and forget what has expired", by="")
    evicting.add_argument("--limit", type=count, default=100_000, help="how many at most (default: %(default)s)")


def run_jobs_command(options: argparse.Namespace) -> int:
    """Run an action of ``jobs``; return the exit status."""
    actions: dict[str, Callable[[Registry, argparse.Namespace], int]] = {
        "list": _list,
        "show": _show,
        "follow": _follow,
        "cancel": _cancel,
        "answer": _answer,
        "keep": _keep,
        "unkeep": _unkeep,
        "evict": _evict,
        "stats": run_stats,
        "watch": run_watch,
    }
    if options.action in _OVER_HTTP:
        return _ask_server(options)
    try:
        with open_registry(options.registry) as registry:
            if not registry.shared:
                raise ConfigurationError(
                    f"registry = {options.registry!r}: only the server's process can read its memory: expected the"
                    " shared registry that the server uses, spool:DIRECTORY or redis://…"
                )
            registry.check()
            if not registry.is_there():
                raise ConfigurationError(
                    f"registry = {options.registry!r}: no server has stored jobs there. Check the name; a relative"
                    f" directory is one in {os.getcwd()}"
                )
            status = actions[options.action](registry, options)
            sys.stdout.flush()
            return status
    except BackgroundError as error:
        print(f"bgmiddleware: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # the reader has enough, as in "… | head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python complains at exit
        return 141


def _list(registry: Registry, options: argparse.Namespace) -> int:
    state = None if options.state is None else JobState(options.state)
    now = registry.clock()
    for job in registry.jobs(state, options.limit):
        if options.json:
            print(json.dumps(_document(job, now)))
        else:
            print(jobs_line(job, now))
    return 0


def _show(registry: Registry, options: argparse.Namespace) -> int:
    job = registry.get(_key(registry, options.job))
    document = _document(job, registry.clock())
    if options.times:
        document["times"] = [[end, at / 1000] for end, at in registry.times(job.key)]
    print(json.dumps(document, indent=2))
    return 0


def _follow(registry: Registry, options: argparse.Namespace) -> int:
    key = _key(registry, options.job)
    with _left_at_once():
        for data in _pieces_with_times(registry, key) if options.times else _pieces(registry, key):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    job = registry.get(key)
    begin, end = ("\x1b[31m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
    if job.state is not JobState.FINISHED:
        print(f"bgmiddleware: the job is {begin}{job.state}{end}: {printable(job.reason)}", file=sys.stderr)
    elif end:
        print(f"\x1b[32mfinished{end} after {job.elapsed(0.0):.1f} s", file=sys.stderr)
    return EXIT_STATUS[job.state]


@contextlib.contextmanager
def _left_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process then and there. ``KeyboardInterrupt`` is lost where it is raised within a finalizer,
    and who only reads leaves nothing to be tidied up."""
    before = signal.signal(signal.SIGINT, lambda number, frame: os._exit(_INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _pieces_with_times(registry: Registry, key: str) -> Iterator[bytes]:
    """Yield the output with seconds before each line: when the first of it came."""
    came = Came(registry, key, 0)
    offset = 0
    begins_line = True
    for piece in registry.follow(key):
        if piece.offset > offset:
            yield f"\n[… bytes {offset} to {piece.offset} were dropped …]\n".encode()
            begins_line = True
        offset = piece.offset
        for line in re.findall(rb"[^\n]*\n|[^\n]+", piece.data):
            if begins_line:
                yield f"{came.at(offset) / 1000:9.2f} s  ".encode()
            yield line
            begins_line = line.endswith(b"\n")
            offset += len(line)


def _pieces(registry: Registry, key: str) -> Iterator[bytes]:
    offset = 0
    for piece in registry.follow(key):
        if piece.offset > offset:
            yield f"\n[… bytes {offset} to {piece.offset} were dropped …]\n".encode()
        offset = piece.end
        yield piece.data


def _cancel(registry: Registry, options: argparse.Namespace) -> int:
    key = _key(registry, options.job)
    before = registry.get(key)
    job = cancelled(registry, before, registry.request_cancel)
    if job.state is JobState.RUNNING:
        print("it is asked to stop")
    elif before.awaits_try:
        print(f"it is {job.state}, and not tried again")
    else:
        print(f"it is {job.state}" + " already" * before.state.ended)
    return 0


def _answer(registry: Registry, options: argparse.Namespace) -> int:
    key = _key(registry, options.job)
    now = registry.clock()
    if registry.amend(key, lambda job: taken_answer(job, options.answer, now)) is not None:
        return 0
    asked = registry.get(key).question
    if asked is None or asked.answer is not None:
        raise BackgroundError("the job does not wait for an answer")
    raise ConfigurationError.of_setting("answer", options.answer, f"one of {', '.join(asked.choices)}")


def _keep(registry: Registry, options: argparse.Namespace) -> int:
    kept = registry.keep(_key(registry, options.job))
    if kept is None:
        most = f"{registry.max_kept} jobs, of {registry.max_kept_bytes} bytes in all"
        raise BackgroundError(f"there is no room for it: this command keeps at most {most}; let another one expire")
    if not kept.kept:
        raise BackgroundError("only a job that has ended can be kept")
    return 0


def _unkeep(registry: Registry, options: argparse.Namespace) -> int:
    registry.keep(_key(registry, options.job), False)
    return 0


def _ask_server(options: argparse.Namespace) -> int:
    """Do what a registry alone cannot: it runs no jobs, and knows no URLs."""
    try:
        said = _OVER_HTTP[options.action](JobClient(options.url), options)
        if said is not None:
            print(said)
        return 0
    except urllib.error.HTTPError as error:
        print(f"bgmiddleware: the server refused: {printable(error.msg.strip())}", file=sys.stderr)
    except (OSError, ValueError, http.client.HTTPException) as error:
        print(f"bgmiddleware: {error}", file=sys.stderr)
    return 2


_OVER_HTTP: dict[str, Callable[[JobClient, argparse.Namespace], str | None]] = {
    "rerun": lambda job, options: job.rerun().url,
    "share": lambda job, options: job.share(options.scope, options.seconds),
    "unshare": lambda job, options: job.unshare(),
}


def _evict(registry: Registry, options: argparse.Namespace) -> int:
    lost, evicted = registry.evict(options.limit)
    print(f"{lost} lost, {evicted} forgotten")
    return 0


def _key(registry: Registry, name: str) -> str:
    """Return the key of the job that *name* means. Raises ``JobNotFound`` or ``ConfigurationError``."""
    if _TOKEN.fullmatch(name):
        return key_of(name)
    if re.fullmatch("[0-9a-f]{32}", name):
        return name
    if not re.fullmatch("[0-9a-f]{4,31}", name):
        raise ConfigurationError.of_setting("job", name, "a token, a key, or at least 4 of its first characters")
    found = [job.key for job in registry.jobs(limit=_SEARCHED) if job.key.startswith(name)]
    if len(found) > 1:
        raise ConfigurationError(f"job = {name!r}: {len(found)} jobs begin so, give more characters")
    if not found:
        raise JobNotFound(name)
    return found[0]


def _document(job: Job, now: float) -> dict[str, object]:
    """Return a job as an operator may see it: without its request and response, which are its owner's."""
    document = job.to_document()
    for name in ("request", "response", "fingerprint", "name", "name_salt"):
        del document[name]
    return {**document, "elapsed": job.elapsed(now), "status_code": job.response.code if job.response else None}
