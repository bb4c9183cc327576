"""What a job puts into ``sys`` is the job's alone, and goes with it."""

import codecs
import contextlib
import gc
import io
import logging
import os
import pickle
import sys
import threading
from collections.abc import Callable
from contextvars import Context, copy_context
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from bgmiddleware._capture import install, use_output
from bgmiddleware._capture._streams import StandIn
from tests.kit.capturing import LONG, RunningInThread, in_thread, run_job, run_python


class Two:
    """Two jobs at once: the *first* one does its part, then *second* does its own, then the first one goes on."""

    def __init__(self, first: Callable[[Callable[[], None]], object], second: Callable[[], object]) -> None:
        done, go_on = threading.Event(), threading.Event()

        def step() -> None:
            done.set()
            assert go_on.wait(LONG)

        running = RunningInThread(lambda: (first(step), None)[1])
        assert done.wait(LONG)
        self.second = run_job(lambda: (second(), None)[1])
        go_on.set()
        self.first = running.join().text


def test_what_one_job_redirects_no_other_job_sees() -> None:
    def redirecting(step: Callable[[], None]) -> None:
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            print("mine")
            step()
            print("mine again", file=sys.stderr)
        print("collected:", text.getvalue().split("\n"))

    jobs = Two(redirecting, lambda: print("the other's"))
    assert jobs.first == "collected: ['mine', 'mine again', '']\n"
    assert jobs.second == "the other's\n"


def test_what_a_job_assigns_the_server_does_not_see(capsys: pytest.CaptureFixture[str]) -> None:
    def job() -> None:
        sys.stdout = io.StringIO()
        sys.stdin = io.StringIO("typed")
        in_thread_of_server()

    def in_thread_of_server() -> None:
        asked.set()
        assert answered.wait(LONG)

    install()
    before = sys.stdout, sys.stdin
    asked, answered = threading.Event(), threading.Event()
    running = RunningInThread(job)
    assert asked.wait(LONG)
    print("server")
    assert (sys.stdout, sys.stdin) == before
    answered.set()
    running.join()
    assert capsys.readouterr().out == "server\n"


def test_print_goes_where_the_context_says_that_it_is_called_in(capsys: pytest.CaptureFixture[str]) -> None:
    def job() -> None:
        print("job")
        Context().run(print, "nobody's")
        with use_output(None):
            print("server")
            copy_context().run(print, "server's copy")
        copy_context().run(print, "job's copy")

    assert run_job(job) == "job\njob's copy\n"
    assert capsys.readouterr().out == "nobody's\nserver\nserver's copy\n"


def test_a_handler_of_the_job_that_prints_prints_once() -> None:
    class Printing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print("handled", record.getMessage())

    def job() -> None:
        logger = logging.Logger("printing")  # of nobody else: it has no parent
        logger.addHandler(Printing())
        logger.warning("seen")

    assert run_job(job) == "handled seen\n"


def test_a_subclass_of_str_is_printed_as_its_text() -> None:
    class Odd(str):
        __slots__ = ()

        def __str__(self) -> "Odd":
            return self

        def encode(self, *args: object, **options: object) -> bytes:
            raise AssertionError("nobody asked")

    def job() -> None:
        print(Odd("odd"))
        sys.stdout.buffer.write(b"bytes\n")
        print(Odd("large") * 2000)

    assert run_job(job) == "odd\nbytes\n" + "large" * 2000 + "\n"


def test_the_threads_of_a_job_see_what_it_assigned() -> None:
    def job() -> None:
        text = io.StringIO()
        sys.stdout = text
        in_thread(lambda: (print("thread"), sys.stdout.write("written\n")))
        sys.stdout = sys.__stdout__
        print("collected:", repr(text.getvalue()))

    assert run_job(job) == "collected: 'thread\\nwritten\\n'\n"


