"""What scripts and libraries do with their streams, each as a view of a job: the table of docs/explanation/capture.rst.

``python -m tests.kit.idioms threads FILE``, or ``processes``, runs them all, and writes down where each printed.
``python -m tests.kit.idioms table FILE-OF-THREADS FILE-OF-PROCESSES`` prints the table.
"""

import asyncio
import code
import codecs
import contextlib
import ctypes
import faulthandler
import getpass
import importlib
import io
import json
import logging
import logging.config
import multiprocessing
import os
import pty
import subprocess
import sys
import tempfile
import threading
import traceback
import unittest
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from pathlib import Path
from sys import stdout as stdout_at_import
from typing import Any

from bgmiddleware import BackgroundMiddleware, ThreadExecutor, marks
from bgmiddleware._jobs import Channel, key_of
from bgmiddleware.executors.process import ProcessExecutor
from bgmiddleware.registries.spool import SpoolRegistry
from tests.kit.clients import InProcess

IDIOMS: dict[str, tuple[Callable[[], Any], int]] = {}
"""By their names in the table: what a job does, and how often it prints "caught", at least."""

LIBRARIES = "alive_progress click halo invoke joblib loguru pexpect rich tqdm wurlitzer yaspin".split()
"""What they need besides the standard library."""

write_at_import = sys.stdout.write
default_argument = sys.stdout
thread_pool_at_import = ThreadPoolExecutor(1)


def idiom(times: int, name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def note(function: Callable[[], Any]) -> Callable[[], Any]:
        IDIOMS[name] = function, times
        return function

    return note


def say(text: str = "caught") -> None:
    print(text, flush=True)


@idiom(3, "``print``, ``sys.stdout.write``, ``writelines``")
def _() -> None:
    print("caught")
    sys.stdout.write("caught\n")
    sys.stdout.writelines(["caught\n"])


@idiom(1, "``sys.stdout.buffer.write``")
def _() -> None:
    sys.stdout.buffer.write(b"caught\n")


@idiom(1, "``print(file=sys.__stdout__)``")
def _() -> None:
    print("caught", file=sys.__stdout__, flush=True)


@idiom(1, "``sys.__stdout__.buffer.write``")
def _() -> None:
    assert sys.__stdout__ is not None
    sys.__stdout__.buffer.write(b"caught\n")
    sys.__stdout__.buffer.flush()


@idiom(1, "``from sys import stdout`` before the first job")
def _() -> None:
    stdout_at_import.write("caught\n")
    stdout_at_import.flush()


@idiom(1, "``sys.stdout.write``, kept before the first job")
def _() -> None:
    write_at_import("caught\n")


@idiom(1, "a default argument ``file=sys.stdout``, as Halo's")
def _(file: Any = default_argument) -> None:
    print("caught", file=file, flush=True)


@idiom(1, "``sys.stdout = io.TextIOWrapper(sys.stdout.buffer)``")
def _() -> None:
    sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")
    print("caught")


@idiom(1, "``sys.stdout = codecs.getwriter(…)(sys.stdout.detach())``")
def _() -> None:
    sys.stdout = codecs.getwriter("utf-8")(sys.stdout.detach())  # type: ignore[assignment]
    print("caught")


@idiom(1, "``sys.stdout.reconfigure``")
def _() -> None:
    sys.stdout.reconfigure(encoding="utf-8", line_buffering=True)  # type: ignore[union-attr]
    print("caught")


@idiom(1, '``open(sys.stdout.fileno(), "w")``')
def _() -> None:
    sys.stdout = open(sys.stdout.fileno(), "w", encoding="utf-8", buffering=1)  # noqa: SIM115
    print("caught")


@idiom(2, "``open(sys.stdout.fileno(), closefd=False)``")
def _() -> None:
    with open(sys.stdout.fileno(), "wb", 0, closefd=False) as file:
        file.write(b"caught\n")
    print("caught")


@idiom(2, "``os.fdopen(os.dup(sys.stdout.fileno()))``")
def _() -> None:
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as file:
        file.write("caught\n")
    print("caught")


@idiom(2, "``os.dup2(file, sys.stdout.fileno())``, and back")
def _() -> None:
    print("caught")
    kept = os.dup(sys.stdout.fileno())
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())
        os.dup2(kept, sys.stdout.fileno())
    os.close(kept)
    print("caught")


