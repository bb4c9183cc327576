"""Children of jobs: what they are given as their stdout, in which order it comes, and what is left when jobs end."""

import contextlib
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bgmiddleware._capture import Outlet
from bgmiddleware._capture._files import OutputFile
from bgmiddleware._capture._pipes import collector
from tests.kit.capturing import LONG, Kept, RunningInThread, open_files, run_job, run_python


class TestNumber:
    """A job's ``fileno()``: children write there, in order; nothing of it is left behind."""

    def test_a_descriptor_of_the_jobs_own_is_there(self, capfd: pytest.CaptureFixture[str]) -> None:
        def job() -> None:
            print("1")
            os.write(sys.stdout.fileno(), b"2\n")
            print("3")
            os.write(sys.stderr.fileno(), b"4\n")
            sys.stdout.buffer.write(b"5\n")

        assert run_job(job) == "1\n2\n3\n4\n5\n"
        assert capfd.readouterr() == ("", "")

    def test_print_child_print_keep_their_order(self) -> None:
        def job() -> None:
            for _ in range(20):
                print("print", end=" ")
                subprocess.run(["/bin/echo", "child"], stdout=sys.stdout, stderr=sys.stderr, check=True)

        assert run_job(job) == "print child\n" * 20

    def test_flush_is_seen_by_a_child_that_has_the_file_already(self) -> None:
        def job() -> None:
            with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=sys.stdout) as child:
                assert child.stdin is not None
                print("print", flush=True)
                child.communicate(b"child\n", LONG)
            print("end")

        assert run_job(job) == "print\nchild\nend\n"

    def test_what_a_child_prints_is_seen_while_it_runs(self) -> None:
        def job() -> None:
            with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=sys.stdout) as child:
                assert child.stdin is not None
                child.stdin.write(b"live\n")
                child.stdin.flush()
                assert seen.wait(LONG)

        seen = threading.Event()
        running = RunningInThread(job)
        running.wait_for("live")
        seen.set()
        running.join()

    def test_a_drain_does_not_run_after_a_child_that_writes_on(self) -> None:
        """A child may write faster than its output is read: what comes during a drain is the next one's."""

        def store(data: bytes) -> None:
            kept.chunks.append(data)
            if len(kept.chunks) < 3:
                os.write(number, b"more")

        kept = Kept(store)
        number = kept.run(lambda: sys.stdout.fileno())
        with kept.output._lock:  # the collector is kept away
            os.write(number, b"first")
            kept.output._drain()
            assert kept.chunks == [b"first"]
            kept.output._drain()
            assert kept.chunks == [b"first", b"more"]
            kept.output._drain()
        kept.output.end()

    def test_no_descriptor_and_no_thread_is_left_by_many_jobs(self) -> None:
        """In a process of its own: a helper of multiprocessing that an earlier job started writes to its pipe still."""
        script = """
            import sys, threading
            from tests.kit.capturing import LONG, open_files, run_job
            def job():
                for _ in range(3):
                    sys.stderr.fileno()
                    print("\\r 33%", file=sys.stderr, end="", flush=True)
            run_job(job)
            before = open_files()
            for _ in range(200):
                assert run_job(job) == "\\r 33%" * 3
            assert open_files() <= before
            for thread in threading.enumerate():
                if thread.name == "bgmiddleware-collect":
                    thread.join(LONG)
                    assert not thread.is_alive()
        """
        assert run_python(script) == ("", "")

    def test_forked_children_print_to_the_job(self) -> None:
        script = """
            import multiprocessing, os, subprocess, sys, threading
            from tests.kit.capturing import run_job, in_thread
            def fork(function):
                pid = os.fork()
                if not pid:
                    function()
                    os._exit(0)
                os.waitpid(pid, 0)
            def child():
                print("child")
                sys.stdout.buffer.write(b"bytes\\n")
                sys.stderr.writelines(["error\\n"])
                subprocess.run(["/bin/echo", "grandchild"], stdout=sys.stdout)
                in_thread(lambda: print("thread"))
                fork(lambda: print("forked grandchild"))
                print("x" * 2_000_000)
                sys.stdout.flush()
            def job():
                print("before")
                fork(child)
                print("between")
                process = multiprocessing.get_context("fork").Process(target=print, args=["multiprocessing"])
                process.start()
                process.join()
                print("after")
            text = run_job(job)
            print(text.replace("x" * 2_000_000, "X"), end="", flush=True)
            fork(lambda: print("server", flush=True))
        """
        expected = (
            "before\nchild\nbytes\nerror\ngrandchild\nthread\nforked grandchild\nX\nbetween\nmultiprocessing\nafter\n"
        )
        options = ["-W", "ignore::DeprecationWarning"]  # of fork beside threads, from 3.12 on
        assert run_python(script, options=options) == (expected + "server\n", "")

    def test_a_forked_server_runs_jobs_of_its_own(self) -> None:
        """Also where the fork came while the parent's threads held every lock of ours."""
        script = """
            import os, signal, sys, threading
            from bgmiddleware._capture import _install, _pipes, install
            from tests.kit.capturing import Kept, run_job
            install()
            held, stop = threading.Event(), threading.Event()
            def hold():
                with _install._lock, _pipes.collector._lock:
                    held.set()
                    stop.wait()
            thread = threading.Thread(target=hold)
            thread.start()
            held.wait()
            pid = os.fork()
            if not pid:
                signal.alarm(20)
                Kept().run(lambda: sys.stdout.fileno())
                sys.stdout = sys.__stdout__  # so that there is something to install
                text = run_job(lambda: (print("job in child", flush=True), os.write(sys.stdout.fileno(), b"fd\\n")))
                os._exit(0 if text == "job in child\\nfd\\n" else 1)
            print(os.waitpid(pid, 0)[1])
            stop.set()
            thread.join()
        """
        assert run_python(script, options=["-W", "ignore::DeprecationWarning"]) == ("0\n", "")


