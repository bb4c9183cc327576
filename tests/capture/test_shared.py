"""What libraries keep for the whole process: each job has its own, whoever came first."""

import logging
import logging.config
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Any

import pytest

from bgmiddleware._capture import detached, install
from tests.conftest import needs
from tests.kit.capturing import LONG, RunningInThread, run_job, run_python


def beside(first: Callable[[Callable[[], None]], object], second: Callable[[], object]) -> tuple[str, str]:
    """Run job *first*, up to where it calls what it is given; then job *second*; then the rest. Return both outputs."""

    def wait() -> None:
        reached.set()
        assert go_on.wait(LONG)

    reached, go_on = threading.Event(), threading.Event()
    running = RunningInThread(lambda: (first(wait), None)[1])
    assert reached.wait(LONG)
    other = run_job(lambda: (second(), None)[1])
    go_on.set()
    return running.join().text, other


class TestBars:
    def test_a_bar_of_tqdm_is_not_in_the_output_of_another_job(self) -> None:
        from tqdm import tqdm

        def first(wait: Callable[[], None]) -> None:
            with tqdm(total=2, desc="Miller") as bar:
                bar.update()
                wait()
                bar.update()

        def second() -> None:
            with tqdm(total=2, desc="Smith") as bar:
                tqdm.write("album")
                bar.update(2)
                assert bar.pos == 0
            assert not tqdm._instances

        millers, smiths = beside(first, second)
        assert "Smith" not in millers
        assert "album" not in millers
        assert "Miller" not in smiths
        assert "\x1b[A" not in smiths  # as if there were a bar above
        assert "2/2" in millers
        assert "2/2" in smiths

    def test_a_bar_of_the_server_is_the_servers(self, capsys: pytest.CaptureFixture[str]) -> None:
        from tqdm import tqdm

        install()
        with tqdm(total=1, desc="server") as bar:
            assert "server" not in run_job(lambda: tqdm.write("job"))
            assert bar in tqdm._instances
        assert bar not in tqdm._instances
        assert "server" in capsys.readouterr().err

    def test_the_monitor_of_all_bars_redraws_each_where_it_is(self) -> None:
        """The thread that refreshes bars which stand still is begun by whatever bar comes first."""
        from tqdm import TMonitor, tqdm

        def refresh_all() -> None:
            class Once(TMonitor):  # type: ignore[misc]
                def run(self) -> None:
                    for bar in self.get_instances():
                        bar.refresh(nolock=True)

            Once.__name__ = "TMonitor"
            once = Once(tqdm, 10)
            once.join(LONG)

        def first(wait: Callable[[], None]) -> None:
            with tqdm(total=2, desc="Miller"):
                wait()

        assert beside(first, refresh_all)[1] == ""
        text = run_job(lambda: (bar := tqdm(total=2, desc="Smith"), refresh_all(), bar.close()))
        assert text.count("Smith") == 3

    def test_bars_of_rich_in_two_jobs(self) -> None:
        needs("rich")
        from rich.progress import track

        def first(wait: Callable[[], None]) -> None:
            for _ in track(range(2), "Miller"):
                wait()
                print("row of Miller")

        def second() -> None:
            for _ in track(range(2), "Smith"):
                print("row of Smith")

        millers, smiths = beside(first, second)
        assert millers.count("row of Miller") == 2
        assert smiths.count("row of Smith") == 2
        assert "Smith" not in millers
        assert "Miller" not in smiths

    def test_what_is_printed_beside_bars_of_progressbar2_is_in_its_own_job(self) -> None:
        pytest.importorskip("progressbar")
        script = """
            import progressbar, sys
            from tests.capture.test_shared import beside
            def job(name, wait=lambda: None):
                with progressbar.ProgressBar(max_value=2, redirect_stdout=True, prefix=f"bar of {name} ") as bar:
                    print("line of", name)
                    wait()
                    print("end of", name)
                    bar.update(1)
            hook = sys.excepthook
            for mine, other, text in zip("ab", "ba", beside(lambda wait: job("a", wait), lambda: job("b"))):
                assert f"line of {mine}\\n" in text and f"end of {mine}\\n" in text and f"bar of {mine}" in text, text
                assert f"of {other}" not in text, text
            assert sys.excepthook is hook
            progressbar.streams.wrap_stdout()
            assert "wrap" in repr(sys.stdout).lower() and progressbar.streams.wrapped_stdout == 1
            progressbar.streams.unwrap_stdout()
        """
        assert run_python(script) == ("", "")

    def test_a_library_that_is_imported_in_a_job_is_hooked_when_it_comes(self) -> None:
        script = """
            from tests.kit.capturing import run_job
            def job():
                from tqdm import tqdm
                print(type(tqdm._instances).__name__)
                import multiprocessing.pool
                print(multiprocessing.pool.Pool.imap.__wrapped__.__name__)
            print(run_job(job), end="")
        """
        assert run_python(script) == ("_Bars\nimap\n", "")


def say(text: str) -> None:
    print(text, flush=True)


