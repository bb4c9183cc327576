"""``python -m bgmiddleware jobs``, on a spool directory that this process writes to.

What follows a job or gets a signal is a process of its own; what only says something and ends is called here, which
takes a hundredth of the time.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bgmiddleware import Channel, Job, JobState, Registry
from bgmiddleware.__main__ import main
from bgmiddleware._jobs import NextTry, Tries, key_of, new_token
from bgmiddleware.registries import open_registry
from bgmiddleware.testing.registries import LONG, RUNNER, write
from tests.conftest import missing
from tests.kit.documents import ROOT


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"spool:{tmp_path / 'jobs'}"


@pytest.fixture
def registry(url: str) -> Iterator[Registry]:
    with open_registry(url) as registry:
        yield registry


def begin(*arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "bgmiddleware", "jobs", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run ``jobs …`` to its end; return its exit status and what it said."""

    def command(*arguments: str) -> tuple[int, str, str]:
        try:
            status = main(["jobs", *arguments])
        except SystemExit as end:  # so argparse refuses
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return command


@pytest.fixture
def jobs(
    url: str, registry: Registry, command: Callable[..., tuple[int, str, str]]
) -> Callable[..., tuple[int, str, str]]:
    """Run ``jobs ACTION …`` on the registry of the test."""

    registry.jobs()  # or there would be no directory
    return lambda action, *arguments: command(action, "--registry", url, *arguments)


def running(registry: Registry, token: str, **options: object) -> str:
    key = registry.add(Job(key_of(token), "GET /report", **options)).key
    assert registry.claim(key, RUNNER)
    return key


def test_jobs_are_listed_newest_first(jobs, registry):
    first = running(registry, new_token(), owner="ann")
    write(registry, first, b"x" * 12_345)
    second = registry.add(Job(key_of(new_token()), "POST /\x1b[31mred\n")).key
    status, said, _ = jobs("list")
    lines = said.splitlines()
    assert (status, len(lines)) == (0, 2)
    assert lines[0].startswith(f"{second}  pending")
    assert lines[0].endswith("POST /�[31mred�"), "what a terminal would obey is not shown"
    assert lines[1].startswith(f"{first}  running")
    assert lines[1].endswith("12,345 B  GET /report  (ann)")


def test_a_list_can_be_of_one_state_short_and_json(jobs, registry):
    for _ in range(3):
        running(registry, new_token())
    registry.add(Job(key_of(new_token()), "waits"))
    status, said, _ = jobs("list", "--state", "running", "--limit", "2", "--json")
    documents = [json.loads(line) for line in said.splitlines()]
    assert (status, [document["state"] for document in documents]) == (0, ["running", "running"])


def test_a_job_is_shown_without_what_only_its_owner_should_know(jobs, registry):
    token = new_token()
    job = Job(
        key_of(token), "GET /report", request={"HTTP_COOKIE": "session=secret"}, name="secret", name_salt="secret"
    )
    key = registry.add(job).key
    for name in (token, key, key[:8]):
        status, said, _ = jobs("show", name)
        document = json.loads(said)
        assert (status, document["key"], document["state"], document["title"]) == (0, key, "pending", "GET /report")
    assert "secret" not in said
    assert token not in said


@pytest.mark.parametrize(
    ("state", "status"),
    [(JobState.FINISHED, 0), (JobState.FAILED, 1), (JobState.CANCELLED, 3), (JobState.LOST, 4)],
)
def test_following_prints_what_comes_and_exits_by_how_it_ends(registry, url, state, status):
    token = new_token()
    key = running(registry, token)
    write(registry, key, b"first \xff\n")
    process = begin("follow", "--registry", url, token)
    assert process.stdout is not None
    assert process.stdout.readline() == b"first \xff\n"
    write(registry, key, b"second\n")
    assert process.stdout.readline() == b"second\n"
    registry.finish(key, RUNNER, state, reason="so it was")
    rest, complained = process.communicate(timeout=LONG)
    assert (process.returncode, rest) == (status, b"")
    assert complained.decode() == ("" if status == 0 else f"bgmiddleware: the job is {state}: so it was\n")


def test_following_says_what_was_dropped(jobs, url):
    with open_registry(url, max_output=100) as registry:
        key = running(registry, new_token())
        write(registry, key, b"a" * 60)
        write(registry, key, b"b" * 60)
        registry.finish(key, RUNNER, JobState.FINISHED)
    _, said, _ = jobs("follow", key)
    assert said == "a" * 50 + "\n[… bytes 50 to 70 were dropped …]\n" + "b" * 50