def _close_number() -> None:
    number = sys.stdout.fileno()
    os.write(number, b"bytes\n")
    os.close(number)


def _open_number_and_close_it() -> None:
    with os.fdopen(sys.stdout.fileno(), "wb", 0) as file:
        file.write(b"bytes\n")


def _close_both_numbers() -> None:
    os.write(sys.stdout.fileno(), b"bytes\n")
    os.close(sys.stderr.fileno())
    os.close(sys.stdout.fileno())


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Callable[[int], None]]:
    """Have somebody else's file open at a given number, and see in the end that nobody touched it."""
    numbers = []
    contents = b"somebody else's\n" * 1000

    def place(number: int) -> None:
        (tmp_path / "file").write_bytes(contents)
        file = os.open(tmp_path / "file", os.O_RDWR)
        os.dup2(file, number)
        os.close(file)
        numbers.append(number)

    yield place
    for number in numbers:
        assert os.fstat(number).st_size == len(contents)
        assert os.lseek(number, 0, os.SEEK_CUR) == 0
        os.close(number)
    assert (tmp_path / "file").read_bytes() == contents


class TestNumberOfOthers:
    """The number that a job was given is the job's: it may close it, and the system may give it to somebody else."""

    @pytest.mark.parametrize("close", [_close_number, _open_number_and_close_it, _close_both_numbers])
    def test_a_job_that_closes_its_number_prints_on(self, close: Callable[[], None]) -> None:
        def job() -> None:
            print("before")
            close()
            print("after")
            subprocess.run(["/bin/echo", "child"], stdout=sys.stdout, stderr=sys.stderr, check=True)
            print("end")

        assert run_job(job) == "before\nbytes\nafter\nchild\nend\n"

    def test_nobody_touches_a_file_that_has_the_number_now(self, victim: Callable[[int], None]) -> None:
        def job() -> None:
            number = sys.stdout.fileno()
            print("before")
            os.close(number)
            victim(number)
            print("after", "x" * 100_000)
            os.write(sys.stdout.fileno(), b"bytes\n")
            subprocess.run(["/bin/echo", "child"], stdout=sys.stdout, check=True)
            assert sys.stdout.fileno() != number

        assert run_job(job) == f"before\nafter {'x' * 100_000}\nbytes\nchild\n"

    def test_a_forked_child_does_not_either(self, victim: Callable[[int], None]) -> None:
        def job() -> None:
            number = sys.stdout.fileno()
            os.close(number)
            victim(number)
            pid = os.fork()
            if not pid:
                print("child")
                sys.stdout.flush()
                os._exit(0)
            os.waitpid(pid, 0)

        assert run_forking_job(job) == "child\n"

    def test_a_number_that_stands_for_a_file_for_a_while_does_so_for_children_only(self, tmp_path: Path) -> None:
        def job() -> None:
            print("before")
            number = sys.stdout.fileno()
            kept = os.dup(number)
            with open(tmp_path / "part", "wb") as file:
                os.dup2(file.fileno(), number)
            os.write(number, b"into the file\n")
            print("between")
            os.dup2(kept, number)
            os.close(kept)
            os.write(number, b"after\n")

        assert run_job(job) == "before\nbetween\nafter\n"
        assert (tmp_path / "part").read_bytes() == b"into the file\n"

    def test_a_number_is_the_same_when_a_job_asks_again_to_put_it_back(self) -> None:
        def job(back: bool) -> None:
            kept = os.dup(sys.stdout.fileno())
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), sys.stdout.fileno())
            subprocess.run(["/bin/echo", "hidden"], stdout=sys.stdout, check=True)
            print("printed")
            if back:
                os.dup2(kept, sys.stdout.fileno())
                subprocess.run(["/bin/echo", "child"], stdout=sys.stdout, check=True)
            os.close(kept)

        run_job(lambda: job(True))
        before = open_files()
        for _ in range(5):
            assert run_job(lambda: job(True)) == "printed\nchild\n"
            assert run_job(lambda: job(False)) == "printed\n"
        assert open_files() <= before

    def test_who_asks_for_writes_that_do_not_wait_has_them_alone(self) -> None:
        def job() -> None:
            os.set_blocking(sys.stdout.fileno(), False)
            pid = os.fork()
            if not pid:
                print("x" * 1_000_000)
                sys.stdout.flush()
                os._exit(0)
            os.waitpid(pid, 0)

        assert run_forking_job(job) == "x" * 1_000_000 + "\n"

    def test_the_two_streams_have_numbers_of_their_own(self) -> None:
        def job() -> None:
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), sys.stderr.fileno())
            number = sys.stderr.fileno()
            subprocess.run(["sh", "-c", "echo stdout"], stdout=sys.stdout, check=True)
            os.close(number)

        assert run_job(job) == "stdout\n"


