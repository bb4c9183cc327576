"""A job asks, and its readers answer: on the page, by curl, from the command line."""

# ruff: noqa: F401  # fixtures are imported by their names

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import (
    BackgroundMiddleware,
    ConfigurationError,
    Job,
    JobState,
    NoAnswer,
    Registry,
    ask,
    marks,
    owners,
    step,
)
from bgmiddleware._jobs import Question, key_of
from bgmiddleware._running import questions
from bgmiddleware.executors.process import ProcessExecutor
from bgmiddleware.registries import open_registry
from tests.again import asking_site
from tests.kit.clients import InProcess, OverHTTP, Reply, ended, start
from tests.kit.readers import UNKNOWN, token_of
from tests.kit.redis_server import redis_server, redis_server_of_module
from tests.kit.stores import STORES, Stores, opened_stores

FORM = {"content_type": "application/x-www-form-urlencoded"}
JSON = {"accept": "application/json"}
HTML = {"accept": "text/html"}
LONG = 120.0


@pytest.fixture(params=STORES)
def opens(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    yield from opened_stores(request, tmp_path)


def asked(client: OverHTTP, target: str, **headers: str) -> dict[str, Any]:
    """Wait until a job asks; return what."""
    while True:
        state = client.request("GET", f"{target}&_view=status", **headers).json
        assert not state["ended_at"], state
        if state["waiting_for"]:
            found: dict[str, Any] = state["waiting_for"]
            return found


def answered(client: OverHTTP, target: str, text: str, **headers: str) -> Reply:
    return client.request("POST", target, f"_answer={text}".encode(), **{**FORM, **headers})


def asking(question: str = "Delete 14 rows?", choices: tuple[str, ...] = ("yes", "no"), timeout: float = LONG) -> Any:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        said = ask(question, choices, timeout)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [said.encode()]

    return app


def reading(environ: Any, start_response: Any) -> list[bytes]:
    print("before")
    print("\x1b[1mReally?\x1b[0m ", end="")
    said = input("[y/n] ")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [said.encode()]


def test_a_job_waits_for_an_answer_and_goes_on_with_it(opens: Stores) -> None:
    site, client = opens(asking())
    target = start(client, "/")
    waits = asked(client, target)
    assert waits["question"] == "Delete 14 rows?"
    assert waits["choices"] == ["yes", "no"]
    state = client.request("GET", f"{target}&_view=status").json
    assert state["state"] == "running"
    assert waits["until"] > state["started_at"]
    reply = answered(client, target, "yes")
    assert reply.status == 202
    assert reply.json["waiting_for"] is None, "it has its answer"
    assert ended(site, target).state is JobState.FINISHED
    assert client.request("GET", f"{target}&_view=result").text == "yes"
    assert client.request("GET", f"{target}&_view=log").text == "? Delete 14 rows? [yes/no]\n> yes\n"
    assert site.registry.get(key_of(token_of(target))).question is None


def test_an_answer_that_is_no_choice_is_refused_and_the_job_waits_on(opens: Stores) -> None:
    site, client = opens(asking())
    target = start(client, "/")
    number = asked(client, target)["id"]
    for text in ("maybe", "", "YES", "yes%00", "x" * 5000):
        assert answered(client, target, text, **JSON).status == 400
    assert answered(client, target, "yes&_question=another").status == 409
    assert asked(client, target)["id"] == number
    assert answered(client, target, f"no&_question={number}").status == 202
    assert answered(client, target, "yes", **JSON).status == 409, "only the first answer counts"
    ended(site, target)
    late = answered(client, target, "yes", **JSON)
    assert late.status == 409
    assert late.json["type"].endswith(":not-asked")
    assert client.request("GET", f"{target}&_view=result").text == "no"


def test_without_choices_any_line_is_an_answer(opens: Stores) -> None:
    site, client = opens(asking("Which <b>name</b>?", ()))
    target = start(client, "/")
    asked(client, target)
    page = client.request("GET", target, **HTML).text
    assert "Which &lt;b&gt;name&lt;/b&gt;?" in page
    assert 'name="_answer"' in page
    assert "http-equiv" not in page, "a page that is asked for again would take away what is typed"
    assert answered(client, target, "a%0Ab", **JSON).status == 400
    assert answered(client, target, "%3Cb%3E+%C3%BC").status == 202
    ended(site, target)
    assert client.request("GET", f"{target}&_view=result").body.decode() == "<b> ü"


def test_a_person_answers_by_a_form_without_a_script(opens: Stores) -> None:
    site, client = opens(asking())
    target = start(client, "/")
    number = asked(client, target)["id"]
    page = client.request("GET", target, **HTML).text
    assert '<strong id="job-asked">Delete 14 rows?</strong>' in page
    assert '<button name="_answer" value="yes">yes</button>' in page
    reply = answered(client, target, f"yes&_question={number}", **HTML)
    assert (reply.status, reply["Location"]) == (303, target.removeprefix("/"))
    ended(site, target)
    assert "job-question" not in client.request("GET", target, **HTML).text.partition("<script")[0]


def test_a_question_and_its_choices_have_no_secrets(opens: Stores) -> None:
    site, client = opens(asking("Use hunter-two?", ("hunter-two", "none")), redact=["hunter-two"])
    target = start(client, "/")
    waits = asked(client, target)
    assert (waits["question"], waits["choices"]) == ("Use [redacted]?", ["[redacted]", "none"])
    assert answered(client, target, "[redacted]").status == 202
    assert ended(site, target).state is JobState.FINISHED
    assert client.request("GET", f"{target}&_view=result").text == "hunter-two"
    assert client.request("GET", f"{target}&_view=log").text == "? Use [redacted]? [[redacted]/none]\n> [redacted]\n"


def test_choices_that_only_their_secrets_tell_apart_are_refused() -> None:
    both = ("hunter-two", "hunter-tree")
    with BackgroundMiddleware(asking("Which?", both), when=marks.always, redact=both) as site:
        job = ended(site, start(InProcess(site), "/"))
    assert job.reason.endswith("expected texts that differ without the secrets in them")


def test_another_site_and_another_owner_cannot_answer(opens: Stores) -> None:
    site, client = opens(asking(), owner=owners.header("X-User"))
    target = start(client, "/", x_user="ada")
    asked(client, target, x_user="ada")
    for headers in ({"sec_fetch_site": "cross-site"}, {"origin": "http://evil.example"}):
        assert answered(client, target, "yes", x_user="ada", **headers).status == 403
    theirs = answered(client, target, "yes", x_user="eve")
    nobodys = answered(client, f"/?_t={UNKNOWN}", "yes", x_user="eve")
    assert (theirs.status, theirs.body) == (nobodys.status, nobodys.body)
    assert theirs.status == 404
    asked(client, target, x_user="ada")
    assert answered(client, target, "no", x_user="ada").status == 202
    ended(site, target)


def test_a_time_out_raises_and_the_question_is_gone(opens: Stores) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        with pytest.raises(NoAnswer, match=r"within 0\.01 s: Still there"):
            ask("Still there?", timeout=0.01)
        asked_now.append(site.registry.get(site.registry.jobs()[0].key).question)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"nobody"]

    asked_now: list[Any] = []
    site, client = opens(app)
    target = start(client, "/")
    assert ended(site, target).state is JobState.FINISHED
    assert asked_now == [None]
    assert issubclass(NoAnswer, TimeoutError)


