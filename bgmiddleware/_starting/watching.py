"""A foreground request in which a decorated view may still ask for the background: while the app is called, or when
the server takes the first piece of its response."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .._capture import ForegroundOutput, Output, current_output, install, replaced, restore, route, write_late
from .._context import BackgroundRequested, Wish, entrances, late_entrances
from .._frameworks import unwind
from .._running import forget_body
from .._serving import StartResponse
from ..registries.base import Registry

__all__ = ["LazyResponse", "end_of", "foreground_of", "may_be_lazy", "may_begin_twice", "settle", "taken"]

_log = logging.getLogger("bgmiddleware")

_END: Any = object()
_MOST_DROPPED = 1000


class _InnerOutput(ForegroundOutput):
    """The output of a request that is answered inside the call of another one, or where another output was current."""

    def __init__(self, outer: Output | None) -> None:
        super().__init__(write_late("stdout"), write_late("stderr"))
        self._before = route(self)
        self.is_used = True

    def end(self) -> None:
        super().end()
        restore(self._before)


def foreground_of(output: Output | None) -> ForegroundOutput:
    """Return the output of a new request, where *output* is the current one. Put the stand-ins in place."""
    if type(output) is ForegroundOutput and output.request is None:
        foreground = output
    elif output is None:
        foreground = ForegroundOutput(write_late("stdout"), write_late("stderr"))
        route(foreground)  # for good: the thread's next requests use it again
    else:
        foreground = _InnerOutput(output)
    install()
    foreground.changes = replaced.changes
    return foreground


def taken(error: BaseException, foreground: ForegroundOutput) -> Iterable[bytes]:
    """Return an empty response for an *error* of the app that stems from a view's wish; raise any other error."""
    if isinstance(error, BackgroundRequested):
        if foreground.wish is None:  # the app kept the exception of an earlier wish and raised it again
            foreground.ask(error.wish)
        return ()
    # The wish counts, even if clean-up code replaced the exception. But what ends the server must still end it.
    if foreground.wish is None or isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        forget_body(foreground.request or {})
        foreground.end()
        raise error
    _log.info("a view left for the background, and its clean-up raised %r", error)
    return ()


def end_of(foreground: ForegroundOutput, answered: Iterable[bytes]) -> Wish | None:
    """End the request of *foreground*. If a view made a wish, drop what the app *answered* and return the wish."""
    wish: Wish | None = foreground.wish
    try:
        if wish is not None:
            settle(wish, answered)
    finally:
        foreground.end()
    return wish


def may_be_lazy(iterable: Any, environ: Mapping[str, Any]) -> bool:
    """Whether the app's response may still have work to do. It has none if it is a sequence of known length, or a file
    that servers send by themselves; these must reach the server as they are."""
    if hasattr(iterable, "__len__") or hasattr(iterable, "filelike") or hasattr(iterable, "read"):
        return False
    wrapper = environ.get("wsgi.file_wrapper")
    return not (isinstance(wrapper, type) and isinstance(iterable, wrapper))


def settle(wish: Wish, answered: Iterable[bytes]) -> None:
    """End the foreground part of a request that goes on in the background, as a server ends a response: read what the
    app *answered* in spite of the wish, close it and drop it."""
    try:
        try:
            # To the end, because clean-up code may run there; but not for ever.
            for _ in itertools.islice(answered, _MOST_DROPPED):
                pass
        finally:
            close = getattr(answered, "close", None)
            if close is not None:
                close()
    except (Exception, BackgroundRequested) as error:
        _log.info("a view left for the background, and what was answered instead of it raised %r", error)
    unwind(wish.error.__traceback__)
    # The frames would keep the request and the view's data alive.
    wish.error.__traceback__ = None


def may_begin_twice(start_response: StartResponse) -> StartResponse:
    """Return a *start_response* for our own answer, for an app that may have started a response before its wish."""

    def begin(status: str, headers: list[tuple[str, str]]) -> Any:
        try:
            return start_response(status, headers)
        except Exception:
            # PEP 3333: servers refuse a second call without exc_info. With it, they raise it if the client already has
            # the first head. So it is not BackgroundRequested, which could end a server.
            late = RuntimeError("a view asked for the background when its response was on its way to the client")
            return start_response(status, headers, (RuntimeError, late, None))

    return begin


class LazyResponse:
    """A response whose work may not have begun yet, such as a generator. It is watched until its first bytes.

    If a view makes a wish meanwhile, *answer* returns the response that replaces this one.
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
        """Return the next chunk, as long as none was sent."""
        foreground = foreground_of(current_output())
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