def run_forking_job(job: Callable[[], None]) -> str:
    """Run a job that forks: that warns from Python 3.12 on, since there are threads."""
    with pytest.warns(DeprecationWarning, match="fork") if sys.version_info >= (3, 12) else contextlib.nullcontext():
        return run_job(job)


class TestPipe:
    """What children are given is a pipe, as in a shell: they may open it once more, and outlive the job."""

    @pytest.mark.parametrize(
        "script",
        [
            "echo 1; echo 2 > /dev/stderr; echo 3",
            "echo 1; echo 2 > /dev/stdout; echo 3",
            "echo 1; echo 2 | tee /dev/stderr > /dev/null; echo 3",
            "echo 1; echo 2 > /proc/self/fd/1; echo 3 >> /dev/stderr",
            "echo 1; dd if=/dev/fd/3 of=/dev/stderr 3<<< 2 2> /dev/null; echo 2; echo 3",
        ],
    )
    def test_a_script_that_opens_its_stdout_once_more_truncates_nothing(self, script: str) -> None:
        def job() -> None:
            print("0")
            subprocess.run(["bash", "-c", script], stdout=sys.stdout, stderr=sys.stderr)
            print("4")

        assert run_job(job) == "0\n1\n2\n3\n4\n"

    def test_prints_and_children_keep_their_order_without_a_flush(self) -> None:
        def job() -> None:
            number = sys.stdout.fileno()
            for turn in range(300):
                print("print", turn)
                os.write(number, b"child %d\n" % turn)

        assert run_job(job) == "".join(f"print {turn}\nchild {turn}\n" for turn in range(300))

    def test_what_a_program_prints_after_the_job_goes_to_the_server(self) -> None:
        script = """
            import subprocess, sys
            from tests.kit.capturing import LONG, run_job
            program = None
            def job():
                global program
                program = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=sys.stdout, stderr=sys.stderr)
                print("job")
            text = run_job(job)
            program.stdin.write("grüße\\n".encode() * 40000)  # more than a pipe holds
            program.stdin.close()
            assert program.wait(LONG) == 0
            assert text == "job\\n"
            from bgmiddleware._capture._pipes import collector
            while collector._runs:
                pass
        """
        assert run_python(script) == ("grüße\n" * 40000, "")

    def test_a_program_that_outlives_the_job_gets_no_error(self) -> None:
        kept = Kept()
        number = kept.run(lambda: sys.stdout.fileno())
        inherited = os.dup(number)
        os.write(inherited, b"in time")
        kept.output.end()
        for _ in range(100):
            os.write(inherited, b"late" * 10_000)  # in vain, if nobody read it
        os.close(inherited)
        assert b"".join(kept.chunks) == b"in time"

    def test_a_child_that_prints_a_lot_keeps_no_memory(self) -> None:
        def count(data: bytes) -> None:
            nonlocal size
            size += len(data)
            assert len(data) <= 256 * 1024

        size = 0
        kept = Kept(count)
        kept.run(lambda: subprocess.run(["head", "-c", "50M", "/dev/zero"], stdout=sys.stdout, check=True))
        kept.output.end()
        assert size == 50 * 1024 * 1024

    def test_a_forked_child_leaves_to_its_parent_what_the_parent_printed(self) -> None:
        script = """
            import os, sys
            from tests.kit.capturing import run_job
            def job():
                print("before", end=" ")
                sys.stdout.fileno()
                print("between", end=" ")
                pid = os.fork()
                if not pid:
                    sys.stdout.flush()
                    os._exit(0)
                os.waitpid(pid, 0)
                print("after")
            print(run_job(job), end="")
        """
        options = ["-W", "ignore::DeprecationWarning"]
        assert run_python(script, options=options) == ("before between after\n", "")

    def test_a_forked_child_keeps_no_other_jobs_pipe_open(self) -> None:
        script = """
            import os, select, signal, sys
            from tests.kit.capturing import LONG, Kept, RunningInThread, run_job
            other = Kept()
            number = other.run(lambda: sys.stdout.fileno())
            def job():
                ready, told = os.pipe()
                pid = os.fork()
                if not pid:
                    os.write(told, b"x")
                    signal.pause()
                os.read(ready, 1)
                return pid
            pids = []
            run_job(lambda: pids.append(job()))
            reader = other.output._pipe.close()
            poll = select.poll()
            poll.register(reader, select.POLLIN)
            print(poll.poll(LONG * 1000)[0][1] & select.POLLHUP > 0)
            os.kill(pids[0], signal.SIGKILL)
            os.waitpid(pids[0], 0)
        """
        assert run_python(script, options=["-W", "ignore::DeprecationWarning"]) == ("True\n", "")

    def test_a_child_whose_stdout_became_a_terminal_prints_there(self) -> None:
        def job() -> None:
            pid, terminal = pty.fork()
            if not pid:
                print("in the terminal", sys.stdout.fileno(), sys.stderr.fileno())
                sys.stdout.flush()
                os._exit(0)
            said = b""
            with contextlib.suppress(OSError):  # how a terminal ends
                while data := os.read(terminal, 1000):
                    said += data
            os.waitpid(pid, 0)
            os.close(terminal)
            print("said:", said.decode().strip())

        assert run_forking_job(job) == "said: in the terminal 1 2\n"

    def test_what_cannot_be_collected_does_not_stop_the_others(self, caplog: pytest.LogCaptureFixture) -> None:
        class Source:
            def __init__(self, rounds: int) -> None:
                self.reader, self.writer = os.pipe()
                os.write(self.writer, b"x")
                self.rounds = rounds
                collector.add(self)

            def collect(self) -> int:
                self.rounds -= 1
                if not self.rounds:
                    os.close(self.reader)
                    os.close(self.writer)
                    self.reader = -1
                    done.release()
                if self.rounds < 3:
                    raise ZeroDivisionError
                return 0

        done = threading.Semaphore(0)
        Source(1)
        Source(6)
        for _ in range(2):
            assert done.acquire(timeout=LONG)
        assert "could not be collected" in caplog.text