@pytest.mark.skipif(signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="began with Ctrl-C ignored, as by &")
def test_following_can_print_when_each_line_came(registry, url, command):
    token = new_token()
    key = registry.add(Job(key_of(token), "GET /")).key
    registry.claim(key, RUNNER)
    registry.append(key, Channel.OUTPUT, 0, b"one\rtwo\nth", runner=RUNNER, times=[(8, 250), (10, 61_500)])
    registry.append(key, Channel.OUTPUT, 10, b"ree\n\nend", runner=RUNNER, times=[(18, 75_000)])
    registry.finish(key, RUNNER, JobState.FINISHED)
    status, said, complained = command("follow", "--registry", url, "--times", token)
    assert (status, complained) == (0, "")
    assert said == "     0.25 s  one\rtwo\n    61.50 s  three\n    75.00 s  \n    75.00 s  end"
    status, said, _ = command("show", "--registry", url, "--times", token)
    assert json.loads(said)["times"] == [[8, 0.25], [10, 61.5], [18, 75.0]]
    assert "times" not in json.loads(command("show", "--registry", url, token)[1])


@pytest.mark.parametrize(
    ("state", "said"),
    [("finished", "\x1b[32mfinished\x1b[0m after "), ("failed", "the job is \x1b[31mfailed\x1b[0m: ")],
)
def test_on_a_terminal_the_end_has_a_colour(registry, url, command, monkeypatch, state, said):
    token = new_token()
    key = registry.add(Job(key_of(token), "GET /")).key
    registry.claim(key, RUNNER)
    registry.finish(key, RUNNER, JobState(state), reason="it raised")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert said in command("follow", "--registry", url, token)[2]


def test_ctrl_c_ends_the_follower_and_not_the_job(registry, url):
    key = running(registry, new_token())
    write(registry, key, b"line\n")
    process = begin("follow", "--registry", url, key)
    assert process.stdout is not None
    assert process.stdout.readline() == b"line\n"
    process.send_signal(signal.SIGINT)
    _, complained = process.communicate(timeout=LONG)
    assert (process.returncode, complained) == (130, b"")
    assert registry.get(key).state is JobState.RUNNING


def test_a_cancel_says_what_became_of_it(jobs, registry):
    key = running(registry, new_token())
    assert jobs("cancel", key) == (0, "it is asked to stop\n", "")
    assert registry.get(key).cancel_requested_at is not None
    waiting = registry.add(Job(key_of(new_token()), "waits")).key
    assert jobs("cancel", waiting) == (0, "it is cancelled\n", "")
    assert jobs("cancel", waiting) == (0, "it is cancelled already\n", "")
    tries = Tries(1, 2, (NextTry("a link", "another", {}),))
    key = registry.add(Job(key_of(new_token()), "fails", tries=tries)).key
    assert registry.claim(key, RUNNER)
    assert registry.finish(key, RUNNER, JobState.FAILED)
    assert jobs("cancel", key) == (0, "it is failed, and not tried again\n", "")
    assert not registry.get(key).is_tried_again
    assert jobs("cancel", key) == (0, "it is failed already\n", "")


def test_an_eviction_says_what_it_did(jobs, registry, url):
    key = registry.add(Job(key_of(new_token()), "lost")).key
    assert registry.claim(key, RUNNER, lease=0.001)
    registry.append(key, Channel.OUTPUT, 0, b"kept", runner=RUNNER)
    registry.wait(key, 4, LONG)  # until its lease has run out
    assert jobs("evict") == (0, "1 lost, 0 forgotten\n", "")
    assert jobs("evict") == (0, "0 lost, 0 forgotten\n", "")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["show", "0" * 32], "there is no job 00000000…"),
        (["show", "00000000"], "there is no job 00000000…"),
        (["show", "zebra"], "job = 'zebra': expected a token, a key, or at least 4 of its first characters"),
        (["show", "../../etc"], "job = '../../etc': expected a token, a key, or at least 4 of its first characters"),
        (["follow", "123"], "job = '123': expected a token, a key, or at least 4 of its first characters"),
    ],
)
def test_what_is_no_job_is_said(jobs, arguments, complaint):
    assert jobs(*arguments) == (2, "", f"bgmiddleware: {complaint}\n")


@pytest.mark.parametrize("arguments", [["list"], ["evict"], ["show", "0" * 32], ["cancel", "0" * 32]])
@pytest.mark.parametrize("place", ["typo", "empty", "missing/typo", "another"])
def test_a_directory_that_is_no_spool_is_refused_and_nothing_is_made(command, tmp_path, arguments, place):
    (tmp_path / "empty").mkdir()
    (tmp_path / "another").mkdir()
    (tmp_path / "another" / "clock.py").touch()
    before = sorted(tmp_path.rglob("*"))
    action, *rest = arguments
    status, said, complained = command(action, "--registry", f"spool:{tmp_path / place}", *rest)
    assert (status, said) == (2, "")
    assert str(tmp_path) in complained
    assert sorted(tmp_path.rglob("*")) == before


def test_a_beginning_that_several_jobs_share_is_refused(jobs, registry):
    for number in range(3):
        registry.add(Job(f"abcd{number:028}", "one of three"))
    status, said, complained = jobs("show", "abcd")
    assert (status, said) == (2, "")
    assert "3 jobs begin so" in complained