@idiom(1, "``os.close(sys.stdout.fileno())``")
def _() -> None:
    os.close(sys.stdout.fileno())
    print("caught")


@idiom(2, "``sys.stdout.close()``, ``with sys.stdout``")
def _() -> None:
    with sys.stdout:
        print("caught")
    sys.stdout.close()
    print("caught")


@idiom(1, "``sys.stdout = sys.__stdout__``")
def _() -> None:
    with open(os.devnull, "w") as nothing:
        sys.stdout = nothing
        print("silent")
        sys.stdout = sys.__stdout__
    print("caught")


@idiom(1, "``sys.stdout = open(os.devnull)``, left and closed")
def _() -> None:
    print("caught")
    with open(os.devnull, "w") as nothing:
        sys.stdout = nothing


@idiom(1, "``sys.stdout = None``, ``del sys.stdout``")
def _() -> None:
    print("caught")
    sys.stdout = None  # type: ignore[assignment]
    print("nowhere")
    del sys.stdout


@idiom(1, "a class that writes to ``sys.stdout`` and to a file")
def _() -> None:
    class Tee:
        def __init__(self) -> None:
            self.terminal = sys.stdout
            self.log = io.StringIO()

        def write(self, text: str) -> None:
            self.terminal.write(text)
            self.log.write(text)

        def flush(self) -> None:
            self.terminal.flush()

    tee = Tee()
    sys.stdout = tee  # type: ignore[assignment]
    print("caught")
    assert tee.log.getvalue() == "caught\n"


@idiom(1, "``contextlib.redirect_stdout``")
def _() -> None:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        print("caught")
    print(text.getvalue(), end="")


@idiom(1, '``unittest.mock.patch("sys.stdout")``')
def _() -> None:
    from unittest import mock

    with mock.patch("sys.stdout", new_callable=io.StringIO) as text:
        print("caught")
    print(text.getvalue(), end="")


@idiom(1, "``unittest`` with ``buffer=True``")
def _() -> None:
    class Test(unittest.TestCase):
        def test(self) -> None:
            print("hidden")

    suite = unittest.defaultTestLoader.loadTestsFromTestCase(Test)
    result = unittest.TextTestRunner(stream=io.StringIO(), buffer=True).run(suite)
    print("caught" if result.wasSuccessful() else "failed")


@idiom(5, "``code.InteractiveInterpreter``, ``traceback``, ``sys.excepthook``")
def _() -> None:
    code.InteractiveInterpreter().runsource("print('caught')")
    try:
        raise ValueError("caught")
    except ValueError:
        sys.excepthook(*sys.exc_info())
        traceback.print_exc()


@idiom(2, "``warnings.warn``")
def _() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("caught", stacklevel=1)


@idiom(2, "``logging``, ``logging.basicConfig``, ``logging.config``")
def _() -> None:
    logging.getLogger("idioms").warning("caught")
    logger = logging.getLogger("idioms.console")
    handler = logging.StreamHandler(sys.stdout)
    logger.addHandler(handler)
    logger.warning("caught")
    logger.removeHandler(handler)


@idiom(4, "threads, ``threading.Timer``, ``ThreadPoolExecutor``, ``ThreadPool``")
def _() -> None:
    thread = threading.Thread(target=say)
    thread.start()
    thread.join()
    timer = threading.Timer(0, say)
    timer.start()
    timer.join()
    thread_pool_at_import.submit(say).result()
    with ThreadPool(1) as pool:
        pool.map(say, ["caught"])


@idiom(3, "``asyncio``, ``asyncio.to_thread``, asynchronous subprocesses")
def _() -> None:
    async def main() -> None:
        say()
        await asyncio.to_thread(say)
        child = await asyncio.create_subprocess_exec("echo", "caught", stdout=sys.stdout)
        await child.wait()

    asyncio.run(main())


@idiom(2, "``asyncio``: ``connect_write_pipe(…, sys.stdout)``")
def _() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, sys.stdout)
        transport.write(b"caught\n")
        transport.close()

    asyncio.run(main())
    print("caught")


