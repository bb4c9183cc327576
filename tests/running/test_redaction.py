"""Secrets of a site are in nothing that is stored, shown or logged of a job."""

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from bgmiddleware import BackgroundMiddleware, Channel, ConfigurationError, JobState, current_job, marks, redact, step
from bgmiddleware._ground.redaction import LONGEST
from bgmiddleware.executors.process import ProcessExecutor
from bgmiddleware.paste import filter_app_factory
from bgmiddleware.redact import redaction_of
from bgmiddleware.registries.spool import SpoolRegistry
from tests.kit.clients import InProcess, ended, start

SECRET = "hunter2/of the=shop"
KEY = f"-----BEGIN RSA PRIVATE KEY-----\n{'MIIEpAIB' * 8}\n{'AAKCAQEA' * 8}\n-----END RSA PRIVATE KEY-----"
RULES: list[Any] = [SECRET, "abcdef", "defghi", re.compile(r"^pin=(?P<secret>\d+)|[xy]+z$"), redact.common()]
WITHOUT_LINES = [rule for rule in RULES if not isinstance(rule, re.Pattern)]
EXAMPLES = {
    f"a {SECRET} b\n": "a [redacted] b\n",
    f"{SECRET}{SECRET}": "[redacted][redacted]",
    "abcdefghi, abcde, abcdeabcdef": "[redacted], abcde, abcde[redacted]",
    "pin=1234\npin=12\rmy pin=1\nxyz xyzx xyz": "pin=[redacted]\npin=[redacted]\rmy pin=1\nxyz xyzx [redacted]",
    "AKIAABCDEFGHIJKLMNOP AKIA12": "[redacted] AKIA12",
    f"aws_secret_access_key = '{'a1' * 20}'": "aws_secret_access_key = '[redacted]'",
    f"ghp_{'Ab1' * 12}. ghp_ab": "[redacted]. ghp_ab",
    "Authorization: Bearer abc.DEF-123_456~7890=\n": "Authorization: Bearer [redacted]\n",
    "authorization: Basic YWxhZGRpbjpvcGVu": "authorization: Basic [redacted]",
    "http://ann:pässwörd@h/x http://h:80/@ x://:y@z": "http://ann:[redacted]@h/x http://h:80/@ x://:[redacted]@z",
    f"({KEY})": "([redacted])",
    f"{KEY[:-10]} and no end": f"[redacted]\n{KEY[:-10].rpartition(chr(10))[2]} and no end",
    "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.SflKxwRJSMeKKF2QT4.": "[redacted].",
    "-----BEGIN CERTIFICATE-----\nabc": "-----BEGIN CERTIFICATE-----\nabc",
    "äöü 😀 plain": "äöü 😀 plain",
}


def in_pieces(pieces: Iterable[bytes], rules: list[Any]) -> bytes:
    """Return what comes of an output that is stored in these pieces."""
    redaction, stored = redaction_of(rules), list[bytes]()
    assert redaction is not None
    redactor = redaction.stream(stored.append)
    for piece in pieces:
        redactor.store(piece)
    redactor.end()
    return b"".join(stored)


@pytest.mark.parametrize("rules", [RULES, WITHOUT_LINES], ids=["lines are held back", "beginnings are held back"])
@pytest.mark.parametrize("text", EXAMPLES)
def test_secrets_are_found_across_any_cut(text: str, rules: list[Any]) -> None:
    redaction, data, expected = redaction_of(rules), text.encode(), EXAMPLES[text]
    assert redaction is not None
    if rules is WITHOUT_LINES and text.startswith("pin"):
        expected = text
    assert redaction(text) == expected
    assert in_pieces((data[at : at + 1] for at in range(len(data))), rules).decode() == expected
    for first in range(0, len(data) + 1, 1 if len(data) < 100 else 3):
        assert in_pieces((data[:first], data[first:]), rules).decode() == expected, first
        for second in range(first, min(len(data), first + 8) + 1):
            pieces = data[:first], data[first:second], data[second:]
            assert in_pieces(pieces, rules).decode() == expected, (first, second)


