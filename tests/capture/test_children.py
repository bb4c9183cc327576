"""Children of jobs: what they are given as their stdout, in which order it comes, and what is left when jobs end."""

import os
import subprocess
import sys
import threading

import pytest

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
        def job() -> None:
            for _ in range(3):
                sys.stderr.fileno()
                print("\r 33%", file=sys.stderr, end="", flush=True)

        run_job(job)
        before = open_files()
        for _ in range(200):
            assert run_job(job) == "\r 33%" * 3
        assert open_files() <= before
        for thread in threading.enumerate():
            if thread.name == "bgmiddleware-collect":
                thread.join(LONG)
                assert not thread.is_alive()

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