@idiom(1, "``subprocess.run(…, stdout=sys.stdout)``")
def _() -> None:
    subprocess.run(["echo", "caught"], stdout=sys.stdout, check=True)


@idiom(1, "``subprocess.run(…)``, given nothing")
def _() -> None:
    subprocess.run(["echo", "caught"], check=True)


@idiom(1, "``subprocess.run(…, capture_output=True)``")
def _() -> None:
    print(subprocess.run(["echo", "caught"], check=True, capture_output=True, text=True).stdout, end="")


@idiom(6, "a shell with ``> /dev/stderr``, ``tee /dev/stderr``, ``/dev/stdout``")
def _() -> None:
    script = (
        "echo caught; echo caught > /dev/stderr; echo caught | tee /dev/stderr > /dev/null; echo caught > /dev/stdout"
    )
    print("caught")
    subprocess.run(["sh", "-c", script], stdout=sys.stdout, stderr=sys.stderr, check=True)
    print("caught")


@idiom(2, "``os.system``, ``os.posix_spawn``")
def _() -> None:
    os.system("echo caught")
    os.waitpid(os.posix_spawn("/bin/echo", ["echo", "caught"], os.environ), 0)


@idiom(2, "``os.write(1, …)``, ``printf`` of C code")
def _() -> None:
    os.write(1, b"caught\n")
    library = ctypes.CDLL(None)
    library.printf(b"caught\n")
    library.fflush(None)


@idiom(2, "``os.fork``, ``multiprocessing`` by fork")
def _() -> None:
    pid = os.fork()
    if not pid:
        say()
        os._exit(0)
    os.waitpid(pid, 0)
    process = multiprocessing.get_context("fork").Process(target=say)
    process.start()
    process.join()


@idiom(1, "``multiprocessing`` by spawn")
def _() -> None:
    process = multiprocessing.get_context("spawn").Process(target=say)
    process.start()
    process.join()


@idiom(1, "``multiprocessing`` by a fork server, which this job begins")
def _() -> None:
    process = multiprocessing.get_context("forkserver").Process(target=say)
    process.start()
    process.join()


@idiom(2, "``ProcessPoolExecutor`` and ``multiprocessing.Pool`` of the job, by fork")
def _() -> None:
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        executor.submit(say).result()
    with context.Pool(1) as pool:
        pool.apply(say)


@idiom(1, "``pty.fork``, and what runs a command in a terminal: invoke, pexpect, ``script``")
def _() -> None:
    pid, terminal = pty.fork()
    if not pid:
        print("caught", flush=True)
        os._exit(0 if sys.stdout.fileno() == 1 else 1)
    said = b""
    with contextlib.suppress(OSError):
        while data := os.read(terminal, 1000):
            said += data
    os.close(terminal)
    print(said.decode().strip() if os.waitpid(pid, 0)[1] == 0 else "failed")


@idiom(1, "``faulthandler.dump_traceback``")
def _() -> None:
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file)
    faulthandler.dump_traceback(sys.stderr, all_threads=False)
    print("caught")


@idiom(1, "``input()``, ``getpass.getpass()``: at their end")
def _() -> None:
    with contextlib.suppress(EOFError):
        input("caught\n")
    assert getpass.getuser()


@idiom(3, "Click: ``echo``, ``progressbar``, ``CliRunner``")
def _() -> None:
    click = importlib.import_module("click")
    from click.testing import CliRunner

    click.echo("caught")
    click.echo("caught", err=True)
    command = click.Command("one", callback=lambda: click.echo("caught"))
    print(CliRunner().invoke(command).output, end="")


@idiom(5, "Rich: ``print``, ``track``, a console of one's own")
def _() -> None:
    rich = importlib.import_module("rich")
    from rich.console import Console
    from rich.progress import track

    rich.print("caught")
    Console(file=sys.stdout).print("caught")
    for _ in track(range(3), "caught"):
        print("caught")


@idiom(4, "tqdm: bars, ``tqdm.write``")
def _() -> None:
    from tqdm import tqdm

    for _ in tqdm(range(2), desc="caught", mininterval=0):
        tqdm.write("caught")


@idiom(1, "Loguru")
def _() -> None:
    importlib.import_module("loguru").logger.info("caught")