@pytest.mark.parametrize("rules", [["abcdef"], [redact.common()], [re.compile("abcdef")]])
def test_what_is_no_secret_is_as_it_was_byte_for_byte(rules: list[Any]) -> None:
    data = bytes(range(255, -1, -1)) * 100 + "é\udcff".encode("utf-8", "surrogatepass") + b"\xf0\x9f"
    assert in_pieces((data[at : at + 7] for at in range(0, len(data), 7)), rules) == data


@pytest.mark.parametrize("rules", [["abcdef"], [re.compile("abcdef")], ["abcdef", redact.common()]])
def test_what_is_held_back_has_a_bound(rules: list[Any]) -> None:
    redaction, stored = redaction_of(rules), list[bytes]()
    assert redaction is not None
    redactor = redaction.stream(stored.append)
    for _ in range(100):
        redactor.store(b"x" * 1000)
    assert sum(map(len, stored)) >= 100_000 - 2 * LONGEST - 1000
    redactor.store(b"abc")
    redactor.store(b"def")
    redactor.end()
    assert b"".join(stored) == b"x" * 100_000 + b"[redacted]"


def test_a_print_without_a_secret_waits_for_no_end_of_its_line() -> None:
    for rules in (["abcdef"], [redact.common()]):
        redaction, stored = redaction_of(rules), list[bytes]()
        assert redaction is not None
        redactor = redaction.stream(stored.append)
        redactor.store(b"loading ...")
        assert stored == [b"loading ..."]


# A job.