@pytest.mark.parametrize("url", ["memory:", "mongodb://localhost"])
def test_a_registry_that_cannot_be_looked_at_is_refused(command, url):
    status, said, complained = command("list", "--registry", url)
    assert (status, said) == (2, "")
    assert complained.startswith("bgmiddleware: registry")


@pytest.mark.parametrize("action", ["list", "evict"])
@pytest.mark.parametrize("limit", ["0", "-1", "many"])
def test_a_limit_is_a_number_from_1(jobs, action, limit):
    status, said, complained = jobs(action, "--limit", limit)
    assert (status, said) == (2, "")
    assert f"--limit: expected a number from 1, not '{limit}'" in complained


def test_who_has_read_enough_is_told_nothing_more(registry, url):
    key = running(registry, new_token())
    write(registry, key, b"x" * 1_000_000)
    process = begin("follow", "--registry", url, key)
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        assert process.stdout.read(1) == b"x"
        process.stdout.close()
        assert registry.finish(key, RUNNER, JobState.FINISHED)
        assert process.wait(timeout=LONG) == 141, "as if SIGPIPE had ended it"
        assert process.stderr.read() == b""


# What is counted.


@pytest.fixture
def counted(registry: Registry) -> None:
    for name, state in (("a", JobState.FINISHED), ("b", JobState.FAILED), ("c", None), ("d", None)):
        key = registry.add(Job(key_of(name), f"GET /reports/\x1b{name}", asked={"path": "/reports/*"})).key
        if name != "d":
            registry.claim(key, RUNNER)
        if state is not None:
            registry.finish(key, RUNNER, state)


@pytest.mark.usefixtures("counted")
def test_stats_says_what_was_counted(url: str, command: Callable[..., tuple[int, str, str]]) -> None:
    status, said, _ = command("stats", "--registry", url)
    assert status == 0
    assert said.startswith("1 waiting, 1 running; in the last 60 minutes:\n")
    assert re.search(r"^/reports/\* +3 +1 +1 +0 +0 +\d+\.\d\d s", said, re.MULTILINE)
    status, said, _ = command("stats", "--registry", url, "--json", "--minutes", "5")
    document = json.loads(said)
    assert (document["minutes"], document["waiting"], document["running"]) == (5, 1, 1)
    path = document["paths"]["/reports/*"]
    assert [path[name] for name in ("started", "finished", "failed", "cancelled", "lost")] == [3, 1, 1, 0, 0]
    assert path["run_time"].keys() == path["queue_wait"].keys() == {"median", "p95", "longest"}


@pytest.mark.usefixtures("counted")
def test_watch_says_it_again_and_again(url: str, command: Callable[..., tuple[int, str, str]]) -> None:
    status, said, _ = command("watch", "--registry", url, "--rounds", "1")
    assert status == 0
    assert said.startswith("\x1b[H\x1b[2J1 waiting, 1 running")
    assert "GET /reports/�d" in said
    status, said, _ = command("watch", "--registry", url, "--rounds", "2", "--every", "0", "--json", "--limit", "2")
    documents = [json.loads(line) for line in said.splitlines()]
    assert [[job["state"] for job in document["jobs"]] for document in documents] == [["pending", "running"]] * 2


def test_of_an_empty_registry_stats_says_that_nothing_is_there(
    url: str, registry: Registry, command: Callable[..., tuple[int, str, str]]
) -> None:
    registry.jobs()
    assert command("stats", "--registry", url)[1].startswith("0 waiting, 0 running")


COMPLETED = [
    (["jo"], ["jobs"]),
    (["jobs", "st"], ["stats"]),
    (["jobs", "watch", "--ro"], ["--rounds"]),
    (["jobs", "list", "--registry", "x", "--j"], ["--json"]),
    (["serve", "app:app", "--workers-that-do-not-exist"], []),
    (["completion", "z"], ["zsh"]),
]


@pytest.mark.everything
@pytest.mark.parametrize(("words", "completed"), COMPLETED)
def test_fish_completes_them_too(
    capsys: pytest.CaptureFixture[str], words: list[str], completed: list[str], tmp_path: Path
) -> None:
    if shutil.which("fish") is None:
        missing("fish")
    assert main(["completion", "fish"]) == 0
    asked = f"{capsys.readouterr().out}\ncomplete -C 'bgmiddleware {' '.join(words)}'"
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    said = subprocess.run(
        ["fish", "--no-config", "-c", asked], capture_output=True, text=True, check=True, env=home, cwd=tmp_path
    )
    assert (said.stdout.split(), said.stderr) == (completed, "")


@pytest.mark.parametrize(("words", "completed"), COMPLETED)
def test_a_shell_completes_commands_and_options(
    capsys: pytest.CaptureFixture[str], words: list[str], completed: list[str]
) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    quoted = " ".join(f"'{word}'" for word in ["bgmiddleware", *words])
    asked = (
        f'{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _bgmiddleware; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    said = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True).stdout
    assert said.split() == completed
