"""A request in the foreground that may yet leave for the background: by the call of the app, or when what the app
returned is first asked for."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .._capture import ForegroundOutput, Output, current, install, replaced, write_late
from .._context import BackgroundRequested, Wish, entrances, late_entrances
from .._frameworks import unwind
from .._recording import forget_body
from .._serving import StartResponse
from ..registries.base import Registry

__all__ = ["LazyResponse", "end_of", "foreground_of", "may_be_lazy", "may_begin_twice", "settle", "taken"]

_log = logging.getLogger("bgmiddleware")

_END: Any = object()
_MOST_DROPPED = 1000


class _InnerOutput(ForegroundOutput):
    """What one request prints that is answered within another's call, or where something else was current."""

    def __init__(self, outer: Output | None) -> None:
        super().__init__(write_late("stdout"), write_late("stderr"))
        self._token = current.set(self)
        self.is_used = True

    def end(self) -> None:
        super().end()
        current.reset(self._token)


def foreground_of(output: Output | None) -> ForegroundOutput:
    """Return the output of a request that begins where *output* is the current one, with the stand-ins in place."""
    if type(output) is ForegroundOutput and output.request is None:
        foreground = output
    elif output is None:
        foreground = ForegroundOutput(write_late("stdout"), write_late("stderr"))
        current.set(foreground)  # for good: the next requests of this thread find it
    else:
        foreground = _InnerOutput(output)
    install()
    foreground.changes = replaced.changes
    return foreground


def taken(error: BaseException, foreground: ForegroundOutput) -> Iterable[bytes]:
    """Take the *error* that came out of an app for its answer, where it is what became of a wish; else raise it."""
    if isinstance(error, BackgroundRequested):
        if foreground.wish is None:  # somebody kept it, and raises it again
            foreground.ask(error.wish)
        return ()
    # A wish is kept, whatever a clean-up on the way made of the exception. What ends the server does so nevertheless.
    if foreground.wish is None or isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        forget_body(foreground.request or {})
        foreground.end()
        raise error
    _log.info("a view left for the background, and its clean-up raised %r", error)
    return ()


def end_of(foreground: ForegroundOutput, answered: Iterable[bytes]) -> Wish | None:
    """End the request of *foreground*; where a view made a wish, drop what was *answered* and return the wish."""
    wish: Wish | None = foreground.wish
    try:
        if wish is not None:
            settle(wish, answered)
    finally:
        foreground.end()
    return wish


def may_be_lazy(iterable: Any, environ: Mapping[str, Any]) -> bool:
    """Whether what an app returned may have work left, and is nothing that servers look at more closely: a sequence of
    known length, or a file that they send by themselves."""
    if hasattr(iterable, "__len__") or hasattr(iterable, "filelike") or hasattr(iterable, "read"):
        return False
    wrapper = environ.get("wsgi.file_wrapper")
    return not (isinstance(wrapper, type) and isinstance(iterable, wrapper))


def settle(wish: Wish, answered: Iterable[bytes]) -> None:
    """End the foreground part of a request that goes on in the background, as a server ends a response: what the app
    *answered* in spite of the wish is taken to its end, closed and dropped."""
    try:
        try:
            # To the end, since there is clean-up that happens there; but not for ever.
            for _ in itertools.islice(answered, _MOST_DROPPED):
                pass
        finally:
            close = getattr(answered, "close", None)
            if close is not None:
                close()
    except (Exception, BackgroundRequested) as error:
        _log.info("a view left for the background, and what was answered instead of it raised %r", error)
    unwind(wish.error.__traceback__)
    # Its frames hold the request, and what the view had made of it.
    wish.error.__traceback__ = None


def may_begin_twice(start_response: StartResponse) -> StartResponse:
    """Return a *start_response* for our own answer: the app may have begun one before it asked for the background."""

    def begin(status: str, headers: list[tuple[str, str]]) -> Any:
        try:
            return start_response(status, headers)
        except Exception:
            # PEP 3333 has servers refuse a second call without exc_info. With one they raise it where the client has
            # got the first head already: so it is no BackgroundRequested, which could end a server.
            late = RuntimeError("a view asked for the background when its response was on its way to the client")
            return start_response(status, headers, (RuntimeError, late, None))

    return begin


class LazyResponse:
    """What an app returned that may not have begun its work yet, as a generator: it is watched until its first bytes.

    *answer* gives the response that takes its place, for the wish that a view makes meanwhile.
    """

    def __init__(
        self,
        iterable: Iterable[bytes],
        recorded: dict[str, Any],
        start_response: StartResponse,
        answer: Callable[[dict[str, Any], Wish, StartResponse], Iterable[bytes]],
        registry: Registry,
    ) -> None:
        self._iterable = iterable
        self._recorded = recorded
        self._start_response = start_response
        self._answer = answer
        self.registry = registry
        self._chunks: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        while (chunk := self._first()) is not _END:
            yield chunk
            if chunk:
                break
        forget_body(self._recorded)
        if self._chunks is not None:
            yield from self._chunks

    def _first(self) -> bytes:
        """Return the next chunk while none was sent."""
        foreground = foreground_of(current.get())
        foreground.request = self._recorded
        chunk: bytes = _END
        answered: Iterable[bytes] = self._iterable
        try:
            if self._chunks is None:
                self._chunks = iter(self._iterable)
            chunk = next(self._chunks, _END)
        except BaseException as error:
            answered = taken(error, foreground)
        wish = end_of(foreground, answered)
        if wish is None:
            return chunk
        self._iterable = self._answer(self._recorded, wish, self._start_response)
        self._chunks = iter(self._iterable)
        return next(self._chunks, _END)

    def close(self) -> None:
        forget_body(self._recorded)
        close = getattr(self._iterable, "close", None)
        if close is not None:
            close()


entrances.add(id(LazyResponse._first.__code__))
late_entrances.add(id(LazyResponse.__iter__.__code__))
