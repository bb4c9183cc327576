"""Whose output is this? What is promised of streams, threads, interrupts and ends, by jobs that really run."""

import asyncio
import contextlib
import io
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from multiprocessing.pool import ThreadPool
from typing import Any

import pytest

from bgmiddleware import JobCancelled, MemoryRegistry, current_job, detached, progress
from bgmiddleware._capture import ForegroundOutput, current_output, install, use_output, write_late
from bgmiddleware._jobs import JobState
from tests.kit.capturing import LONG, Kept, RunningInThread, in_thread, run_job, run_python


def say(text: str) -> None:
    print(text)


class TestStream:
    """What a job may do with ``sys.stdout`` and ``sys.stderr``, and what it finds there."""

    def test_all_ways_to_print_arrive_in_their_order(self) -> None:
        def job() -> None:
            print("1", end=" ")
            sys.stdout.write("2 ")
            sys.stdout.writelines(["3 ", "4 "])
            sys.stdout.buffer.write(b"5 ")
            print("6", end=" ", file=sys.stderr)
            sys.stderr.buffer.write(b"7 ")
            sys.stderr.write("8 ")
            sys.stdout.buffer.writelines([b"9 ", bytearray(b"10 "), memoryview(b"11 ")])
            print("12", "13", sep="-", flush=True)

        assert run_job(job) == "1 2 3 4 5 6 7 8 9 10 11 12-13\n"

    def test_a_write_returns_how_much_it_wrote(self) -> None:
        def job() -> None:
            lengths.append(sys.stdout.write("añb"))
            lengths.append(sys.stdout.buffer.write("añb".encode()))

        lengths: list[int] = []
        run_job(job)
        assert lengths == [3, 4]

    def test_what_is_no_text_is_refused_and_not_stored(self) -> None:
        def job() -> None:
            for write, value in ((sys.stdout.write, b"x"), (sys.stdout.write, None), (sys.stdout.write, 5)):
                with pytest.raises(TypeError):
                    write(value)  # type: ignore[arg-type]
            for value in ("x", 5, None):
                with pytest.raises(TypeError):
                    sys.stdout.buffer.write(value)  # type: ignore[arg-type]

        assert run_job(job) == ""

    def test_a_subclass_of_str_is_text(self) -> None:
        class Text(str):
            __slots__ = ()

        assert run_job(lambda: sys.stdout.write(Text("subtle"))) == "subtle"

    def test_everything_that_str_can_hold_is_printable(self) -> None:
        def job() -> None:
            print("lone \udce9 and \ud800, NUL \0, \N{PILE OF POO}, \r\x1b[2K")

        assert run_job(job) == "lone \\udce9 and \\ud800, NUL \0, \N{PILE OF POO}, \r\x1b[2K\n"

    def test_bytes_that_are_no_utf_8_stay_as_they_are(self) -> None:
        def job() -> None:
            print("ä")
            sys.stdout.buffer.write(b"\xff\xfe\n")
            print("ö")

        assert RunningInThread(job).join().output == "ä\n".encode() + b"\xff\xfe\n" + "ö\n".encode()

    def test_a_line_of_ten_megabytes_arrives_whole(self) -> None:
        line = "0123456789" * 1_000_000
        assert run_job(lambda: print(line)) == line + "\n"

    def test_libraries_find_what_they_look_for(self) -> None:
        def job() -> None:
            for stream, name in ((sys.stdout, "<stdout>"), (sys.stderr, "<stderr>")):
                found.append(
                    stream.isatty() is False
                    and stream.encoding == "utf-8"
                    and stream.errors == "backslashreplace"
                    and stream.line_buffering is True
                    and stream.writable()
                    and not stream.closed
                    and stream.name == name
                    and stream.mode == "w"
                    and stream.newlines is None
                    and isinstance(stream, io.TextIOWrapper)
                    and stream.buffer.writable()
                    and not stream.buffer.isatty()
                    and stream.buffer.fileno() == stream.fileno()
                    and not any(hasattr(stream, foreign) for foreign in ("rich_proxied_file", "_wrapped", "stop"))
                )

        found: list[bool] = []
        assert run_job(job) == ""
        assert found == [True, True]

    def test_nothing_that_a_job_does_to_the_stream_harms_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        def job() -> None:
            sys.stdout.reconfigure(encoding="ascii", errors="strict", line_buffering=False)
            print("ä")
            sys.stdout.close()
            sys.stderr.close()
            sys.stdout.buffer.close()
            with sys.stdout:
                print("within")
            with contextlib.suppress(io.UnsupportedOperation):
                sys.stdout.detach()
            sys.stdout.flush()
            print("after")

        assert run_job(job) == "ä\nwithin\nafter\n"
        print("server")
        assert capsys.readouterr() == ("server\n", "")

    def test_a_write_kept_by_a_job_is_the_servers_elsewhere(self, capsys: pytest.CaptureFixture[str]) -> None:
        def job() -> None:
            nonlocal write
            write = sys.stdout.write
            write("job")

        write: Callable[[str], int] = len
        assert run_job(job) == "job"
        write("server")
        assert capsys.readouterr().out == "server"

    def test_outside_of_jobs_the_stream_is_its_original(self) -> None:
        script = """
            import io, sys
            sys.stdout = original = io.TextIOWrapper(io.BytesIO(), "latin-1", errors="replace")
            from bgmiddleware._capture import install
            install()
            assert (sys.stdout.encoding, sys.stdout.errors) == ("latin-1", "replace")
            assert sys.stdout.line_buffering is False and sys.stdout.isatty() is False
            sys.stdout.reconfigure(encoding="utf-16-le", line_buffering=True)
            assert original.encoding == "utf-16-le" and sys.stdout.line_buffering is True
            print("ä")
            sys.stdout.buffer.write(b"!")
            assert original.buffer.getvalue() == "ä\\n".encode("utf-16-le") + b"!"
            try:
                sys.stdout.fileno()
            except io.UnsupportedOperation:
                pass
            sys.stdout.buffer.raw_data = None
            original.close()
            assert sys.stdout.closed
            sys.stdout.flush()
            try:
                print("x")
            except ValueError:
                sys.stdout = sys.__stdout__
                print("as it was")
        """
        assert run_python(script) == ("as it was\n", "")


