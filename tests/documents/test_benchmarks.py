"""The benchmarks run; what they measure is not judged here."""

import json
import subprocess
import sys

import pytest

from tests.conftest import needs
from tests.kit.documents import ROOT
from tests.kit.redis_server import RedisServer, needs_server, redis_server, redis_server_of_module

__all__ = ["redis_server", "redis_server_of_module"]

pytestmark = pytest.mark.everything


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("unmarked --rounds 2 --calls 10", "with decorators (watched)"),
        ("registries --jobs 10 20 --calls 20", "evict, for each job"),
        ("executors --jobs 2 --times 2 --lines 10 --kinds thread process", "to the viewer"),
        ("executors --jobs 2 --times 2 --lines 10 --kinds rq celery", "bare engine"),
        ("printing --rounds 2 --calls 10 --lines 100", "lines a second"),
        ("viewers --rounds 1 --viewers 6 --idle 0.1 --arrival 0.1 --seconds 1.2", "Starved viewers: 0"),
        ("slow_readers --rounds 1 --megabytes 2 --pings 5", "file path"),
        ("shared --rounds 1 --starts 2 --jobs 5 --pings 3 --due 20", "that are due"),
        ("starting --rounds 1 --starts 5", "processor time a job"),
        ("memory --rounds 1 --jobs 20", "when all are forgotten"),
        ("page --rounds 1 --lines 20000", "page without the output"),
        ("dashboard --jobs 60 --times 1 --pings 3", "another view"),
        ("terminal --lines 500 --share 0.001", "The terminal"),
    ],
)
def test_a_benchmark_prints_its_table(command: str, said: str) -> None:
    needs("werkzeug")
    if "rq" in command:
        needs("rq")
        needs("celery")
        needs_server()
    if command.startswith(("page", "terminal")):
        needs("playwright")
    name, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert "budget" in done.stdout


def test_the_run_of_many_viewers_is_compared_with_its_model(redis_server: RedisServer) -> None:
    command = "--calls 20 --processes 1 --jobs 2 --viewers 8 --seconds 0.5 --redis"
    arguments = [sys.executable, "-m", "benchmarks.scale", *command.split(), redis_server.url]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "the constants say" in done.stdout
    assert "budget" in done.stdout


def test_all_rows_are_one_table_with_the_budgets_beside(tmp_path):
    needs("werkzeug")
    file = tmp_path / "rows.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "memory", "--json", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    head, rule, *rows = done.stdout.splitlines()
    assert head == "| what | floor | ours | budget | |"
    assert set(rule) <= set("|-:")
    written = json.loads(file.read_text())["rows"]
    assert len(rows) == len(written) == 2
    for row, values in zip(rows, written, strict=True):
        assert values["what"] in row
        assert f"≤ {values['budget']:g}" in row
        assert ("**MISSED**" in row) is (values["value"] > values["budget"])
