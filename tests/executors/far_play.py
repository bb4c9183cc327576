"""Apps of tests whose jobs run in processes of their own, which load ``tests.executors.far_play:app``.

These are apps that have a name, and a :class:`readers.Play`, whose steps go to its view over a socket.

Steps are small functions without a name, so their code is sent. That is for tests: both sides are the same Python.
"""

import base64
import contextlib
import importlib
import json
import marshal
import os
import socket
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

from bgmiddleware import BackgroundMiddleware, Registry, Run, marks
from bgmiddleware._capture import JobOutput, current_output
from bgmiddleware._ground.loading import loaded
from bgmiddleware._running.keeper import Keeper
from bgmiddleware.executors import open_executor
from bgmiddleware.registries import open_registry

NAME = "tests.executors.far_play:app"
VARIABLE = "BGMIDDLEWARE_TEST_PLAY"


# The test's side.


@contextlib.contextmanager
def far_away(app: Any, registry: Registry, url: str, told: Path | None = None) -> Iterator[None]:
    """Let processes that load ``tests.executors.far_play:app`` in this block run *app*: a function of a module, or an
    object with ``directs``, which is given the environ and a function that lets the view do something, and returns
    status, headers and body. Their registry is at *url*. *told*: the file that processes look into which have loaded
    it before."""
    config = {"url": url, "ttl": registry.ttl, "app": f"{app.__module__}:{getattr(app, '__name__', '')}"}
    with contextlib.ExitStack() as stack:
        if hasattr(app, "directs"):
            config |= {"app": f"{__name__}:view", "port": stack.enter_context(_listening(app.directs))}
        if told is not None:
            told.write_text(json.dumps(config))
            yield
            return
        os.environ[VARIABLE] = json.dumps(config)
        try:
            yield
        finally:
            del os.environ[VARIABLE]


@contextlib.contextmanager
def _listening(call: Callable[..., Any]) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_accept, args=(listener, call), name="far-play", daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _accept(listener: socket.socket, call: Callable[..., Any]) -> None:
    with contextlib.suppress(OSError):  # closed: the end
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_direct, args=(connection, call), name="far-play", daemon=True).start()


def _direct(connection: socket.socket, call: Callable[..., Any]) -> None:
    with connection, connection.makefile("rwb") as lines:

        def say(message: Any) -> bytes:
            lines.write(json.dumps(message).encode() + b"\n")
            lines.flush()
            return lines.readline()

        def do(step: Callable[[], object]) -> bool:
            return bool(say({"step": _packed(step)}))

        with contextlib.suppress(OSError):  # the process was killed
            if told := lines.readline():
                status, headers, body = call(json.loads(told), do)
                say({"status": status, "headers": headers, "body": base64.b64encode(body).decode()})


def _packed(function: Any) -> str:
    cells = tuple(cell.cell_contents for cell in function.__closure__ or ())
    return base64.b64encode(marshal.dumps((function.__module__, function.__code__, cells))).decode()


# The other side.


def _unpacked(text: str) -> Callable[[], object]:
    module, code, cells = marshal.loads(base64.b64decode(text))
    closure = tuple(types.CellType(cell) for cell in cells)
    return types.FunctionType(code, vars(importlib.import_module(module)), closure=closure)


def _config() -> Any:
    config = json.loads(os.environ[VARIABLE])
    return config | json.loads(Path(config["file"]).read_text()) if "file" in config else config


def view(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    config = _config()
    with socket.create_connection(("127.0.0.1", config["port"])) as connection, connection.makefile("rwb") as lines:
        told = {name: value for name, value in environ.items() if isinstance(value, str)}
        lines.write(json.dumps(told).encode() + b"\n")
        lines.flush()
        while "step" in (message := json.loads(lines.readline())):
            _unpacked(message["step"])()
            _send_all()
            lines.write(b"done\n")
            lines.flush()
    start_response(message["status"], [(name, value) for name, value in message["headers"]])
    body = base64.b64decode(message["body"])
    return [body] if body else []


def _send_all() -> None:
    """Wait until the registry has what the job did so far: readers in the same process see it at once."""
    output = current_output()
    assert isinstance(output, JobOutput)
    keeper: Keeper = output._store.__self__  # type: ignore[attr-defined]
    output.drain()
    while not keeper._has_told_all():
        pass  # its own thread may be at it


class _OfAllTests(BackgroundMiddleware):
    """Runs the app, with the TTL, of the test at hand."""

    def stored_run(self, key: str, **named: Any) -> Run:
        self.registry.ttl = _config()["ttl"]
        return super().stored_run(key, **named)


def _app_at_hand(environ: dict[str, Any], start_response: Any) -> Any:
    return loaded("app", _config()["app"])(environ, start_response)


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(name)
    config = json.loads(os.environ[VARIABLE])
    if "file" in config:
        executor, registry = open_executor(config["executor"]), open_registry(config["url"])
        return _OfAllTests(validator(_app_at_hand), when=marks.always, registry=registry, executor=executor)
    registry = open_registry(config["url"], ttl=config["ttl"])
    return BackgroundMiddleware(validator(loaded("app", config["app"])), when=marks.always, registry=registry)
