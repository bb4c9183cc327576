"""What scripts and libraries do with their stdout and stderr, each as a view of a job: the table of docs/capture.rst.

An app of its own, so that child processes can load it. ``EXPECTED``: what each prints if all of it is caught.
"""

import asyncio
import code
import codecs
import contextlib
import ctypes
import faulthandler
import getpass
import io
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
from sys import stdout as stdout_at_import
from typing import Any

IDIOMS: dict[str, Callable[[], Any]] = {}
"""By their names in the table."""

write_at_import = sys.stdout.write
default_argument = sys.stdout
thread_pool_at_import = ThreadPoolExecutor(1)


def idiom(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def note(function: Callable[[], Any]) -> Callable[[], Any]:
        IDIOMS[name] = function
        return function

    return note


def say(text: str = "caught") -> None:
    print(text, flush=True)


def optional(name: str) -> Any:
    import importlib

    return importlib.import_module(name)


@idiom("``print``, ``sys.stdout.write``, ``writelines``")
def _() -> None:
    print("caught")
    sys.stdout.write("caught\n")
    sys.stdout.writelines(["caught\n"])


@idiom("``sys.stdout.buffer.write``")
def _() -> None:
    sys.stdout.buffer.write(b"caught\n")


@idiom("``print(file=sys.__stdout__)``")
def _() -> None:
    print("caught", file=sys.__stdout__, flush=True)


@idiom("``sys.__stdout__.buffer.write``")
def _() -> None:
    assert sys.__stdout__ is not None
    sys.__stdout__.buffer.write(b"caught\n")
    sys.__stdout__.buffer.flush()


@idiom("``from sys import stdout`` before the first job")
def _() -> None:
    stdout_at_import.write("caught\n")
    stdout_at_import.flush()


@idiom("``sys.stdout.write``, kept before the first job")
def _() -> None:
    write_at_import("caught\n")


@idiom("a default argument ``file=sys.stdout``, as Halo's")
def _(file: Any = default_argument) -> None:
    print("caught", file=file, flush=True)


@idiom("``sys.stdout = io.TextIOWrapper(sys.stdout.buffer)``")
def _() -> None:
    sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")
    print("caught")


@idiom("``sys.stdout = codecs.getwriter(…)(sys.stdout.detach())``")
def _() -> None:
    sys.stdout = codecs.getwriter("utf-8")(sys.stdout.detach())  # type: ignore[assignment]
    print("caught")


@idiom("``sys.stdout.reconfigure``")
def _() -> None:
    sys.stdout.reconfigure(encoding="utf-8", line_buffering=True)  # type: ignore[union-attr]
    print("caught")


@idiom('``open(sys.stdout.fileno(), "w")``')
def _() -> None:
    sys.stdout = open(sys.stdout.fileno(), "w", encoding="utf-8", buffering=1)
    print("caught")


@idiom("``open(sys.stdout.fileno(), closefd=False)``")
def _() -> None:
    with open(sys.stdout.fileno(), "wb", 0, closefd=False) as file:
        file.write(b"caught\n")
    print("caught")


@idiom("``os.fdopen(os.dup(sys.stdout.fileno()))``")
def _() -> None:
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as file:
        file.write("caught\n")
    print("caught")


@idiom("``os.dup2(file, sys.stdout.fileno())``, and back")
def _() -> None:
    print("caught")
    kept = os.dup(sys.stdout.fileno())
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())
        os.dup2(kept, sys.stdout.fileno())
    os.close(kept)
    print("caught")


@idiom("``os.close(sys.stdout.fileno())``")
def _() -> None:
    os.close(sys.stdout.fileno())
    print("caught")


@idiom("``sys.stdout.close()``, ``with sys.stdout``")
def _() -> None:
    with sys.stdout:
        print("caught")
    sys.stdout.close()
    print("caught")


@idiom("``sys.stdout = sys.__stdout__``")
def _() -> None:
    with open(os.devnull, "w") as nothing:
        sys.stdout = nothing
        print("silent")
        sys.stdout = sys.__stdout__
    print("caught")


