"""``sys.stdin``, ``sys.stdout`` and ``sys.stderr`` as names: what each job has put there is the job's alone.

``print`` and all C code read the dictionary of the module ``sys``, and nothing else. There stands a *front*, for good.
Python code reads and assigns attributes of the module: these are descriptors of its class, so that an assignment
reaches us and never the front. The front passes on what is printed to what the running code would read.
"""

import functools
import importlib
import io
import sys
from collections.abc import Callable
from typing import Any

from ._streams import ByteStandIn, StandIn, StandInOfOther, StdinStandIn, current, printing, use_output

__all__ = ["Place", "are_in_place", "replace_streams", "replaced", "stand_in_of", "write_late"]

_NAMES = ("stdin", "stdout", "stderr")

_MISSING: Any = object()


class _Replaced:
    """How often somebody has put a stream into ``sys`` outside of jobs: each watched request asks."""

    changes = 0


replaced = _Replaced()


class Place:
    """What ``sys`` has by one name: its *attribute* is one of the class of ``sys``.

    *stand_in*: the newest one. *server*: what the name is outside of jobs: the stand-in, or what somebody put there
    since. *of_jobs*: what it is in a job that put nothing there: the stand-in, or somebody's wrapper of it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.stand_in: Any = None
        self.server: Any = _MISSING
        self.of_jobs: Any = None
        self._passes_on = False  # what is there outside of jobs, to a stand-in
        self.front = Front(self)
        get = current.get

        # A function and not a method, with nothing called in it: who writes by sys.stdout.write reads each time.
        def read(module: object) -> Any:
            output = get()
            if output is None or output.job is None:
                stream = self.server
            elif output.assigned:
                stream = output.assigned.get(name, self.of_jobs)
            else:
                stream = self.of_jobs
            if stream is _MISSING:
                raise AttributeError(f"module 'sys' has no attribute {name!r}")
            return stream

        self.attribute = property(read, self._assign, self._delete)

    def _assign(self, module: object, stream: Any) -> None:
        output = current.get()
        if output is None or output.job is None:
            self.put(self.of_jobs if stream is self.front else stream)
            return
        stream = _meant(stream)
        if stream is self.of_jobs or stream is self.stand_in:
            output.unassign(self.name)
        else:
            _write_through(stream)
            output.assign(self.name, stream)

    def _delete(self, module: object) -> None:
        if self.now() is _MISSING:
            raise AttributeError(self.name)
        self._assign(module, _MISSING)

    def now(self) -> Any:
        """Return what the running code has by this name."""
        output = current.get()
        if output is None or output.job is None:
            return self.server
        return output.assigned.get(self.name, self.of_jobs)

    def pass_on(self, text: str) -> int:
        """Write *text* to what the running code has by this name."""
        stream = self.now()
        if stream is None:
            return len(text)
        if stream is _MISSING:
            raise RuntimeError(f"lost sys.{self.name}")
        return int(stream.write(text) or 0)

    def put(self, stream: Any) -> None:
        """Let *stream* be what the name is outside of jobs."""
        self.server = stream
        replaced.changes += 1
        self._passes_on = _passes_on(stream) or (stream is None and self.of_jobs is None)
        if _is_stand_in(stream):
            self.stand_in = self.of_jobs = stream
        elif _is_over_bytes(stream):
            _write_through(stream)
        elif self._passes_on:
            self.of_jobs = stream
        self.front.follow()

    @property
    def is_well(self) -> bool:
        """Whether what somebody put there passes on to a stand-in, and ``print`` still finds the front."""
        return self._passes_on and sys.__dict__.get(self.name) is self.front

    def heal(self) -> Any:
        """Put a stand-in there, and the front into the dictionary; return what it replaced, None where all was well."""
        found = sys.__dict__.get(self.name, _MISSING)
        if found is not self.front:  # the first time, or C code put it there
            self.server = found
            sys.__dict__[self.name] = self.front
        original = self.server
        if original is _MISSING:
            original = None if self.stand_in is None else self.stand_in.original
        if self.stand_in is not None and original is self.stand_in.original:
            self.put(self.stand_in)
            return None
        if _passes_on(original):
            self.put(original)
            return None
        self.put(self._made(original))
        for stream in (original, getattr(sys, f"__{self.name}__", None)):
            self._route(stream)
        return original

    def _route(self, stream: Any) -> None:
        """Let what a job writes to *stream*, which somebody took before there was a stand-in, be the job's."""
        if self.name == "stdin" or type(stream) is not io.TextIOWrapper or "write" in vars(stream):
            return
        write_here, flush_here = stream.write, stream.flush

        def write(text: str) -> int:
            output = current.get()
            if output is None or output.job is None:
                return write_here(text)
            written: int = self.stand_in.write(text)
            return written

        def flush() -> None:
            output = current.get()
            if output is None or output.job is None:
                flush_here()
            else:
                self.stand_in.flush()

        vars(stream).update(write=write, flush=flush)

    def _made(self, original: Any) -> Any:
        if self.name == "stdin":
            return None if original is None else StdinStandIn(original)
        kind = StandIn if original is None or type(original) is io.TextIOWrapper else StandInOfOther
        return kind(original, self.name)


