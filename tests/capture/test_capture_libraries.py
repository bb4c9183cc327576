"""What libraries do with the streams, in jobs that really run: logging, subprocess, tqdm, click, rich, gevent."""

import asyncio
import faulthandler
import io
import logging
import logging.handlers
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bgmiddleware._capture import install
from bgmiddleware._jobs import JobState
from tests.kit.capturing import Kept, RunningInThread, in_thread, run_job, run_python


@pytest.fixture
def logger(capsys: pytest.CaptureFixture[str]) -> Iterator[logging.Logger]:
    """A logger without handlers and without a parent: pytest's are on the root, and would take every record."""
    logger = logging.Logger("tests.capture", logging.DEBUG)
    known = logging.getLogger().manager.loggerDict
    known[logger.name] = logger
    yield logger
    del known[logger.name]


class TestLogging:
    """Each record of a job reaches its output, exactly once, whatever handlers the app has."""

    def test_a_console_handler_made_after_install_writes_once(
        self, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
    ) -> None:
        install()
        logger.addHandler(logging.StreamHandler())
        assert run_job(lambda: logger.info("job")) == "job\n"
        logger.info("server")
        assert capsys.readouterr() == ("", "server\n")

    def test_a_console_handler_made_before_install_writes_once(
        self, logger: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        logger.addHandler(logging.StreamHandler(sys.stdout))
        assert run_job(lambda: logger.info("job")) == "job\n"
        logger.info("server")
        assert sys.stdout.getvalue() == "server\n"  # type: ignore[attr-defined]

    def test_handlers_on_two_levels_both_write_as_in_the_foreground(self, logger: logging.Logger) -> None:
        install()
        logger.addHandler(logging.StreamHandler(sys.stdout))
        child = logger.getChild("child")
        child.addHandler(logging.StreamHandler(sys.stderr))
        try:
            assert run_job(lambda: child.info("twice")) == "twice\ntwice\n"
        finally:
            child.handlers.clear()

    @pytest.mark.parametrize("kind", ["file", "queue", "memory"])
    def test_handlers_that_write_elsewhere_leave_a_line_in_the_job(
        self, kind: str, logger: logging.Logger, tmp_path: Path
    ) -> None:
        handler: logging.Handler
        if kind == "file":
            handler = logging.FileHandler(tmp_path / "log")
        elif kind == "queue":
            handler = logging.handlers.QueueHandler(queue.Queue())
        else:
            handler = logging.handlers.MemoryHandler(100, flushLevel=100)
        logger.addHandler(handler)
        try:
            text = run_job(lambda: logger.warning("beware of %s", "ä"))
        finally:
            handler.close()
        assert text == "WARNING tests.capture: beware of ä\n"
        if kind == "file":
            assert (tmp_path / "log").read_text("utf-8") == "beware of ä\n"

    def test_a_listener_of_a_queue_writes_to_the_server_and_the_job_has_it_once(
        self, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
    ) -> None:
        install()
        records: queue.Queue[logging.LogRecord] = queue.Queue()
        logger.addHandler(logging.handlers.QueueHandler(records))
        listener = logging.handlers.QueueListener(records, logging.StreamHandler())
        listener.start()
        try:
            assert run_job(lambda: logger.info("job")) == "INFO tests.capture: job\n"
        finally:
            listener.stop()
        assert capsys.readouterr().err == "job\n"

    def test_what_a_handler_holds_back_for_all_is_in_no_other_job(
        self, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
    ) -> None:
        install()
        logger.addHandler(logging.handlers.MemoryHandler(3, target=logging.StreamHandler()))
        assert run_job(lambda: logger.info("first")) == "INFO tests.capture: first\n"
        assert run_job(lambda: [logger.info("second") for _ in range(2)] and None) == "INFO tests.capture: second\n" * 2
        assert capsys.readouterr() == ("", "first\nsecond\nsecond\n")

    def test_loguru_that_writes_in_a_thread_of_its_own(self) -> None:
        script = """
            import sys
            from loguru import logger
            from tests.kit.capturing import run_job
            logger.remove()
            logger.add(sys.stderr, enqueue=True, format="{message}")
            def other(message):
                sys.__stderr__.write(f"other {message}")  # at once: another thread writes too
            logger.add(other, enqueue=True, format="{message}")
            texts = [run_job(lambda: logger.info(name)) for name in "ab"]
            logger.info("server")
            logger.complete()
            print(texts)
        """
        out, err = run_python(script)
        assert out == "['a\\n', 'b\\n']\n"
        assert sorted(err.splitlines()) == ["other a", "other b", "other server", "server"]

    def test_an_exception_comes_with_its_traceback(self, logger: logging.Logger, tmp_path: Path) -> None:
        def job() -> None:
            try:
                raise LookupError("gone")
            except LookupError:
                logger.exception("failed")

        handler = logging.FileHandler(tmp_path / "log")
        logger.addHandler(handler)
        try:
            text = run_job(job)
        finally:
            handler.close()
        assert text.startswith("ERROR tests.capture: failed\nTraceback ")
        assert text.endswith("LookupError: gone\n")

    def test_levels_hold(self, logger: logging.Logger, tmp_path: Path) -> None:
        """What no handler takes is not in the job; what a file takes and the console does not is."""

        def job() -> None:
            logger.debug("dropped by the logger")
            logger.info("dropped by both")
            logger.warning("for the file")
            logger.error("for both")

        install()
        console = logging.StreamHandler()
        console.setLevel(logging.ERROR)
        file = logging.FileHandler(tmp_path / "log")
        file.setLevel(logging.WARNING)
        logger.addHandler(console)
        logger.addHandler(file)
        logger.setLevel(logging.INFO)
        try:
            assert run_job(job) == "WARNING tests.capture: for the file\nfor both\n"
        finally:
            file.close()

    def test_what_is_silent_in_the_foreground_is_silent_in_a_job(self, logger: logging.Logger) -> None:
        assert run_job(lambda: logger.info("below the last resort")) == ""
        logger.addHandler(logging.NullHandler())
        assert run_job(lambda: logger.error("silenced by its library")) == ""

    def test_a_record_that_cannot_be_formatted_does_not_raise(self, logger: logging.Logger) -> None:
        handler = logging.handlers.QueueHandler(queue.Queue())
        handler.prepare = lambda record: record  # type: ignore[method-assign]
        logger.addHandler(handler)
        running = RunningInThread(lambda: logger.info("%d", "x")).join()
        assert running.text == "INFO tests.capture: '%d' % ('x',)\n"
        assert running.job.state is JobState.FINISHED

    def test_the_lines_for_handlers_elsewhere_can_be_switched_off(
        self, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
    ) -> None:
        install()
        logger.addHandler(logging.handlers.QueueHandler(queue.Queue()))
        assert run_job(lambda: logger.info("job"), takes_logging=False) == ""
        logger.addHandler(logging.StreamHandler())
        assert run_job(lambda: logger.info("console"), takes_logging=False) == "console\n"
        assert capsys.readouterr() == ("", "")

    def test_a_handler_that_writes_bytes_or_flushes_counts_as_console(self, logger: logging.Logger) -> None:
        class Bytes(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                sys.stderr.buffer.write(record.getMessage().encode() + b"\n")
                sys.stderr.flush()

        logger.addHandler(Bytes())
        assert run_job(lambda: logger.info("bytes")) == "bytes\n"

    def test_records_of_other_threads_go_where_they_went(
        self, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def job() -> None:
            logger.info("job")
            in_thread(lambda: logger.info("child"))
            began.set()
            assert go_on.wait(30)

        install()
        logger.addHandler(logging.StreamHandler())
        began, go_on = threading.Event(), threading.Event()
        running = RunningInThread(job)
        assert began.wait(30)
        logger.info("server")
        go_on.set()
        assert running.join().text == "job\nchild\n"
        assert capsys.readouterr().err == "server\n"

    def test_a_cancel_passes_through_a_log_call(self, logger: logging.Logger) -> None:
        def job() -> None:
            began.set()
            assert go_on.wait(30)
            logger.info("not printed")

        install()
        logger.addHandler(logging.StreamHandler())
        began, go_on = threading.Event(), threading.Event()
        running = RunningInThread(job)
        assert began.wait(30)
        running.registry.request_cancel(running.key)
        go_on.set()
        assert (running.join().job.state, running.text) == (JobState.CANCELLED, "")
        assert run_job(lambda: logger.info("the handler is not locked")) == "the handler is not locked\n"

    def test_a_fresh_process_logs_and_warns_into_its_jobs(self) -> None:
        """The last resort, ``basicConfig`` before the first job, ``captureWarnings`` and plain warnings."""
        script = """
            import logging, sys, warnings
            from tests.kit.capturing import run_job
            def job():
                logging.getLogger("app").warning("last resort")
                logging.getLogger("app").info("dropped")
                warnings.warn("careful")
                warnings.showwarning("shown", UserWarning, "file", 1, line="source")
            warnings.simplefilter("always")
            last = run_job(job)
            logging.getLogger("app").warning("server")
            print(last.splitlines()[0], "UserWarning: careful" in last, "file:1: UserWarning: shown" in last)
        """
        out, err = run_python(script)
        assert (out, err) == ("last resort True True\n", "server\n")
        script = """
            import logging, sys, warnings
            logging.basicConfig(level="INFO", format="%(message)s")
            logging.captureWarnings(True)
            from tests.kit.capturing import run_job
            print(run_job(lambda: logging.info("before the first job")), end="")
            print("again" in run_job(lambda: warnings.showwarning("again", UserWarning, "file", 1)))
            logging.info("server")
        """
        assert run_python(script) == ("before the first job\nTrue\n", "server\n")


class TestChildren:
    """Subprocesses that are given our stream; with a switch, also those that are given none."""

    @pytest.mark.parametrize("stream", [lambda: sys.stdout, lambda: sys.stdout.buffer, lambda: sys.stdout.fileno()])
    def test_a_child_given_the_stream_prints_to_the_job(
        self, stream: Callable[[], int], capfd: pytest.CaptureFixture[str]
    ) -> None:
        def job() -> None:
            subprocess.run(["/bin/sh", "-c", "echo out; echo error >&2"], stdout=stream(), stderr=subprocess.STDOUT)

        assert run_job(job) == "out\nerror\n"
        assert capfd.readouterr() == ("", "")

    def test_a_coroutines_child_prints_to_the_job(self) -> None:
        async def main() -> None:
            print("1")
            child = await asyncio.create_subprocess_exec("/bin/echo", "2", stdout=sys.stdout)
            await child.wait()
            print("3")

        assert run_job(lambda: asyncio.run(main(), debug=False)) == "1\n2\n3\n"

    def test_a_child_given_our_stdin_is_at_its_end(self) -> None:
        assert run_job(lambda: subprocess.run(["cat"], stdin=sys.stdin, stdout=sys.stdout, timeout=120)) == ""

    def test_a_child_given_nothing_prints_to_the_server(self, capfd: pytest.CaptureFixture[str]) -> None:
        run_job(lambda: subprocess.run(["/bin/echo", "child"], check=True))
        assert capfd.readouterr() == ("child\n", "")

    def test_a_child_given_nothing_prints_to_a_job_that_takes_children(self, capfd: pytest.CaptureFixture[str]) -> None:
        def job() -> None:
            print("1")
            subprocess.run(["/bin/sh", "-c", "cat; echo 2; echo 3 >&2"], check=True)
            print("4")
            subprocess.run(["/bin/sh", "-c", "echo 5 >&2"], stdout=subprocess.DEVNULL, check=True)
            assert subprocess.run(["/bin/echo", "mine"], capture_output=True).stdout == b"mine\n"
            assert subprocess.check_output(["cat"], input=b"mine") == b"mine"

        kept = Kept(takes_children=True)
        kept.run(job)
        kept.output.end()
        assert b"".join(kept.chunks) == b"1\n2\n3\n4\n5\n"
        assert capfd.readouterr() == ("", "")

    def test_a_child_that_a_job_took_is_terminated_with_it(self) -> None:
        kept = Kept(takes_children=True)
        child = kept.run(lambda: subprocess.Popen(["cat"], stdin=subprocess.PIPE))
        kept.output.interrupt("enough")
        child.communicate(timeout=120)
        assert child.returncode == -15
        kept.output.end()


class TestLibraries:
    """Progress bars, consoles and dumps."""

    def test_tqdm(self, capsys: pytest.CaptureFixture[str]) -> None:
        tqdm = pytest.importorskip("tqdm").tqdm

        def job() -> None:
            for number in tqdm(range(3), mininterval=0, dynamic_ncols=True):
                tqdm.write(f"line {number}")

        text = run_job(job)
        assert [line for line in text.splitlines() if line.startswith("line")] == ["line 0", "line 1", "line 2"], text
        assert "\r100%|" in text
        assert "3/3" in text
        assert capsys.readouterr() == ("", "")

    def test_click(self, capsys: pytest.CaptureFixture[str]) -> None:
        click = pytest.importorskip("click")

        def job() -> None:
            click.echo("text")
            click.echo(b"bytes")
            click.echo("error", err=True)
            click.secho("coloured", fg="red")
            with click.progressbar([1, 2]) as bar:
                list(bar)

        assert run_job(job) == "text\nbytes\nerror\ncoloured\n" + "\n"
        click.echo("server")
        assert run_job(job) == "text\nbytes\nerror\ncoloured\n" + "\n"
        assert capsys.readouterr() == ("server\n", "")

    def test_click_where_the_locale_is_ascii(self) -> None:
        """click keeps a wrapper for each stream that looks mis-configured: it must not be one job's."""
        pytest.importorskip("click")
        script = """
            import io, sys
            sys.stdout = io.TextIOWrapper(sys.stdout.buffer, "ascii", line_buffering=True)
            import click
            from tests.kit.capturing import run_job
            texts = []
            texts.append(run_job(lambda: click.echo("job")))
            click.echo("server")
            texts.append(run_job(lambda: click.echo("next job")))
            print(texts)
        """
        assert run_python(script) == ("server\n['job\\n', 'next job\\n']\n", "")

    def test_rich(self, capsys: pytest.CaptureFixture[str]) -> None:
        rich = pytest.importorskip("rich", reason="rich is not among our test requirements")
        console = pytest.importorskip("rich.console").Console()

        def job() -> None:
            rich.print("[bold]print[/]")
            console.print("console")
            with console.status("working"):
                console.print("meanwhile")

        rich.print("server")
        assert [line.rstrip() for line in run_job(job).splitlines()] == ["print", "console", "meanwhile"]
        assert capsys.readouterr().out == "server\n"

    def test_faulthandler(self) -> None:
        assert "Current thread" in run_job(lambda: faulthandler.dump_traceback(sys.stderr))

    def test_pytests_own_capturing_goes_on(self, tmp_path: Path) -> None:
        (tmp_path / "test_it.py").write_text(
            "import logging, os, sys\n"
            "from tests.kit.capturing import run_job\n"
            "def use(capture):\n"
            "    for _ in range(2):\n"
            "        print('server')\n"
            "        assert run_job(lambda: print('job')) == 'job\\n'\n"
            "        print('server', file=sys.stderr)\n"
            "        assert capture.readouterr() == ('server\\n', 'server\\n')\n"
            "def test_capsys(capsys): use(capsys)\n"
            "def test_capfd(capfd): use(capfd)\n"
            "def test_capfd_again(capfd):\n"
            "    use(capfd)\n"
            "    os.write(1, b'direct')\n"
            "    assert capfd.readouterr().out == 'direct'\n"
            "def test_caplog(caplog):\n"
            "    assert run_job(lambda: logging.warning('w')).endswith('root: w\\n')\n"
            "    assert caplog.messages == ['w']\n"
            "def test_shown(): print('only in the report')\n"
        )
        script = f"""
            import os, pytest, sys
            os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
            sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", {str(tmp_path)!r}, "-W", "error", "-W",
                "ignore:'cgi' is deprecated", "--capture", sys.argv[1] if sys.argv[1:] else "fd"]))
        """
        for capture in ("fd", "sys", "tee-sys"):
            out, _ = run_python(script.replace('sys.argv[1] if sys.argv[1:] else "fd"', repr(capture)))
            assert "5 passed" in out

    def test_gevent(self) -> None:
        pytest.importorskip("gevent", reason="gevent is not among our test requirements")
        script = """
            import gevent.monkey
            gevent.monkey.patch_all()
            import contextvars, gevent, threading, time
            from bgmiddleware._capture import install
            from tests.kit.capturing import RunningInThread, run_job, in_thread
            def job(name):
                for line in range(3):
                    print(name, line)
                    gevent.sleep(0)
                gevent.joinall([gevent.spawn(lambda: (gevent.sleep(0), print(name, "greenlet")))])
                in_thread(lambda: print(name, "thread"))
            install()
            jobs = [RunningInThread(lambda name=name: job(name)) for name in "ab"]
            gevent.spawn(print, "server").join()
            for name, running in zip("ab", jobs):
                lines = running.join().text.split("\\n")
                assert lines == [f"{name} {line}" for line in [0, 1, 2, "greenlet", "thread"]] + [""], lines
        """
        options = ["-W", "default"]  # gevent's own
        assert run_python(script, options=options)[0] == "server\n"

    def test_gevent_that_comes_after_the_first_job(self) -> None:
        pytest.importorskip("gevent", reason="gevent is not among our test requirements")
        script = """
            from tests.kit.capturing import run_job
            def job():
                import gevent, gevent.pool
                gevent.spawn(print, "greenlet").join()
                list(gevent.pool.Pool(1).imap(print, ["pool"]))
                gevent.get_hub().threadpool.spawn(print, "thread").get()
            run_job(lambda: None)
            print(run_job(job), end="")
        """
        assert run_python(script, options=["-W", "default"])[0] == "greenlet\npool\nthread\n"

    def test_eventlet(self) -> None:
        pytest.importorskip("eventlet")
        script = """
            import eventlet
            eventlet.monkey_patch()
            from tests.kit.capturing import run_job
            def job():
                eventlet.spawn(print, "green").wait()
                list(eventlet.GreenPool().imap(print, ["pool"]))
            text = run_job(job)
            eventlet.spawn(print, "server").wait()
            print(text, end="")
        """
        assert run_python(script, options=["-W", "ignore"])[0] == "server\ngreen\npool\n"