def _in_context_of(thread: Any, text: str) -> None:
    """Print in the context of *thread*, which runs in it already since Python 3.14."""
    if sys.version_info >= (3, 14):
        print(text)
    else:
        thread._context.run(print, text)


class TestWhose:
    """Who prints to the job, and who does not."""

    def test_other_threads_print_to_the_server_meanwhile(self, capsys: pytest.CaptureFixture[str]) -> None:
        def job() -> None:
            print("job")
            began.set()
            assert go_on.wait(LONG)
            print("job again")

        began, go_on = threading.Event(), threading.Event()
        running = RunningInThread(job)
        assert began.wait(LONG)
        print("server")
        print("server", file=sys.stderr)
        sys.stdout.buffer.write(b"bytes\n")
        in_thread(lambda: print("thread of the server"))
        go_on.set()
        assert running.join().text == "job\njob again\n"
        assert capsys.readouterr() == ("server\nbytes\nthread of the server\n", "server\n")

    @pytest.mark.parametrize("count", [2, 100])
    def test_jobs_at_once_never_mix(self, count: int) -> None:
        def job(number: int) -> None:
            barrier.wait(LONG)
            for line in range(20):
                print(number, line)

        barrier = threading.Barrier(count)
        jobs = [RunningInThread(lambda number=number: job(number)) for number in range(count)]  # type: ignore[misc]
        for number, running in enumerate(jobs):
            assert running.join().text == "".join(f"{number} {line}\n" for line in range(20))

    def test_threads_that_a_job_begins_are_the_jobs(self) -> None:
        class Subclass(threading.Thread):
            def run(self) -> None:
                print("subclass")

        def grandparent() -> None:
            in_thread(lambda: say("grandchild"))
            print("child")

        def job() -> None:
            in_thread(grandparent)
            timer = threading.Timer(0, say, ["timer"])
            timer.start()
            timer.join()
            thread = Subclass()
            thread.start()
            thread.join()

        assert run_job(job) == "grandchild\nchild\ntimer\nsubclass\n"

    def test_a_thread_with_a_context_of_its_own_is_the_jobs(self) -> None:
        """As from Python 3.14 on, where Thread.run is called in ``thread._context``."""

        class Thread(threading.Thread):
            def __init__(self, context: Context) -> None:
                super().__init__()
                self._context = context

            def run(self) -> None:
                _in_context_of(self, "in its context")
                print("around it")

        def job() -> None:
            for context in (Context(), copy_context()):
                thread = Thread(context)
                thread.start()
                thread.join()

        assert run_job(job) == "in its context\naround it\n" * 2

    def test_a_pool_worker_leaves_the_context_that_it_would_inherit(self, capsys: pytest.CaptureFixture[str]) -> None:
        """As from Python 3.14 on with ``-X thread_inherit_context=1``."""

        class Worker(threading.Thread):
            def run(self) -> None:
                _in_context_of(self, "worker")

        def job() -> None:
            from concurrent.futures.thread import _worker  # type: ignore[attr-defined]

            thread = Worker(target=_worker)
            thread._context = copy_context()  # type: ignore[attr-defined]
            thread.start()
            thread.join()

        assert run_job(job) == ""
        assert capsys.readouterr().out == "worker\n"

    def test_an_uncaught_exception_of_a_child_thread_is_the_jobs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
        text = run_job(lambda: in_thread(lambda: 1 // 0))  # type: ignore[arg-type,return-value]
        assert text.startswith("Exception in thread ")
        assert text.splitlines()[-1].startswith("ZeroDivisionError: ")

    def test_a_traceback_is_the_jobs(self) -> None:
        def job() -> None:
            try:
                raise LookupError("gone")
            except LookupError:
                traceback.print_exc()

        assert run_job(job).endswith("LookupError: gone\n")

    def test_a_pool_made_inside_is_the_jobs(self) -> None:
        def job() -> None:
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(say, ["mapped"]))
                pool.submit(say, "submitted").result()
            with ThreadPool(1) as threads:
                threads.apply(say, ["multiprocessing's"])

        assert run_job(job) == "mapped\nsubmitted\nmultiprocessing's\n"

    @pytest.mark.parametrize("warm", [True, False])
    def test_a_task_of_a_shared_pool_belongs_to_its_submitter(
        self, warm: bool, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with ThreadPoolExecutor(1) as pool:
            if warm:
                pool.submit(len, "").result()
            assert run_job(lambda: pool.submit(say, "job").result()) == "job\n"
            pool.submit(say, "server").result()
            assert run_job(lambda: pool.submit(say, "next job").result()) == "next job\n"
        assert capsys.readouterr().out == "server\n"

    def test_a_thread_begun_by_a_task_of_a_shared_pool_is_the_jobs(self) -> None:
        with ThreadPoolExecutor(1) as pool:
            assert run_job(lambda: pool.submit(in_thread, lambda: say("nested")).result()) == "nested\n"

    def test_coroutines_are_the_jobs_in_any_thread(self) -> None:
        async def main() -> None:
            print("loop")
            await asyncio.gather(asyncio.create_task(task()))
            await asyncio.to_thread(say, "to_thread")
            await asyncio.get_running_loop().run_in_executor(None, say, "run_in_executor")

        async def task() -> None:
            print("task")

        assert run_job(lambda: asyncio.run(main(), debug=False)) == "loop\ntask\nto_thread\nrun_in_executor\n"

    def test_a_coroutine_in_the_servers_loop_is_the_jobs(self, capsys: pytest.CaptureFixture[str]) -> None:
        async def task(text: str) -> None:
            print(text)

        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            assert run_job(lambda: asyncio.run_coroutine_threadsafe(task("job"), loop).result(LONG)) == "job\n"
            asyncio.run_coroutine_threadsafe(task("server"), loop).result(LONG)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(LONG)
            loop.close()
        assert capsys.readouterr().out == "server\n"

    def test_a_detached_block_is_the_servers(self, capsys: pytest.CaptureFixture[str]) -> None:
        def job() -> None:
            print("before")
            with detached():
                print("server")
                in_thread(lambda: print("helper"))
                assert not current_job()
            print("after")

        assert run_job(job) == "before\nafter\n"
        assert capsys.readouterr().out == "server\nhelper\n"

    def test_stragglers_print_to_the_server(self, capsys: pytest.CaptureFixture[str]) -> None:
        def straggle() -> None:
            print("job")
            printed.set()
            assert ended.wait(LONG)
            print("late")
            print("late", file=sys.stderr)
            sys.stdout.buffer.write(b"bytes\n")
            sys.stdout.flush()
            assert not current_job()
            in_thread(lambda: print("child"))
            done.set()

        def job() -> None:
            threading.Thread(target=straggle).start()
            assert printed.wait(LONG)

        printed, ended, done = threading.Event(), threading.Event(), threading.Event()
        running = RunningInThread(job).join()
        ended.set()
        assert done.wait(LONG)
        assert running.text == "job\n"
        assert capsys.readouterr() == ("late\nbytes\nchild\n", "late\n")

    def test_an_ended_job_is_not_kept_by_what_it_left_behind(self) -> None:
        left: list[Any] = []

        def job() -> None:
            left.append(current_output())

        run_job(job)
        assert left[0].job is None
        assert "Registry" not in repr([left[0]._store, left[0].out])

    def test_standard_input_is_at_its_end_in_a_job(self) -> None:
        script = """
            import os, sys
            from tests.kit.capturing import run_job
            def job():
                try:
                    input("name? ")
                except EOFError:
                    print("EOF")
                print([sys.stdin.read(), sys.stdin.readline(), list(sys.stdin), sys.stdin.buffer.read()])
                print(os.read(sys.stdin.fileno(), 10), sys.stdin.encoding, sys.stdin.closed, sys.stdin.isatty())
                sys.stdin.close()
            sys.stdout.write(run_job(job))
            print(input(), sys.stdin.encoding == sys.__stdin__.encoding, sys.stdin.fileno())
            print(sys.stdin.read(), end="")
        """
        expected = "name? EOF\n['', '', [], b'']\nb'' utf-8 False False\nSERVERLINE True 0\nrest\n"
        assert run_python(script, stdin="SERVERLINE\nrest\n", options=["-X", "utf8"]) == (expected, "")


class TestInstall:
    """The stand-ins come once, stay, and come again where somebody took them away."""

    def test_installing_twice_changes_nothing(self, capsys: pytest.CaptureFixture[str]) -> None:
        install()
        before = sys.stdout, sys.stderr, sys.stdin
        install()
        in_thread(install)
        assert before == (sys.stdout, sys.stderr, sys.stdin)

    def test_a_replaced_stream_is_healed_at_the_next_job(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run_job(lambda: None)
        mine = io.StringIO()
        monkeypatch.setattr(sys, "stdout", mine)
        assert run_job(lambda: print("job")) == "job\n"
        print("server")
        assert mine.getvalue() == "server\n"
        assert sys.stdout.getvalue() == "server\n"  # type: ignore[attr-defined]  # foreign methods are found

    def test_a_wrapper_of_the_stand_in_is_left_alone(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Colours:
            def __init__(self, stream: Any) -> None:
                self._wrapped = stream

            def write(self, text: str) -> int:
                return int(self._wrapped.write(text.upper()))

            def flush(self) -> None:
                self._wrapped.flush()

        install()
        wrapper = Colours(sys.stdout)
        monkeypatch.setattr(sys, "stdout", wrapper)
        assert run_job(lambda: print("job")) == "JOB\n"
        assert sys.stdout is wrapper  # type: ignore[comparison-overlap]
        # A late write passes through the wrapper, and does not come back for ever.
        kept = Kept()
        kept.output._late = write_late("stdout"), write_late("stderr")
        kept.output.end()
        kept.run(lambda: print("late"))
        assert capsys.readouterr().out == "LATE\n"

    def test_a_straggler_outlives_the_stream_that_was_the_original(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def straggle() -> None:
            assert go_on.wait(LONG)
            print("late", file=stream)
            done.set()

        def job() -> None:
            nonlocal stream
            stream = sys.stdout
            threading.Thread(target=straggle).start()

        stream: Any = None
        go_on, done = threading.Event(), threading.Event()
        with monkeypatch.context() as patch:
            mine = io.StringIO()
            patch.setattr(sys, "stdout", mine)
            run_job(job)
        mine.close()
        go_on.set()
        assert done.wait(LONG)
        assert capsys.readouterr().out == "late\n"

    def test_a_job_does_not_mind_that_the_original_is_closed(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def job() -> None:
            print(sys.stdout.closed, flush=True)

        monkeypatch.setattr(sys, "stdout", io.StringIO())
        run_job(job)
        sys.stdout.original.close()  # type: ignore[attr-defined]
        assert run_job(job) == "False\n"
        assert sys.stdout.closed

    def test_redirect_stdout_outside_of_jobs_works_as_ever(self, capsys: pytest.CaptureFixture[str]) -> None:
        install()
        before = sys.stdout
        with contextlib.redirect_stdout(io.StringIO()) as mine:
            print("mine")
            assert run_job(lambda: print("job")) == "job\n"
            print("mine again")
        assert sys.stdout is before
        assert mine.getvalue() == "mine\nmine again\n"
        assert run_job(lambda: print("job")) == "job\n"
        assert capsys.readouterr().out == ""

    def test_a_stream_that_has_only_write_is_enough(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Minimal:
            def write(self, text: str) -> None:
                texts.append(text)

        texts: list[str] = []
        monkeypatch.setattr(sys, "stdout", Minimal())
        assert run_job(lambda: print("job", flush=True)) == "job\n"
        print("server", flush=True)
        sys.stdout.buffer.write(b"bytes")
        assert texts == ["server", "\n", "bytes"]
        assert not sys.stdout.isatty()

    def test_a_process_without_streams_can_run_jobs(self) -> None:
        script = """
            import sys
            out = sys.stdout
            sys.stdout = sys.stderr = sys.stdin = None
            from tests.kit.capturing import run_job
            text = run_job(lambda: print("job", flush=True, file=sys.stderr))
            print("nowhere", flush=True)
            sys.stdout.buffer.write(b"nowhere")
            out.write(text)
            out.flush()
        """
        assert run_python(script) == ("job\n", "")

    def test_a_stream_that_raises_at_every_touch_is_not_touched(self) -> None:
        """As mod_wsgi's restricted stdout."""
        script = """
            import sys
            class Restricted:
                def __getattribute__(self, name):
                    raise OSError("sys.stdout access restricted by mod_wsgi")
            out, sys.stdout = sys.stdout, Restricted()
            from tests.kit.capturing import run_job
            for _ in range(2):
                out.write(run_job(lambda: print("job", flush=True)))
            try:
                print("server")
            except OSError as error:
                print(error, file=out, flush=True)
            sys.stdout = out
        """
        assert run_python(script) == ("job\njob\nsys.stdout access restricted by mod_wsgi\n", "")

    def test_an_unclean_end_of_the_process_is_silent(self) -> None:
        script = """
            import sys, threading
            from tests.kit.capturing import RunningInThread
            began = threading.Event()
            def job():
                sys.stdout.fileno()
                while True:
                    print("x" * 100)
                    began.set()
            RunningInThread(job)
            began.wait()
            print("end")
        """
        assert run_python(script, options=["-X", "dev"]) == ("end\n", "")


class TestOutput:
    """The races that a job's output must not lose: against readers, against its own stack, against its end."""

    def test_what_is_written_during_a_drain_is_stored_after_it(self) -> None:
        """Else a reader that has just looked would sleep, and the writer found the lock taken."""

        def store(data: bytes) -> None:
            kept.chunks.append(data)
            if data == b"first":
                in_thread(lambda: kept.output.out("second\n"))

        kept = Kept(store)
        kept.output.out("first")
        kept.output.watch(True)
        kept.output.drain()
        assert kept.chunks == [b"first", b"second\n"]

    def test_what_is_written_while_storing_is_held_is_stored_after_it(self) -> None:
        kept = Kept()
        kept.output.watch(True)
        with kept.output.held():
            kept.run(lambda: print("own thread"))
            in_thread(lambda: kept.output.out("other thread\n"))
            assert kept.chunks == []
        assert b"".join(kept.chunks) == b"own thread\nother thread\n"

    def test_a_watched_line_is_stored_at_once(self) -> None:
        kept = Kept()
        kept.run(lambda: print("batched"))
        assert kept.chunks == []
        kept.output.watch(True)
        kept.run(lambda: print("now"))
        assert kept.chunks == [b"batched\nnow\n"]
        kept.output.watch(False)
        kept.run(lambda: print("batched"))
        assert len(kept.chunks) == 1

    @pytest.mark.parametrize(
        ("write", "shown"),
        [
            (lambda: print("half a line", end=""), False),
            (lambda: print("half a line", end="", flush=True), True),
            (lambda: print("50%", end="\r"), True),
            (lambda: print("\r51%", end=""), True),
            (lambda: sys.stdout.buffer.write(b"half a line"), False),
            (lambda: sys.stdout.buffer.write(b"a line\n"), True),
            (lambda: sys.stdout.buffer.write(b"\r52%"), True),
        ],
    )
    def test_who_watches_is_shown_lines_and_what_is_flushed(self, write: Callable[[], object], shown: bool) -> None:
        kept = Kept()
        kept.output.watch(True)
        kept.run(write)
        assert bool(kept.chunks) is shown

    @pytest.mark.parametrize(
        "write",
        [
            lambda: sys.stdout.write("x" * 10_000),
            lambda: sys.stderr.write("x" * 10_000),
            lambda: sys.stdout.buffer.write(b"x" * 10_000),
            lambda: current_output().out("x" * 10_000),  # type: ignore[union-attr]
        ],
    )
    def test_a_large_write_is_stored_at_once(self, write: Callable[[], int]) -> None:
        kept = Kept()
        assert kept.run(write) == 10_000
        assert kept.chunks == [b"x" * 10_000]

    def test_a_print_on_the_stack_of_a_drain_is_kept_for_the_next(self) -> None:
        """As by a signal handler or a ``__del__`` that happens to run there."""

        def store(data: bytes) -> None:
            if data == b"x":
                print("nested")
                sys.stdout.flush()
                assert sys.stdout.fileno() > 2
                kept.output.drain()
                with kept.output.held():
                    pass
            kept.chunks.append(data)

        kept = Kept(store)
        kept.output.watch(True)
        kept.run(lambda: (sys.stdout.write("x"), sys.stdout.flush()))
        assert kept.data == b"xnested\n"
        kept.output.end()

    def test_an_error_of_the_store_does_not_stop_the_output(self) -> None:
        def store(data: bytes) -> None:
            if data == b"bad":
                raise MemoryError
            kept.chunks.append(data)

        kept = Kept(store)
        kept.output.out("bad")
        with pytest.raises(MemoryError):
            kept.output.drain()
        kept.output.out("good")
        assert kept.data == b"good"

    def test_a_writer_that_the_end_overtakes_writes_late(self) -> None:
        kept = Kept()
        kept.run(lambda: print("in time"))
        pending = kept.output.pending
        assert pending is not None
        kept.output.end()
        # The rest of a stand-in's write that had the list already.
        pending.append("too late")
        assert len(pending) >= kept.output.batch
        kept.output.drain_soon()
        assert b"".join(kept.chunks) == b"in time\n"
        assert kept.late == ["too late"]

    def test_what_happens_to_an_ended_output_is_harmless(self) -> None:
        kept = Kept()
        kept.output.end()
        kept.output.interrupt("too late")
        kept.output.watch(True)
        kept.output.watch(False)
        kept.output.check()
        kept.output.drain()
        kept.output.flush()
        assert kept.output.fileno() is None
        kept.run(lambda: print("late", end=""))
        assert (kept.chunks, "".join(kept.late)) == ([], "late")

    def test_an_interrupt_that_meets_the_end_is_not_raised(self) -> None:
        kept = Kept()
        kept.output.interrupt("cancelled")
        write = kept.output.out
        kept.output.end()
        assert write("late") == 4
        assert kept.late == ["late"]

    def test_six_writers_a_reader_and_a_file_in_mid_run_lose_nothing(self) -> None:
        def write(number: int) -> None:
            with use_output(kept.output):
                for line in range(lines):
                    sys.stdout.write(f"{number}:{line}\n")
                    if (number, line) == (0, lines // 2):
                        sys.stdout.fileno()

        def read() -> None:
            while not stop.is_set():
                kept.output.watch(True)
                kept.output.drain()
                kept.output.watch(False)
                prefixes.append(sum(map(len, list(kept.chunks))))

        lines = 2000
        install()
        kept = Kept()
        prefixes: list[int] = []
        stop = threading.Event()
        reader = threading.Thread(target=read)
        writers = [threading.Thread(target=write, args=[number]) for number in range(6)]
        for thread in (reader, *writers):
            thread.start()
        for thread in writers:
            thread.join(LONG)
        stop.set()
        reader.join(LONG)
        kept.output.end()
        seen: list[list[int]] = [[] for _ in range(6)]
        for line in b"".join(kept.chunks).decode().splitlines():
            number, _, at = line.partition(":")
            seen[int(number)].append(int(at))
        assert seen == [list(range(lines))] * 6
        assert prefixes == sorted(prefixes)

    def test_readers_of_a_running_job_see_a_prefix_until_all_is_there(self) -> None:
        def job() -> None:
            for line in range(5000):
                print(line)

        running = RunningInThread(job)
        seen = b"".join(piece.data for piece in running.registry.follow(running.key))
        assert seen.decode() == "".join(f"{line}\n" for line in range(5000))
        running.join()

    def test_a_reader_is_woken_by_the_first_print(self) -> None:
        def job() -> None:
            assert go_on.wait(LONG)
            print("first")
            assert seen.wait(LONG)

        go_on, seen = threading.Event(), threading.Event()
        running = RunningInThread(job)
        threading.Timer(0.01, go_on.set).start()
        running.wait_for("first")
        seen.set()
        running.join()

    def test_prints_in_the_midst_of_a_registry_call_do_not_deadlock(self) -> None:
        """The registry asks the clock while it holds its lock: as if a ``__del__`` ran there."""

        def clock() -> float:
            if current_job():
                print("from within", flush=True)
            return time.time()

        def job() -> str:
            for step in range(50):
                progress(step)
                print(step)
                sys.stdout.buffer.write(b"x" * 5000)
            return "body" * 100_000

        registry = MemoryRegistry(clock=clock)
        running = RunningInThread(job, registry)
        output = "".join(piece.data.decode() for piece in registry.follow(running.key))
        assert running.join().job.state is JobState.FINISHED
        assert output.count("x" * 5000) == 50
        # Between the number and its line break anything may have run.
        rest = output.replace("from within", "").replace("x" * 5000, "").replace("\n", "")
        assert rest == "".join(map(str, range(50)))
        assert output.count("from within") >= 50

    def test_signal_handlers_that_print_during_drains_lose_nothing(self) -> None:
        script = """
            import signal, sys
            from bgmiddleware._capture import install, use_output
            from tests.kit.capturing import Kept
            def handle(*_):
                global handled
                handled += 1
                print("S", handled)
            handled = 0
            install()
            kept = Kept()
            kept.output.watch(True)
            signal.signal(signal.SIGALRM, handle)
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
            with use_output(kept.output):
                line = 0
                while handled < 300:
                    print("L", line)
                    line += 1
                signal.setitimer(signal.ITIMER_REAL, 0)
            kept.output.end()
            text = b"".join(kept.chunks).decode()
            print(text.count("S"), handled, text.count("L"), line, text.count("\\n") - handled - line)
        """
        out, err = run_python(script)
        handlers, handled, lines, printed, rest = map(int, out.split())
        assert (handlers, lines, rest, err) == (handled, printed, 0, "")

    def test_what_a_request_printed_in_the_foreground_is_kept_up_to_a_limit(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        install()
        output = ForegroundOutput(write_late("stdout"), write_late("stderr"), limit=8)
        output.request = {}
        with use_output(output):
            print("ab")
            sys.stdout.buffer.write("ä\n".encode())
            print("cdefgh", file=sys.stderr)
            print("beyond")
            sys.stdout.buffer.write(b"beyond\n")
            assert not current_job()
            assert sys.stdout.isatty() is False
            with pytest.raises(TypeError):
                sys.stdout.write(b"x")  # type: ignore[arg-type]
        assert output.text == "ab\nä\ncde"
        assert capsys.readouterr() == ("ab\nä\nbeyond\nbeyond\n", "cdefgh\n")


class TestInterrupt:
    """A cancel is raised by the next print of the job's own thread, and its clean-up may print."""

    def test_it_is_raised_once_and_the_clean_up_may_print(self) -> None:
        def job() -> None:
            try:
                print("begun")
                began.set()
                assert go_on.wait(LONG)
                print("not printed")
            finally:
                print("cleaning up")
                progress(1, 2)
                current_job().check()
                sys.stdout.buffer.write(b"clean\n")

        began, go_on = threading.Event(), threading.Event()
        running = RunningInThread(job)
        assert began.wait(LONG)
        running.registry.request_cancel(running.key)
        running.registry.request_cancel(running.key)
        go_on.set()
        running.join()
        assert (running.job.state, running.job.reason) == (JobState.CANCELLED, "cancelled on request")
        assert running.text == "begun\ncleaning up\nclean\n"

    @pytest.mark.parametrize(
        "point",
        [
            lambda: print(""),
            lambda: sys.stdout.buffer.write(b"x"),
            lambda: sys.stderr.writelines(["x"]),
            lambda: current_job().check(),
            lambda: progress(1),
        ],
    )
    def test_every_print_progress_and_check_is_a_cancellation_point(self, point: Callable[[], object]) -> None:
        def job() -> None:
            began.set()
            assert go_on.wait(LONG)
            try:
                point()
            except JobCancelled as cancelled:
                print(cancelled.reason)
                point()
                raise

        began, go_on = threading.Event(), threading.Event()
        running = RunningInThread(job)
        assert began.wait(LONG)
        running.registry.request_cancel(running.key)
        go_on.set()
        assert running.join().job.state is JobState.CANCELLED
        assert running.text.startswith("cancelled on request\n")

    def test_helper_threads_and_late_checks_are_spared(self) -> None:
        def job() -> None:
            nonlocal late
            late = current_job()
            began.set()
            assert go_on.wait(LONG)
            in_thread(help_job)
            print("raises")

        def help_job() -> None:
            print("helper")
            sys.stdout.buffer.write(b"bytes\n")
            current_job().check()
            print("helper again")

        late: Any = None
        began, go_on = threading.Event(), threading.Event()
        running = RunningInThread(job)
        assert began.wait(LONG)
        running.registry.request_cancel(running.key)
        go_on.set()
        assert running.join().text == "helper\nbytes\nhelper again\n"
        assert running.job.state is JobState.CANCELLED
        # The ident of the job's thread may be another thread's by now.
        late.check()

    def test_a_check_raises_again_but_not_while_what_it_raised_is_handled(self) -> None:
        kept = Kept()
        kept.output.interrupt("enough")
        for _ in range(2):
            try:
                kept.output.check()
            except JobCancelled:
                kept.output.check()
                kept.run(lambda: print("clean"))
            else:
                pytest.fail("nothing was raised")
        assert kept.data == b"clean\n" * 2

    def test_the_runners_notes_do_not_raise(self) -> None:
        kept = Kept()
        kept.output.interrupt("enough")
        kept.output.note("note")
        assert kept.data == b"note"

    def test_a_child_given_the_stream_is_terminated(self) -> None:
        def job() -> None:
            script = "print('child', flush=True); input()"
            with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=sys.stdout) as child:
                codes.append(child.wait(LONG))
            print("not printed")

        codes: list[int] = []
        running = RunningInThread(job)
        running.wait_for("child\n")
        running.registry.request_cancel(running.key)
        assert running.join().job.state is JobState.CANCELLED
        assert (codes, running.text) == ([-signal.SIGTERM], "child\n")

    def test_only_children_that_were_given_the_stream_are_terminated(self) -> None:
        def begin(**options: Any) -> "subprocess.Popen[bytes]":
            return subprocess.Popen(["cat"], stdin=subprocess.PIPE, **options)

        kept = Kept()
        theirs = [kept.run(lambda: begin(stdout=subprocess.DEVNULL)), begin(stdout=subprocess.DEVNULL)]
        ours = [
            kept.run(lambda: begin(stdout=sys.stdout)),
            kept.run(lambda: begin(stdout=subprocess.DEVNULL, stderr=sys.stderr.buffer)),
        ]
        kept.output.interrupt("enough")
        # One that begins when the interrupt is there, but not yet delivered, too.
        ours.append(kept.run(lambda: begin(stdout=sys.stdout)))
        assert [child.wait(LONG) for child in ours] == [-signal.SIGTERM] * 3
        try:
            kept.output.check()
        except JobCancelled:
            theirs.append(kept.run(lambda: begin(stdout=sys.stdout)))  # by the clean-up
        for child in theirs:
            child.communicate(timeout=LONG)
        assert [child.returncode for child in theirs] == [0] * 3
        for child in ours:
            child.communicate()
        kept.output.end()


def test_what_came_on_stderr_is_told_apart_up_to_a_bound() -> None:
    def job() -> None:
        for number in range(600):
            print(f"{number}é")
            print(f"error {number}", file=sys.stderr)
        print("more", file=sys.stderr)

    running = RunningInThread(job).join()
    ranges = running.job.error_ranges
    assert len(ranges) == 500
    texts = [running.output[begin:end].decode() for begin, end in ranges]
    assert texts == [f"error {number}\n" for number in range(500)]


def test_what_came_on_stderr_in_one_piece_is_one_range() -> None:
    def job() -> None:
        print("begin")
        for _ in range(3000):
            print("error", file=sys.stderr)
        print("x" * 300_000, file=sys.stderr)

    running = RunningInThread(job).join()
    assert running.job.error_ranges == ((6, len(running.output)),)
    assert RunningInThread(lambda: print("none")).join().job.error_ranges == ()