class Front(functools.partial[int]):
    """What ``print`` and C code find: a stream that passes on to what the running code has by the name.

    Nothing in Python is called for a print but what writes: its ``write`` is what ``printing`` has in the context. In
    a context that has nothing, ``get`` returns its argument, which is the front; so that is called, and as a partial
    it calls what writes for the server.
    """

    write: Any = property(printing.get)

    def __new__(cls, place: "Place") -> "Front":
        front = super().__new__(cls, place.pass_on)
        front._place = place
        return front

    _place: "Place"
    _former: Any = None

    def follow(self) -> None:
        """Adapt to what the place has now."""
        place, server = self._place, self._place.server
        is_plain = place.name == "stdout" and (place.of_jobs is None or _is_stand_in(place.of_jobs))
        self.__class__ = Front if is_plain else PassingFront
        is_direct = type(server) is StandIn or type(server) is StandInOfOther
        self._former = self.func  # another thread may be in it
        self.__setstate__((server.write_original if is_direct else place.pass_on, (), {}, vars(self)))  # type: ignore[attr-defined]

    def flush(self) -> None:
        stream = self._place.now()
        if stream is not None and stream is not _MISSING:
            stream.flush()

    def close(self) -> None:
        """Do nothing: it is everybody's."""

    # What input() asks for at a terminal, and what else C code asks.

    def readline(self, size: int = -1) -> str:
        return str(self._stream.readline(size))

    def fileno(self) -> int:
        return int(self._stream.fileno())

    def isatty(self) -> bool:
        return bool(self._stream.isatty())

    @property
    def closed(self) -> bool:
        return bool(getattr(self._stream, "closed", False))

    @property
    def encoding(self) -> Any:
        return self._stream.encoding

    @property
    def errors(self) -> Any:
        return self._stream.errors

    @property
    def buffer(self) -> Any:
        return self._stream.buffer

    @property
    def _stream(self) -> Any:
        stream = self._place.now()
        if stream is None or stream is _MISSING:
            raise io.UnsupportedOperation(f"there is no sys.{self._place.name}")
        return stream


class PassingFront(Front):
    """A front for the streams that ``print`` does not take, and for wrappers of ours, which all prints go through."""

    def write(self, text: str) -> int:
        return self._place.pass_on(text)


_places: dict[str, Place] = {}


def _is_stand_in(stream: object) -> bool:
    # No attribute is asked of a foreign object, not even __class__: mod_wsgi has a stdout that raises at each.
    return issubclass(type(stream), StandIn | StdinStandIn)