@idiom("``sys.stdout = open(os.devnull)``, left and closed")
def _() -> None:
    print("caught")
    with open(os.devnull, "w") as nothing:
        sys.stdout = nothing


@idiom("``sys.stdout = None``, ``del sys.stdout``")
def _() -> None:
    print("caught")
    sys.stdout = None  # type: ignore[assignment]
    print("nowhere")
    del sys.stdout


@idiom("a class that writes to ``sys.stdout`` and to a file")
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


@idiom("``contextlib.redirect_stdout``")
def _() -> None:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        print("caught")
    print(text.getvalue(), end="")


@idiom('``unittest.mock.patch("sys.stdout")``')
def _() -> None:
    from unittest import mock

    with mock.patch("sys.stdout", new_callable=io.StringIO) as text:
        print("caught")
    print(text.getvalue(), end="")


@idiom("``unittest`` with ``buffer=True``")
def _() -> None:
    class Test(unittest.TestCase):
        def test(self) -> None:
            print("hidden")

    suite = unittest.defaultTestLoader.loadTestsFromTestCase(Test)
    result = unittest.TextTestRunner(stream=io.StringIO(), buffer=True).run(suite)
    print("caught" if result.wasSuccessful() else "failed")


@idiom("``code.InteractiveInterpreter``, ``traceback``, ``sys.excepthook``")
def _() -> None:
    code.InteractiveInterpreter().runsource("print('caught')")
    try:
        raise ValueError("caught")
    except ValueError:
        sys.excepthook(*sys.exc_info())
        traceback.print_exc()


@idiom("``warnings.warn``")
def _() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("caught", stacklevel=1)


@idiom("``logging``, ``logging.basicConfig``, ``logging.config``")
def _() -> None:
    logging.getLogger("idioms").warning("caught")
    logger = logging.getLogger("idioms.console")
    handler = logging.StreamHandler(sys.stdout)
    logger.addHandler(handler)
    logger.warning("caught")
    logger.removeHandler(handler)


@idiom("threads, ``threading.Timer``, ``ThreadPoolExecutor``, ``ThreadPool``")
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


@idiom("``asyncio``, ``asyncio.to_thread``, asynchronous subprocesses")
def _() -> None:
    async def main() -> None:
        say()
        await asyncio.to_thread(say)
        child = await asyncio.create_subprocess_exec("echo", "caught", stdout=sys.stdout)
        await child.wait()

    asyncio.run(main())


@idiom("``asyncio``: ``connect_write_pipe(…, sys.stdout)``")
def _() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, sys.stdout)
        transport.write(b"caught\n")
        transport.close()

    asyncio.run(main())
    print("caught")


@idiom("``subprocess.run(…, stdout=sys.stdout)``")
def _() -> None:
    subprocess.run(["echo", "caught"], stdout=sys.stdout, check=True)


@idiom("``subprocess.run(…)``, given nothing")
def _() -> None:
    subprocess.run(["echo", "caught"], check=True)


@idiom("``subprocess.run(…, capture_output=True)``")
def _() -> None:
    print(subprocess.run(["echo", "caught"], check=True, capture_output=True, text=True).stdout, end="")


@idiom("a shell with ``> /dev/stderr``, ``tee /dev/stderr``, ``/dev/stdout``")
def _() -> None:
    script = (
        "echo caught; echo caught > /dev/stderr; echo caught | tee /dev/stderr > /dev/null; echo caught > /dev/stdout"
    )
    print("caught")
    subprocess.run(["sh", "-c", script], stdout=sys.stdout, stderr=sys.stderr, check=True)
    print("caught")


@idiom("``os.system``, ``os.posix_spawn``")
def _() -> None:
    os.system("echo caught")
    os.waitpid(os.posix_spawn("/bin/echo", ["echo", "caught"], os.environ), 0)