def test_print_and_python_code_see_the_same_stream() -> None:
    def job() -> None:
        text = sys.stdout = io.StringIO()
        print("by print")
        sys.stdout.write("by write\n")
        print("by flush", flush=True)
        with pytest.raises(TypeError):
            sys.stdout.write(b"no text")  # type: ignore[arg-type]
        from sys import stdout

        assert stdout is text
        del sys.stdout
        with pytest.raises(AttributeError):
            sys.stdout  # noqa: B018
        with pytest.raises(RuntimeError, match=r"lost sys\.stdout"):
            print("nowhere")
        with pytest.raises(AttributeError):
            del sys.stdout
        sys.stdout = sys.__stdout__
        print(text.getvalue(), end="")

    assert run_job(job) == "by print\nby write\nby flush\n"


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_a_deleted_stream_is_there_in_the_next_job_and_at_the_server(name: str) -> None:
    install()
    before = getattr(sys, name)
    assert run_job(lambda: (print("said"), delattr(sys, name))) == "said\n"
    assert run_job(lambda: print("said", bool(getattr(sys, name)))) == "said True\n"
    assert getattr(sys, name) is before


def test_a_stream_deleted_outside_of_jobs_is_healed_at_the_next_job() -> None:
    script = """
        import sys
        from tests.kit.capturing import run_job
        run_job(lambda: None)
        del sys.stdout
        try:
            print("nowhere")
        except RuntimeError as error:
            sys.stderr.write(f"{error}\\n")
        text = run_job(lambda: print("job"))
        print("server", text, end="")
    """
    assert run_python(script) == ("server job\n", "lost sys.stdout\n")


def test_where_none_is_assigned_nothing_is_printed() -> None:
    def job() -> None:
        print("before")
        sys.stdout = None  # type: ignore[assignment]
        print("nowhere", flush=True)
        sys.stdout = sys.__stdout__
        print("after")

    assert run_job(job) == "before\nafter\n"


@pytest.mark.parametrize("back", ["__stdout__", "kept", "the module's dictionary"])
def test_putting_the_stream_back_puts_the_jobs_own_back(back: str) -> None:
    def job() -> None:
        streams = {"__stdout__": sys.__stdout__, "kept": sys.stdout, "the module's dictionary": vars(sys)["stdout"]}
        with open(os.devnull, "w") as nothing:
            sys.stdout = nothing
            print("silent")
            sys.stdout = streams[back]
        print("after")

    assert run_job(job) == "after\n"


def test_stderr_in_the_place_of_stdout_is_the_jobs() -> None:
    def job() -> None:
        sys.stdout = sys.__stderr__
        print("by way of stderr")
        sys.stdout = sys.stderr
        print("once more")

    assert run_job(job) == "by way of stderr\nonce more\n"


def test_mock_patch_restores_the_stream() -> None:
    def job() -> None:
        with mock.patch("sys.stdout", new_callable=io.StringIO) as text:
            print("patched")
        print("after", repr(text.getvalue()))

    assert run_job(job) == "after 'patched\\n'\n"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_method_of_the_stream_that_a_job_replaces_is_replaced_for_that_job_only(name: str) -> None:
    taken: list[str] = []

    def first(step: Callable[[], None]) -> None:
        stream = getattr(sys, name)
        write = stream.write
        stream.write = lambda text: taken.append(text) or write(text.upper())
        getattr(sys, name).flush = mock.Mock(side_effect=ValueError)
        print("mine", file=getattr(sys, name))
        step()
        getattr(sys, name).write("mine too\n")

    def second() -> None:
        stream = getattr(sys, name)
        stream.write("another's\n")
        print("another's", file=stream, flush=True)

    two = Two(first, second)
    assert (two.first, two.second) == ("MINE\nMINE TOO\n", "another's\nanother's\n")
    assert "another's" not in "".join(taken)
    assert run_job(second) == two.second  # nothing of it is left


def test_a_stream_that_is_collected_in_a_job_changes_nothing_there() -> None:
    streams = [StandIn(io.StringIO(), "stdout")]

    def job() -> None:
        text = sys.stdout = io.StringIO()
        streams.clear()
        gc.collect()
        print("mine")
        assert sys.stdout is text
        sys.stdout = sys.__stdout__
        print(text.getvalue(), end="")

    assert run_job(job) == "mine\n"


def test_a_method_of_the_stream_is_put_back_as_it_was() -> None:
    def job() -> None:
        stream = sys.stdout
        with mock.patch.object(sys.stdout, "write") as write, mock.patch("sys.stdout.flush") as flush:
            print("taken", flush=True)
        print("after", write.call_count, flush.call_count, flush=True)
        stream.isatty = lambda: True  # type: ignore[method-assign]
        print(sys.stdout.isatty())
        del sys.stdout.isatty
        print(sys.stdout.isatty())
        sys.stdout = stream
        print(sys.stdout is stream)

    assert run_job(job) == "after 2 1\nTrue\nFalse\nTrue\n"


