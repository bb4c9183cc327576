"""What every registry counts, as tests: a part of ``RegistryContract``."""

from collections.abc import Callable
from typing import Any

from .._jobs import Job, JobState, key_of
from ..registries.base import History, Minute, Registry
from .clock import Clock

__all__ = ["HistoryContract"]

RUNNER = "the runner"
STATES = ("started", "finished", "failed", "cancelled", "lost")


def waits(registry: Registry, name: str, path: str | None = "/a/*") -> str:
    return registry.add(Job(key_of(name), name, asked={} if path is None else {"path": path})).key


def runs(registry: Registry, name: str, path: str | None = "/a/*", *, lease: float | None = None) -> str:
    key = waits(registry, name, path)
    assert registry.claim(key, RUNNER, lease=lease)
    return key


def counted(history: History, path: str = "/a/*") -> dict[str, int]:
    """What was counted of a path, all minutes together, without what is 0."""
    minutes = [minute for minute in history.minutes if minute.path == path]
    sums = {state: sum(getattr(minute, state) for minute in minutes) for state in STATES}
    return {state: number for state, number in sums.items() if number}


def only(history: History) -> Minute:
    (minute,) = history.minutes
    return minute


class HistoryContract:
    """The tests; they need the fixtures ``registry`` and ``clock``, and ``make``."""

    def test_nothing_is_counted_where_nothing_happened(self, registry: Registry, clock: Clock) -> None:
        history = registry.history(0.0)
        assert history.minutes == ()
        assert [(level.waiting, level.running) for level in history.levels] == [(0, 0)]

    def test_what_starts_and_ends_is_counted_by_path(self, registry: Registry, clock: Clock) -> None:
        for state in (JobState.FINISHED, JobState.FINISHED, JobState.FAILED, JobState.CANCELLED, JobState.LOST):
            key = runs(registry, f"{clock()} {state}")
            assert registry.finish(key, RUNNER, state)
            clock.advance(1.0)
        runs(registry, "another", "/b")
        history = registry.history(clock())
        assert counted(history) == {"started": 5, "finished": 2, "failed": 1, "cancelled": 1, "lost": 1}
        assert counted(history, "/b") == {"started": 1}
        assert {minute.at for minute in history.minutes} == {clock() // 60 * 60.0}

    def test_how_long_they_waited_and_ran_is_counted(self, registry: Registry, clock: Clock) -> None:
        key = waits(registry, "one")
        clock.advance(0.2)
        assert registry.claim(key, RUNNER)
        clock.advance(7.0)
        registry.finish(key, RUNNER, JobState.FINISHED)
        minute = only(registry.history(clock()))
        waited, ran = minute.queue_wait, minute.run_time
        assert (round(waited.total, 3), round(waited.longest, 3), waited.count) == (0.2, 0.2, 1)
        assert waited.buckets[1] == 1, "up to 0.25 s"
        assert (round(ran.total, 3), round(ran.longest, 3), ran.count) == (7.0, 7.0, 1)
        assert ran.buckets[6] == 1, "up to 10 s"
        other = runs(registry, "two")
        clock.advance(2.0)
        registry.finish(other, RUNNER, JobState.FINISHED)
        ran = only(registry.history(clock())).run_time
        assert (round(ran.total, 3), round(ran.longest, 3), ran.count) == (9.0, 7.0, 2)

    def test_each_minute_is_counted_by_itself_and_since_one_of_them(self, registry: Registry, clock: Clock) -> None:
        begun = clock()
        first, second = runs(registry, "one"), runs(registry, "two")
        registry.finish(first, RUNNER, JobState.FINISHED)
        clock.advance(60.0)
        registry.finish(second, RUNNER, JobState.FAILED)
        history = registry.history(begun)
        assert [(minute.at, minute.started, minute.finished, minute.failed) for minute in history.minutes] == [
            (begun // 60 * 60.0, 2, 1, 0),
            (clock() // 60 * 60.0, 0, 0, 1),
        ]
        assert counted(registry.history(clock())) == {"failed": 1}
        assert registry.history(clock() + 3600.0).levels[-1].at == clock() // 60 * 60.0

    def test_after_a_day_it_is_forgotten(self, registry: Registry, clock: Clock) -> None:
        runs(registry, "one")
        clock.advance(24 * 3600.0 + 60.0)
        runs(registry, "two", "/b")
        registry.tidy()
        history = registry.history(0.0)
        assert counted(history) == {} or counted(history).keys() == {"lost"}
        assert counted(history, "/b") == {"started": 1}

    def test_what_ends_without_a_start_is_counted_without_a_time(self, registry: Registry, clock: Clock) -> None:
        registry.request_cancel(waits(registry, "one"))
        minute = only(registry.history(clock()))
        assert (minute.started, minute.cancelled, minute.run_time.count, minute.queue_wait.count) == (0, 1, 0, 0)

    def test_a_loss_is_counted_when_it_is_made_permanent(self, registry: Registry, clock: Clock) -> None:
        runs(registry, "one", lease=10.0)
        clock.advance(11.0)
        assert counted(registry.history(clock())) == {"started": 1}
        registry.evict()
        registry.evict()
        assert counted(registry.history(clock())) == {"started": 1, "lost": 1}

    def test_what_changes_nothing_counts_nothing(self, registry: Registry, clock: Clock) -> None:
        key = runs(registry, "one")
        registry.renew(key, RUNNER, title="other")
        registry.request_cancel(key)
        assert not registry.claim(key, "another")
        assert not registry.finish(key, "another", JobState.FAILED)
        assert registry.finish(key, RUNNER, JobState.CANCELLED)
        assert not registry.finish(key, RUNNER, JobState.FINISHED)
        registry.request_cancel(key)
        assert counted(registry.history(clock())) == {"started": 1, "cancelled": 1}

    def test_counts_stay_when_the_job_is_forgotten(self, registry: Registry, clock: Clock) -> None:
        key = runs(registry, "one")
        registry.finish(key, RUNNER, JobState.FINISHED)
        assert registry.discard(key)
        assert counted(registry.history(clock())) == {"started": 1, "finished": 1}

    def test_a_path_that_is_not_known_or_one_too_many_is_other(
        self, make: Callable[..., Registry], clock: Clock
    ) -> None:
        registry: Any = make()
        runs(registry, "unknown", None)
        for number in range(205):
            runs(registry, str(number), f"/{number}")
        paths = {minute.path for minute in registry.history(clock()).minutes}
        assert len(paths) == 200
        assert counted(registry.history(clock()), "other") == {"started": 7}
        clock.advance(25 * 3600.0)
        runs(registry, "new", "/new")
        assert counted(registry.history(clock()), "/new") == {"started": 1}

    def test_a_path_may_have_any_characters(self, registry: Registry, clock: Clock) -> None:
        for path in ("/a b", "/é\u2028\0", "/'\"\\", "waiting"):
            runs(registry, ascii(path), path)
            assert counted(registry.history(clock()), path) == {"started": 1}

    def test_how_many_wait_and_run_is_noted_from_time_to_time(self, registry: Registry, clock: Clock) -> None:
        waits(registry, "one")
        runs(registry, "two")
        runs(registry, "three")
        registry.tidy()
        begun = clock()
        clock.advance(120.0)
        registry.finish(key_of("two"), RUNNER, JobState.FINISHED)
        levels = {level.at: (level.waiting, level.running) for level in registry.history(begun).levels}
        assert levels[begun // 60 * 60.0] == (1, 2)
        assert levels[clock() // 60 * 60.0] == (1, 1)