def test_a_cancel_ends_the_waiting(opens: Stores) -> None:
    site, client = opens(asking())
    target = start(client, "/")
    asked(client, target)
    client.request("DELETE", target)
    job = ended(site, target)
    assert (job.state, job.question) == (JobState.CANCELLED, None)


def test_two_threads_of_a_job_ask_one_after_the_other(opens: Stores) -> None:
    said: dict[str, str] = {}

    def app(environ: Any, start_response: Any) -> list[bytes]:
        def asks(name: str) -> None:
            said[name] = ask(f"{name}?", timeout=LONG)

        threads = [threading.Thread(target=asks, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    site, client = opens(app)
    target = start(client, "/")
    seen = set()
    for _ in range(2):
        waits = asked(client, target)
        seen.add(waits["question"])
        assert answered(client, target, f"to+{waits['question'][0]}&_question={waits['id']}").status == 202
    ended(site, target)
    assert seen == {"a?", "b?"}
    assert said == {"a": "to a", "b": "to b"}


def test_input_asks_with_what_was_printed_last_where_the_site_says_so(opens: Stores) -> None:
    site, client = opens(reading, answers=True)
    target = start(client, "/")
    waits = asked(client, target)
    assert (waits["question"], waits["choices"]) == ("Really? [y/n]", [])
    assert answered(client, target, "y").status == 202
    assert ended(site, target).state is JobState.FINISHED
    assert client.request("GET", f"{target}&_view=result").text == "y"
    assert client.request("GET", f"{target}&_view=log").text == "before\n\x1b[1mReally?\x1b[0m [y/n] y\n"


def test_else_the_input_of_a_job_is_at_its_end(opens: Stores) -> None:
    site, client = opens(reading)
    target = start(client, "/")
    job = ended(site, target)
    assert (job.state, job.reason) == (JobState.FAILED, "EOFError: EOF when reading a line")


def test_who_reads_all_of_the_input_asks_nobody(opens: Stores) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        import sys

        start_response("200 OK", [("Content-Type", "text/plain")])
        return [repr((list(sys.stdin), sys.stdin.read())).encode()]

    site, client = opens(app, answers=True)
    target = start(client, "/")
    ended(site, target)
    assert client.request("GET", f"{target}&_view=result").text == "([], '')"


@pytest.mark.everything
@pytest.mark.parametrize("opens", ["spool", "redis"], indirect=True)
@pytest.mark.parametrize("path", ["/ask", "/input"])
def test_a_job_in_a_process_of_its_own_asks_too(opens: Stores, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(asking_site.VARIABLE, opens.url)
    executor = ProcessExecutor("tests.again.asking_site:app", max_workers=1, drain=0.0)
    site, client = opens(asking_site.view, executor=executor, answers=True)
    target = start(client, path)
    assert asked(client, target)["question"] == "Go on?"
    assert answered(client, target, "yes").status == 202
    assert ended(site, target).state is JobState.FINISHED
    assert client.request("GET", f"{target}&_view=result").text == "yes"
    target = start(client, path)
    asked(client, target)
    client.request("DELETE", target)
    assert ended(site, target).state is JobState.CANCELLED


@pytest.mark.parametrize("opens", ["spool"], indirect=True)
def test_the_command_line_answers(opens: Stores, capsys: pytest.CaptureFixture[str]) -> None:
    from bgmiddleware.__main__ import main

    site, client = opens(asking())
    target = start(client, "/")
    asked(client, target)
    command = ["jobs", "answer", "--registry", opens.url, token_of(target)]
    assert main([*command, "maybe"]) == 2
    assert "yes" in capsys.readouterr().err
    assert main([*command, "yes"]) == 0
    ended(site, target)
    assert client.request("GET", f"{target}&_view=result").text == "yes"
    assert main([*command, "yes"]) == 2


def test_outside_a_job_it_asks_at_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter(["maybe", " yes "])
    prompts: list[str] = []
    monkeypatch.setattr("builtins.input", lambda prompt: prompts.append(prompt) or next(said))
    assert ask("Go on?", ("yes", "no")) == "yes"
    assert prompts == ["Go on? [yes/no] "] * 2


@pytest.mark.parametrize(
    ("question", "choices", "timeout"),
    [
        ("", (), 1.0),
        ("a?", "yes", 1.0),
        ("a?", ("yes", ""), 1.0),
        ("a?", ("a\nb",), 1.0),
        ("a?", (" a",), 1.0),
        ("a?", tuple(map(str, range(21))), 1.0),
        ("a?", ("x" * 101,), 1.0),
        ("a?", (), 0),
        ("a?", (), float("inf")),
    ],
)
def test_what_is_no_question_is_refused(question: str, choices: Any, timeout: float) -> None:
    with pytest.raises(ConfigurationError):
        questions._check(question, choices, timeout)


def test_a_question_comes_back_from_json_as_it_was() -> None:
    job = Job("k", "t", question=Question("Go on?", ("yes", "no"), 5.0, "ab", None))
    assert Job.from_document(json.loads(json.dumps(job.to_document()))) == job