class TestPools:
    @pytest.mark.parametrize("kind", ["executor", "pool"])
    def test_a_pool_of_processes_that_two_jobs_use_prints_to_neither(self, kind: str) -> None:
        script = f"""
            import multiprocessing, sys
            from concurrent.futures import ProcessPoolExecutor
            from tests.capture.test_shared import beside, say
            context = multiprocessing.get_context("fork")
            def make():
                if {kind!r} == "executor":
                    pool = ProcessPoolExecutor(1, mp_context=context)
                    return pool, lambda text: pool.submit(say, text).result()
                pool = context.Pool(1)
                return pool, lambda text: pool.map(say, [text])
            def first(wait):
                global pool, use
                pool, use = make()
                use("mine alone")
                wait()
                use("the first's")
            texts = beside(first, lambda: use("the second's"))
            use("nobody's")
            (pool.shutdown if {kind!r} == "executor" else pool.terminate)()
            print(texts)
        """
        out, err = run_python(script, options=["-W", "ignore::DeprecationWarning", "-W", "ignore::ResourceWarning"])
        assert err == ""
        assert sorted(out.splitlines()) == [
            "('mine alone\\n', '')",
            "nobody's",
            "the first's",
            "the second's",
        ]

    def test_a_pool_of_threads_prints_to_the_job_that_gave_the_task(self, capsys: pytest.CaptureFixture[str]) -> None:
        pools: list[Any] = []

        def first(wait: Callable[[], None]) -> None:
            pools.append(ThreadPool(1))
            pools[0].map(say, ["the first's"])
            wait()
            pools[0].apply(say, ["the first's"])

        texts = beside(first, lambda: list(pools[0].imap(say, ["the second's"])))
        pools[0].map(say, ["server"])
        pools[0].terminate()
        pools[0].join()
        assert texts == ("the first's\nthe first's\n", "the second's\n")
        assert capsys.readouterr().out == "server\n"


class TestProcess:
    def test_no_job_silences_our_own_log(self, caplog: pytest.LogCaptureFixture) -> None:
        def job() -> None:
            logging.config.dictConfig({"version": 1})
            raise ZeroDivisionError

        theirs = logging.getLogger("theirs")
        try:
            run_job(job)
            assert theirs.disabled
        finally:
            for logger in logging.getLogger().manager.loggerDict.values():
                if isinstance(logger, logging.Logger):
                    logger.disabled = False
        assert "ZeroDivisionError" in caplog.text

    def test_the_site_may_silence_it(self) -> None:
        install()
        logger = logging.getLogger("bgmiddleware")
        logger.disabled = True
        assert logger.disabled
        logger.disabled = False
        assert not logger.disabled

    def test_what_faulthandler_writes_later_goes_to_the_server(self) -> None:
        script = """
            import faulthandler, os, signal, sys
            from tests.kit.capturing import run_job
            def job():
                faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=False)
                faulthandler.enable()
                print("said")
                number = sys.stderr.fileno()
                print(number > 2)
            text = run_job(job)
            os.kill(os.getpid(), signal.SIGUSR1)
            faulthandler.unregister(signal.SIGUSR1)
            print(text, end="")
        """
        out, err = run_python(script)
        assert out == "said\nTrue\n"
        assert "most recent call first" in err

    def test_what_a_task_calls_at_its_end_prints_to_the_job_that_gave_it(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pools: list[Any] = []

        def use(name: str) -> None:
            task = pools[0].apply_async(int, callback=lambda _: say(f"{name} end"))
            task.wait()
            failing = pools[0].map_async(int, ["x"], error_callback=lambda _: say(f"{name} error"))
            failing.wait()
            assert list(pools[0].imap(int, (say(f"{name} item") or item for item in [1]))) == [1]
            told = threading.Event()
            future = pools[1].submit(threading.Event().wait, 0.1)
            future.add_done_callback(lambda _: (say(f"{name} future"), told.set()))
            assert told.wait(LONG)

        def first(wait: Callable[[], None]) -> None:
            pools.extend([ThreadPool(1), ThreadPoolExecutor(1)])
            wait()
            use("the first's")

        texts = beside(first, lambda: use("the second's"))
        pools[0].terminate()
        pools[0].join()
        pools[1].shutdown()
        for name, text in zip(("the first's", "the second's"), texts, strict=True):
            assert sorted(text.splitlines()) == [f"{name} {what}" for what in ("end", "error", "future", "item")]
        assert capsys.readouterr().out == ""

    def test_what_a_task_of_the_server_calls_at_its_end_prints_to_the_server(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pools: list[Any] = []

        def job(wait: Callable[[], None]) -> None:
            pools.append(ThreadPool(1))
            wait()

        def use() -> None:
            with detached():
                task = pools[0].apply_async(int, callback=lambda _: say("server"))
                task.wait()
                list(pools[0].imap(int, (say("server") or item for item in [1])))

        assert beside(job, use) == ("", "")
        pools[0].terminate()
        pools[0].join()
        assert capsys.readouterr().out == "server\nserver\n"