def _passes_on(stream: object, depth: int = 4) -> bool:
    """Whether *stream* is a stand-in, or a wrapper that passes writes on to one: colorama's, a writer of codecs, a
    tee."""
    if _is_stand_in(stream) or _is_over_bytes(stream):
        return True
    try:
        inner = object.__getattribute__(stream, "__dict__")
    except AttributeError:
        return False
    if any(_is_stand_in(value) or issubclass(type(value), ByteStandIn) for value in list(inner.values())):
        return True
    return depth > 0 and any(_passes_on(inner[name], depth - 1) for name in _WRAPPED if name in inner)


_WRAPPED = ("_StreamWrapper__wrapped", "stream", "_file", "wrapped", "_wrapped")


def _is_over_bytes(stream: object) -> bool:
    return type(stream) is io.TextIOWrapper and _has_our_bytes(stream)


def _has_our_bytes(stream: io.TextIOWrapper) -> bool:
    try:
        return issubclass(type(stream.buffer), ByteStandIn)
    except ValueError:  # detached
        return False


def _write_through(stream: object) -> None:
    """Let a wrapper of a stand-in's bytes hold nothing back: what one job printed would come out in another."""
    if _is_over_bytes(stream):
        stream.reconfigure(write_through=True)  # type: ignore[attr-defined]


def _meant(stream: object) -> object:
    """Return the stand-in where somebody puts back what it stands for, or a front, else *stream* itself."""
    for name, place in _places.items():
        if stream is place.front:
            return place.of_jobs
        if place.stand_in is None or stream is None:
            continue
        if stream is place.stand_in.original or stream is getattr(sys, f"__{name}__", None):
            return place.of_jobs
    return stream


def replace_streams() -> dict[str, tuple[Any, Any]]:
    """Put a stand-in where there is none, or no longer; return what was replaced, by name: the original and its
    stand-in. To be called by one thread at a time."""
    found = {}
    if not _places:
        _places.update((name, Place(name)) for name in _NAMES)
    for name, place in _places.items():
        original = place.heal()
        if original is not None:
            found[name] = original, place.stand_in
    if _places["stdout"].attribute is not vars(type(sys)).get("stdout"):
        sys.__class__ = _class_with({name: place.attribute for name, place in _places.items()})
    return found


def _class_with(attributes: dict[str, property]) -> type:
    """Return a class for the module ``sys`` that has *attributes*."""
    of_modules: type = type(sys)
    described: dict[str, Any] = {
        **attributes,
        # The import system makes all modules by calling the class of sys: they are to be modules like any other.
        "__new__": lambda cls, *args, **options: of_modules(*args, **options),
        # What pickles modules by their exact class (cloudpickle) asks any other class for this.
        "__reduce__": lambda module: (importlib.import_module, (module.__name__,)),
        # Since Python 3.14 code that has read sys.stdout once goes on to read the module's dictionary, past the class,
        # where attributes are found as modules find them. As other objects find them, it does not.
        "__getattribute__": object.__getattribute__,
    }
    return type("module", (of_modules,), described)


def are_in_place() -> bool:
    """Whether all is as :func:`replace_streams` leaves it. Quick: each watched request asks."""
    return len(_places) == len(_NAMES) and all(place.is_well for place in _places.values())


def stand_in_of(name: str) -> Any:
    """Return the newest stand-in of *name*."""
    return _places[name].stand_in


def write_late(name: str) -> Callable[[str], int]:
    """Return a function that writes to what ``sys.stdout`` or ``sys.stderr`` (*name*) is outside of jobs, looked up at
    each call: a stream that was the original once may be closed by now."""

    def write(text: str) -> int:
        place = _places.get(name)
        if place is None:  # a process that only looks after jobs
            return int(getattr(sys, name).write(text))
        if type(place.server) is StandIn:
            written: int = place.server.write_original(text)
            return written
        with use_output(None):  # somebody's wrapper, which comes back to a stand-in
            return place.pass_on(text)

    return write