def test_a_method_of_the_stream_that_the_server_replaces_is_the_servers(capsys: pytest.CaptureFixture[str]) -> None:
    install()
    with mock.patch.object(sys.stdout, "isatty", return_value=True):
        assert sys.stdout.isatty()
    assert "isatty" not in vars(sys.stdout)


def _wrap_with_text() -> None:
    sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="latin-1")


def _wrap_detached() -> None:
    sys.stdout = io.TextIOWrapper(sys.stdout.detach(), encoding="latin-1")  # type: ignore[union-attr]


def _wrap_raw() -> None:
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(sys.stdout.buffer.raw), encoding="latin-1")  # type: ignore[attr-defined]


def _wrap_detached_bytes() -> None:
    raw = sys.stdout.buffer.detach()  # type: ignore[attr-defined]
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), encoding="latin-1")


def _write_by_codec() -> None:
    sys.stdout = codecs.getwriter("latin-1")(sys.stdout.buffer)  # type: ignore[assignment]


def _open_number() -> None:
    sys.stdout = open(sys.stdout.fileno(), "w", encoding="latin-1")  # noqa: SIM115


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # scripts leave that to the end of the process
@pytest.mark.parametrize(
    "wrap", [_wrap_with_text, _wrap_detached, _wrap_raw, _wrap_detached_bytes, _write_by_codec, _open_number]
)
def test_what_a_wrapper_holds_back_is_there_in_the_end_and_the_wrapper_is_not(wrap: Callable[[], None]) -> None:
    def job() -> None:
        print("before")
        wrap()
        print("grüße")

    running = RunningInThread(job).join()
    assert running.output == b"before\n" + "grüße\n".encode("latin-1")
    assert run_job(lambda: print("grüße")) == "grüße\n"


def test_a_wrapper_of_the_bytes_holds_nothing_back_while_the_job_runs() -> None:
    def job() -> None:
        _wrap_with_text()
        print("wrapped")
        print("error", file=sys.stderr)
        print("wrapped")

    assert run_job(job) == "wrapped\nerror\nwrapped\n"


def test_a_stream_that_cannot_be_flushed_at_the_end_does_no_harm(tmp_path: Path) -> None:
    def job() -> None:
        print("before")
        with open(tmp_path / "file", "w") as file:
            sys.stdout = file
            print("into the file")

    running = RunningInThread(job).join()
    assert (running.text, running.job.state.value) == ("before\n", "finished")
    assert (tmp_path / "file").read_text() == "into the file\n"


def test_a_thousand_jobs_with_wrappers_cost_the_server_nothing() -> None:
    """Not a wrapper over another one: then a print outside of jobs would be as many calls deep."""

    def job() -> None:
        _wrap_with_text()
        print("wrapped", flush=True)

    def depth() -> int:
        depths = []

        class Counting(io.StringIO):
            def write(self, text: str) -> int:
                frame: Any = sys._getframe()
                depths.append(0)
                while frame is not None:
                    depths[-1] += 1
                    frame = frame.f_back
                return len(text)

        with contextlib.redirect_stdout(Counting()):
            run_job(lambda: None)  # which puts a stand-in over it
            print("server", flush=True)
        return max(depths)

    first = depth()
    install()
    stream = sys.stdout
    for _ in range(100):
        assert run_job(job) == "wrapped\n"
    assert sys.stdout is stream
    assert depth() == first


def test_where_modules_are_pickled_by_their_class_ours_is_found() -> None:
    install()
    assert pickle.loads(pickle.dumps(sys)) is sys
    assert isinstance(sys, type(os))


def test_a_module_imported_since_the_first_job_is_one_like_any_other(tmp_path: Path) -> None:
    """The import system calls the class of ``sys`` to make them."""
    (tmp_path / "own_names.py").write_text("stdout = 'its own'\ndef __getattr__(name):\n    return name.upper()\n")
    script = f"""
        import sys, types
        from tests.kit.capturing import run_job
        run_job(lambda: None)
        sys.path.insert(0, {str(tmp_path)!r})
        import own_names
        print(type(own_names) is types.ModuleType, own_names.stdout, own_names.anything)
        del own_names.stdout
        print(own_names.stdout)
    """
    assert run_python(script) == ("True its own ANYTHING\nSTDOUT\n", "")