@idiom(4, "Halo, alive-progress, yaspin")
def _() -> None:
    alive = importlib.import_module("alive_progress")
    with importlib.import_module("halo").Halo(text="caught", interval=10):
        pass
    with alive.alive_bar(2, title="caught", force_tty=False) as bar:
        bar()
        print("caught")
        bar()
    with importlib.import_module("yaspin").yaspin(text="caught"):
        pass


@idiom(2, "Joblib, by threads")
def _() -> None:
    joblib = importlib.import_module("joblib")
    joblib.Parallel(n_jobs=2, backend="threading")(joblib.delayed(say)() for _ in range(2))


@idiom(2, "Joblib, by processes of its own")
def _() -> None:
    joblib = importlib.import_module("joblib")
    joblib.Parallel(n_jobs=2)(joblib.delayed(say)() for _ in range(2))
    joblib.externals.loky.get_reusable_executor().shutdown()


@idiom(2, "invoke, with and without a terminal")
def _() -> None:
    invoke = importlib.import_module("invoke")
    invoke.run("echo caught")
    invoke.run("echo caught", pty=True)


@idiom(1, "pexpect, with ``logfile``")
def _() -> None:
    pexpect = importlib.import_module("pexpect")
    child = pexpect.spawn("echo caught", logfile=sys.stdout.buffer)
    child.expect(pexpect.EOF)
    child.close()


@idiom(1, "wurlitzer: ``sys_pipes()``, around C code")
def _() -> None:
    with importlib.import_module("wurlitzer").sys_pipes():
        library = ctypes.CDLL(None)
        library.printf(b"caught\n")
        library.fflush(None)


def views(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    list(IDIOMS.values())[int(environ["PATH_INFO"].strip("/"))][0]()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done\n"]


def make_app() -> BackgroundMiddleware:
    options: dict[str, Any] = {}
    if "IDIOMS_SPOOL" in os.environ:
        options["registry"] = SpoolRegistry(os.environ["IDIOMS_SPOOL"])
        options["executor"] = ProcessExecutor("tests.kit.idioms:app", max_workers=1)
    else:
        options["executor"] = ThreadExecutor(max_workers=1)
    return BackgroundMiddleware(views, when=marks.always, **options)


def table(found: dict[str, Any]) -> str:
    """Return the table of the documentation, by what was *found* of each idiom in threads and in processes."""
    rows = [
        f"   * - {name}\n     - {_place(found['threads'][name][1])}\n     - {_place(found['processes'][name][1])}\n"
        for name in IDIOMS
    ]
    return "".join(rows)


def _place(output: str) -> str:
    return "job" if "caught" in output else "server"


def main(kind: str, path: str, *more: str) -> None:
    """Run all; write to the file *path* the state and the output of each, by name. The last job comes twice, so that
    what the others left behind is seen."""
    if kind == "table":
        found = {
            of: json.loads(Path(name).read_text())
            for of, name in zip(("threads", "processes"), (path, *more), strict=True)
        }
        print(table(found), end="")
        return
    with tempfile.TemporaryDirectory() as directory:
        if kind == "processes":
            os.environ["IDIOMS_SPOOL"] = directory
        with make_app() as app:
            found = {name: _run(app, at) for at, name in enumerate(IDIOMS)}
            found["afterwards"] = _run(app, 0)
        with open(path, "w") as file:
            json.dump(found, file)
    os._exit(0)  # whatever the libraries left running


def _run(app: BackgroundMiddleware, at: int) -> tuple[str, str]:
    location = InProcess(app).request("GET", f"/{at}")["Location"]
    key = key_of(location.rpartition("=")[2])
    for _ in app.registry.follow(key):
        pass
    job = app.registry.get(key)
    output = b""
    while data := app.registry.read(key, Channel.OUTPUT, len(output)).data:
        output += data
    return f"{job.state.value} {job.reason}".strip(), output.decode("utf-8", "backslashreplace")


app = make_app() if "IDIOMS_SPOOL" in os.environ else None

if __name__ == "__main__":
    # As the module that child processes know: its idioms are pickled by their names.
    from tests.kit import idioms

    idioms.main(*sys.argv[1:])