@idiom("``os.write(1, …)``, ``printf`` of C code")
def _() -> None:
    os.write(1, b"caught\n")
    library = ctypes.CDLL(None)
    library.printf(b"caught\n")
    library.fflush(None)


@idiom("``os.fork``, ``multiprocessing`` by fork")
def _() -> None:
    pid = os.fork()
    if not pid:
        say()
        os._exit(0)
    os.waitpid(pid, 0)
    process = multiprocessing.get_context("fork").Process(target=say)
    process.start()
    process.join()


@idiom("``multiprocessing`` by spawn")
def _() -> None:
    process = multiprocessing.get_context("spawn").Process(target=say)
    process.start()
    process.join()


@idiom("``multiprocessing`` by a fork server, which this job begins")
def _() -> None:
    process = multiprocessing.get_context("forkserver").Process(target=say)
    process.start()
    process.join()


@idiom("``ProcessPoolExecutor`` and ``multiprocessing.Pool`` of the job, by fork")
def _() -> None:
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        executor.submit(say).result()
    with context.Pool(1) as pool:
        pool.apply(say)


@idiom("``pty.fork``, and what runs a command in a terminal: invoke, pexpect, ``script``")
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


@idiom("``faulthandler.dump_traceback``")
def _() -> None:
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file)
    faulthandler.dump_traceback(sys.stderr, all_threads=False)
    print("caught")


@idiom("``input()``, ``getpass.getpass()``: at their end")
def _() -> None:
    with contextlib.suppress(EOFError):
        input("caught\n")
    assert getpass.getuser()


@idiom("Click: ``echo``, ``progressbar``, ``CliRunner``")
def _() -> None:
    click = optional("click")
    from click.testing import CliRunner

    click.echo("caught")
    click.echo("caught", err=True)
    command = click.Command("one", callback=lambda: click.echo("caught"))
    print(CliRunner().invoke(command).output, end="")


@idiom("Rich: ``print``, ``track``, a console of one's own")
def _() -> None:
    rich = optional("rich")
    from rich.console import Console
    from rich.progress import track

    rich.print("caught")
    Console(file=sys.stdout).print("caught")
    for _ in track(range(3), "caught"):
        print("caught")


@idiom("tqdm: bars, ``tqdm.write``")
def _() -> None:
    from tqdm import tqdm

    for _ in tqdm(range(2), desc="caught", mininterval=0):
        tqdm.write("caught")


@idiom("Loguru")
def _() -> None:
    optional("loguru").logger.info("caught")


@idiom("Halo, alive-progress, yaspin")
def _() -> None:
    alive = optional("alive_progress")
    with optional("halo").Halo(text="caught", interval=10):
        pass
    with alive.alive_bar(2, title="caught", force_tty=False) as bar:
        bar()
        print("caught")
        bar()
    with optional("yaspin").yaspin(text="caught"):
        pass


@idiom("Joblib, by threads")
def _() -> None:
    joblib = optional("joblib")
    joblib.Parallel(n_jobs=2, backend="threading")(joblib.delayed(say)() for _ in range(2))


@idiom("Joblib, by processes of its own")
def _() -> None:
    joblib = optional("joblib")
    joblib.Parallel(n_jobs=2)(joblib.delayed(say)() for _ in range(2))
    joblib.externals.loky.get_reusable_executor().shutdown()


@idiom("invoke, with and without a terminal")
def _() -> None:
    invoke = optional("invoke")
    invoke.run("echo caught")
    invoke.run("echo caught", pty=True)


@idiom("pexpect, with ``logfile``")
def _() -> None:
    pexpect = optional("pexpect")
    child = pexpect.spawn("echo caught", logfile=sys.stdout.buffer)
    child.expect(pexpect.EOF)
    child.close()


@idiom("wurlitzer: ``sys_pipes()``, around C code")
def _() -> None:
    with optional("wurlitzer").sys_pipes():
        library = ctypes.CDLL(None)
        library.printf(b"caught\n")
        library.fflush(None)


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    list(IDIOMS.values())[int(environ["PATH_INFO"].strip("/"))]()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done\n"]