class TestTakenBefore:
    """Streams that somebody took before the first job."""

    def test_what_a_job_writes_to_the_original_is_the_jobs(self) -> None:
        script = """
            import io, sys, threading
            from sys import stdout, stderr
            from tests.kit.capturing import run_job
            def job():
                stdout.write("one\\n")
                print("two", file=stderr)
                print("three", file=sys.__stdout__)
                stdout.writelines(["four\\n"])
                stdout.flush()
            text = run_job(job)
            stdout.write("server\\n")
            print(text, end="")
        """
        assert run_python(script) == ("server\none\ntwo\nthree\nfour\n", "")

    def test_a_child_that_gets_the_original_prints_to_the_job(self) -> None:
        script = """
            import subprocess, sys
            from sys import stdout
            from tests.kit.capturing import run_job
            def job():
                print("one")
                subprocess.run(["echo", "two"], stdout=sys.__stdout__)
                subprocess.run(["sh", "-c", "echo three >&2"], stderr=sys.__stderr__)
                subprocess.run(["echo", "four"], stdout=stdout)
                print(stdout.fileno() != sys.stdout.fileno())  # code of C is the server's
            text = run_job(job)
            print(stdout.fileno(), sys.stdout.fileno(), flush=True)
            subprocess.run(["echo", "server"], stdout=stdout)
            print(text, end="")
        """
        assert run_python(script) == ("1 1\nserver\none\ntwo\nthree\nfour\nTrue\n", "")

    def test_what_the_server_holds_back_there_stays_the_servers(self) -> None:
        script = """
            import sys
            from sys import stdout
            from tests.kit.capturing import run_job
            stdout.write("held back\\n")
            assert run_job(lambda: (stdout.write("job\\n"), stdout.flush())) == "job\\n"
            stdout.write("server\\n")
        """
        assert run_python(script) == ("held back\nserver\n", "")

    def test_a_wrapper_that_writes_to_the_original_does_not_come_back_to_itself(self) -> None:
        script = """
            import sys, threading
            from tests.kit.capturing import Kept, run_job
            class Tee:
                def __init__(self): self.stream = sys.__stdout__
                def write(self, text): return self.stream.write(text)
                def flush(self): self.stream.flush()
            sys.stdout = Tee()
            text = run_job(lambda: print("job"))
            print("server", text, end="")
            threads = []
            def leave_behind():
                ready = threading.Event()
                threads.append((threading.Thread(target=lambda: (ready.wait(), print("late"))), ready))
                threads[0][0].start()
            run_job(leave_behind)
            threads[0][1].set()
            threads[0][0].join()
        """
        assert run_python(script) == ("server job\nlate\n", "")

    def test_a_wrapper_made_outside_of_jobs_passes_on_to_them(self) -> None:
        script = """
            import io, sys
            from tests.kit.capturing import run_job
            run_job(lambda: None)
            class Upper:
                def __init__(self, stream): self.terminal = stream
                def write(self, text): return self.terminal.write(text.upper())
                def flush(self): self.terminal.flush()
            plain = sys.stdout
            sys.stdout = Upper(plain)
            text = run_job(lambda: print("job"))
            print("server", text, end="")
            sys.stdout = plain
            kept = sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")
            text = run_job(lambda: (print("job"), kept.write("kept\\n")))
            print("server", text, end="")
        """
        assert run_python(script) == ("SERVER JOB\nserver job\nkept\n", "")


def test_a_stream_whose_method_a_job_replaced_has_all_else_of_the_original(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Own(io.StringIO):
        of_the_site = "more than others have"

    monkeypatch.setattr(sys, "stdout", Own())

    def job() -> None:
        before = sys.stdout.of_the_site  # type: ignore[union-attr]
        with mock.patch.object(sys.stdout, "isatty"):
            print(before == sys.stdout.of_the_site)  # type: ignore[union-attr]

    assert run_job(job) == "True\n"