@pytest.fixture
def outlet() -> Iterator[Outlet]:
    made = Outlet.open()
    yield made
    made.close()


class TestOutlet:
    """What the output of a job in a process of its own goes through: whoever made it can read there what was said."""

    def test_each_line_is_in_its_file_when_it_is_printed_behind_what_children_said(self, outlet: Outlet) -> None:
        kept = Kept()
        kept.output.share(outlet)

        def job() -> list[bytes]:
            contents = []

            def look() -> None:
                contents.append(os.pread(outlet.file, 100, 0))

            print("a line")
            look()
            print("no ", end="")
            look()
            print("end", end="", flush=True)
            look()
            os.write(outlet.writer, b" child ")
            sys.stdout.buffer.write(b"bytes\n")
            look()
            return contents

        contents = kept.run(job)
        kept.output.end()
        assert contents == [b"a line\n", b"a line\n", b"a line\nno end", b"a line\nno end child bytes\n"]
        assert b"".join(kept.chunks) == b"a line\nno end child bytes\n"

    def test_what_is_in_the_pipe_when_the_process_dies_is_moved_behind_the_rest(self, outlet: Outlet) -> None:
        file = OutputFile(outlet)
        file.append(b"printed ")
        os.write(outlet.writer, b"by a child")
        outlet.move()
        assert os.pread(outlet.file, 100, 0) == b"printed by a child"
        file.close(lambda data: None)

    def test_a_process_that_reads_nothing_is_relieved(self, outlet: Outlet) -> None:
        """C code that lets no thread run prints more than the pipe holds."""
        os.set_blocking(outlet.writer, False)
        assert not outlet.relieve()
        size = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                size += os.write(outlet.writer, b"x" * 65536)
        assert outlet.relieve()
        assert not outlet.relieve()
        assert os.fstat(outlet.file).st_size == size

    def test_of_what_was_collected_the_end_is_kept(self, outlet: Outlet) -> None:
        size = 8 * 1024 * 1024
        file = OutputFile(outlet)
        file.append(b"x" * size)
        file.collect(lambda data: None)
        assert os.pread(outlet.file, 2 * 1024 * 1024, size - 2 * 1024 * 1024) == b"x" * 2 * 1024 * 1024
        assert os.fstat(outlet.file).st_blocks * 512 < 4 * 1024 * 1024
        file.close(lambda data: None)

    def test_what_the_system_has_no_room_for_is_stored_nevertheless(
        self, outlet: Outlet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def write(number: int, data: bytes) -> int:
            if room:
                return real(number, data[: room.pop()])
            raise OSError(28, "No space left on device")

        kept = Kept()
        kept.output.share(outlet)
        kept.run(lambda: print("1"))
        real, room = os.write, [3]
        monkeypatch.setattr(os, "write", write)
        kept.run(lambda: print("abcdef"))
        monkeypatch.undo()
        kept.run(lambda: print("3"))
        kept.output.end()
        assert b"".join(kept.chunks) == b"1\nabcdef\n3\n"