def leaking(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    job = current_job()
    assert job is not None
    job.title = f"{'t' * 985} {SECRET}"
    print("half", SECRET[:8], end="")
    with step(f"reading {SECRET}"):
        job.progress(1, 2, f"with {SECRET}")
    sys.stderr.write(SECRET[:5])
    sys.stderr.write(f"{SECRET[5:]}\n")
    logging.getLogger("shop").error("logged %s", SECRET)
    subprocess.run([sys.executable, "-c", f"print({SECRET!r})"], stdout=sys.stdout, check=True)
    raise ValueError(f"{'v' * 490} {SECRET}")


def everything_of(site: BackgroundMiddleware, key: str) -> str:
    """Return all that is stored of a job but its response."""
    job = site.registry.get(key)
    output = site.registry.read(key, Channel.OUTPUT, 0).data.decode()
    return json.dumps([job.to_document(), output], ensure_ascii=False)


@pytest.mark.parametrize("rules", [[SECRET], [re.compile("hunter2.*shop")]], ids=["value", "pattern"])
def test_a_secret_is_in_nothing_that_is_stored_or_logged_of_a_job(
    rules: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        SpoolRegistry(tmp_path / "jobs") as registry,
        BackgroundMiddleware(leaking, when=marks.always, registry=registry, redact=rules, tee=True) as site,
    ):
        job = ended(site, start(InProcess(site), f"/x?q={SECRET.replace(' ', '%20')}"))
        stored = everything_of(site, job.key)
    assert job.state is JobState.FAILED
    assert job.title.startswith("tttt")
    assert job.title.endswith("[redacted]")
    assert job.steps is not None
    assert job.steps.listed[0].title == "reading [redacted]"
    assert job.steps.listed[0].progress is not None
    assert job.steps.listed[0].progress.message == "with [redacted]"
    assert f"half {SECRET[:8]}\n▸ reading [redacted]\n" in json.loads(stored)[1]
    assert stored.count("[redacted]") >= 7
    assert SECRET not in stored
    assert "of the=shop" not in stored
    ours = [record for record in caplog.records if record.name == "bgmiddleware"]
    assert any("ValueError" in record.getMessage() for record in ours)
    formatted = "\n".join(map(logging.Formatter().format, ours))
    assert "of the=shop" not in formatted + job.reason
    assert "Traceback" in formatted
    copied = capsys.readouterr().out
    assert "logged [redacted]" in copied
    assert SECRET not in copied
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_titles_of_requests_and_of_the_site_have_no_secrets() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("204 No Content", [])
        return []

    with BackgroundMiddleware(app, when=marks.always, redact=["abc def"]) as site:
        assert ended(site, start(InProcess(site), "/abc%20def?q=abc+def")).title == "POST /[redacted]?q=[redacted]"
    titled = BackgroundMiddleware(
        app, when=marks.always, redact=["abcdef"], title=lambda environ: "t" * 995 + environ["PATH_INFO"]
    )
    with titled as site:
        assert ended(site, start(InProcess(site), "/abcdef")).title == "t" * 995 + "/[re…"


@pytest.mark.parametrize("secret", ["hunter-of-the-shop", "jäger", "part/of/two", "/x" * 60], ids=str)
def test_the_path_by_which_jobs_are_counted_has_no_secrets(secret: str) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("204 No Content", [])
        return []

    with BackgroundMiddleware(app, when=marks.always, redact=[secret]) as site:
        job = ended(site, start(InProcess(site), f"/hooks/{quote(secret)}/go"))
        assert job.asked["path"] == "/hooks/[redacted]/go"
        assert {minute.path for minute in site.registry.history(0).minutes} == {"/hooks/[redacted]/go"}


def dying(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    print(f"printed {SECRET}", flush=True)
    os.write(1, f"below Python {SECRET}\n".encode())
    os._exit(7)


def processes_app() -> BackgroundMiddleware:
    return BackgroundMiddleware(
        dying,
        when=marks.always,
        registry=SpoolRegistry(os.environ["REDACTION_SPOOL"]),
        executor=ProcessExecutor("tests.running.test_redaction:app_of_child"),
        redact=[SECRET],
    )


def __getattr__(name: str) -> Any:
    if name == "app_of_child":
        return processes_app()
    raise AttributeError(name)


@pytest.mark.everything
def test_what_a_process_printed_before_it_died_has_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDACTION_SPOOL", str(tmp_path / "jobs"))
    with contextlib.closing(processes_app()) as site:
        job = ended(site, start(InProcess(site), "/x"))
        output = site.registry.read(job.key, Channel.OUTPUT, 0).data.decode()
    assert (job.state, job.reason) == (JobState.LOST, "its process exited with status 7")
    assert output == "printed [redacted]\nbelow Python [redacted]\n"


# What a site says.


def test_values_of_the_environment_are_named_by_globs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_TOKEN", "abcdefgh")
    monkeypatch.setenv("SHOP_KEY", "1234567")
    monkeypatch.setenv("OTHER", "ijklmnop")
    redaction = redact.environment("*_TOKEN", "*_KEY")
    assert redaction("abcdefgh 1234567 ijklmnop") == "[redacted] 1234567 ijklmnop"
    assert "abcdefgh" not in repr(redaction)


def test_a_value_is_found_as_urls_tracebacks_and_json_have_it() -> None:
    value = 'a/b "c\n'
    redaction = redaction_of([value])
    assert redaction is not None
    text = f"a%2Fb%20%22c%0A a%2Fb+%22c%0A {json.dumps([value])} {value!r}"
    assert redaction(text) == "[redacted] [redacted] [\"[redacted]\"] '[redacted]'"


@pytest.mark.parametrize("wrong", ["secret-of-shop", [1], ["abc"], [""], [b"abcdef"], [re.compile(b"x")], None])
def test_a_bad_rule_is_refused_and_not_repeated(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^redact = ") as caught:
        BackgroundMiddleware(leaking, redact=wrong)
    assert "secret-of-shop" not in str(caught.value)
    assert "'abc'" not in str(caught.value)


def test_a_pattern_that_matches_nothing_at_all_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="empty"):
        BackgroundMiddleware(leaking, redact=[re.compile("x*")])


rules_of_shop = ["abcdef"]


def test_an_ini_file_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_TOKEN", "ijklmnop")
    text = "common environment:*_TOKEN python:tests.running.test_redaction:rules_of_shop"
    site = filter_app_factory(leaking, {}, redact=text)
    assert site.redaction is not None
    assert site.redaction(f"abcdef ijklmnop {'AKIA' * 5}") == "[redacted] [redacted] [redacted]"
    for wrong in ("all", "environment:", "python:shop", "abcdef"):
        with pytest.raises(ConfigurationError, match="redact"):
            filter_app_factory(leaking, {}, redact=wrong)
