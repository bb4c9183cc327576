"""Two runs beside each other: what differs, for who may see both, in bounded time."""

# ruff: noqa: F401  # fixtures are imported by their names

import difflib
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, current_job, marks, owners, step
from bgmiddleware._serving import comparing, differences
from bgmiddleware._serving.comparing import _bounded, _rows
from bgmiddleware._serving.differences import MOST_LINES, changes_between, keys_of
from tests.kit.clients import InProcess, OverHTTP, ended, environ, start
from tests.kit.readers import UNKNOWN, token_of
from tests.kit.redis_server import redis_server, redis_server_of_module
from tests.kit.stores import STORES, Stores, opened_stores

FORM = {"content_type": "application/x-www-form-urlencoded"}
HTML = {"accept": "text/html"}
JSON = {"accept": "application/json"}


class Told:
    """An app that prints and answers something else each time."""

    def __init__(self, *outputs: str) -> None:
        self.outputs = list(outputs)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        output = self.outputs.pop(0)
        with step("Reading"):
            print(output)
        start_response("500 Oh" if "failed" in output else "200 OK", [("Content-Type", "text/plain")])
        return [output.encode()]


@pytest.fixture(params=STORES)
def opens(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    yield from opened_stores(request, tmp_path)


def again(site: Any, client: OverHTTP, target: str, **headers: str) -> str:
    reply = client.request("POST", target, b"_action=rerun", **FORM, **headers)
    assert reply.status == 303, reply
    second = target.partition("?")[0] + reply["Location"]
    ended(site, second)
    return second


def begun(site: Any, client: OverHTTP, path: str = "/", **headers: str) -> str:
    target = start(client, path, **headers)
    ended(site, target)
    return target


def test_a_run_is_compared_with_the_one_that_it_repeats(opens: Stores) -> None:
    site, client = opens(Told("one\ntwo\nthree", "one\n2\nthree\nfour"), keep_requests=True)
    first = begun(site, client)
    second = again(site, client, first)
    text = client.request("GET", f"{second}&_view=compare").text
    facts, _, lines = text.partition("\n\n")
    assert "State: finished, 200 OK → finished, 200 OK\n" in facts
    assert "Result: 13 B → 16 B (+3 B)\n" in facts
    assert "▸ Reading: " in facts
    assert lines == " ▸ Reading\n one\n-two\n+2\n three\n+four\n"
    assert "rows" not in client.request("GET", f"{first}&_view=compare", **JSON).json
    assert client.request("GET", f"{first}&_view=compare").status == 404, "it repeats none"


def test_the_page_says_the_same_without_a_script(opens: Stores) -> None:
    site, client = opens(Told("<b>one</b>\n\x1b[1mtwo", "<b>one</b>\nthree"), keep_requests=True)
    second = again(site, client, begun(site, client))
    link = f"{second.removeprefix('/')}&_view=compare".replace("&", "&amp;")
    assert f'href="{link}">Compare</a>' in client.request("GET", second, **HTML).text
    reply = client.request("GET", f"{second}&_view=compare", **HTML)
    assert "<td>&lt;b&gt;one&lt;/b&gt;</td>" in reply.text
    assert "<del>two</del></td><td><ins>three</ins>" in reply.text
    assert "script" not in reply["Content-Security-Policy"]
    assert "<script" not in reply.text
    assert "Ignore numbers and times" in reply.text


def test_a_failed_run_is_compared_with_the_last_that_worked(opens: Stores) -> None:
    site, client = opens(Told("worked", "failed 1", "failed 2"), keep_requests=True)
    third = again(site, client, again(site, client, begun(site, client)))
    text = client.request("GET", f"{third}&_view=compare").text
    assert "-worked\n" in text
    assert "State: finished, 200 OK → failed, 500 Oh\n" in text


def test_an_owners_run_is_compared_with_his_earlier_one(opens: Stores) -> None:
    site, client = opens(Told("ada's", "eve's", "ada's other", "another"), owner=owners.header("X-User"))
    begun(site, client, x_user="ada")
    begun(site, client, x_user="eve")
    second = begun(site, client, x_user="ada")
    third = begun(site, client, "/other", x_user="ada")
    text = client.request("GET", f"{second}&_view=compare", x_user="ada").text
    assert "-ada's\n" in text
    assert "eve" not in text
    assert client.request("GET", f"{third}&_view=compare", x_user="ada").status == 404, "another request"


def test_both_must_be_visible(opens: Stores) -> None:
    site, client = opens(Told("ada's secret", "eve's", "eve's other"), owner=owners.header("X-User"))
    hers = begun(site, client, x_user="ada")
    mine, other = (begun(site, client, x_user="eve") for _ in range(2))
    compare = f"{mine}&_view=compare&_with="
    theirs, nobodys = (client.request("GET", compare + token, x_user="eve") for token in (token_of(hers), UNKNOWN))
    assert (theirs.status, theirs.body) == (404, nobodys.body)
    assert client.request("GET", compare + token_of(other), x_user="eve").status == 200
    for named in ("", "share.abc", "x" * 36):
        assert client.request("GET", compare + named, x_user="eve").status == 404
    assert client.request("GET", compare + token_of(other), x_user="ada").status == 404
    share = client.request("POST", mine, b"_action=share", x_user="eve", **FORM)["Location"]
    assert client.request("GET", f"/{share}&_view=compare&_with={token_of(other)}").status == 403


def test_numbers_and_times_can_be_ignored(opens: Stores) -> None:
    site, client = opens(Told("at 12:30:01.5: 4 rows\nend", "at 13:00:00.0: 5 rows\nEND"), keep_requests=True)
    second = again(site, client, begun(site, client))
    plain = client.request("GET", f"{second}&_view=compare").text
    assert "-at 12:30:01.5: 4 rows\n" in plain
    text = client.request("GET", f"{second}&_view=compare&_ignore=numbers").text
    assert "-at" not in text
    assert "-end\n+END\n" in text


# The lines.


def made_again(old: list[str], new: list[str]) -> list[str]:
    """Apply the changes; see that all else is the same."""
    at = new_at = 0
    made: list[str] = []
    for change in changes_between(old, new):
        assert old[at : change.begin] == new[new_at : change.new_begin]
        made += old[at : change.begin] + new[change.new_begin : change.new_end]
        at, new_at = change.end, change.new_end
    assert old[at:] == new[new_at:]
    return made + old[at:]


def test_the_changes_make_the_later_text_of_the_earlier_one() -> None:
    chance = random.Random(1)
    for words in ("ab", "abcdef", "abcdefghijklmnopqrstuvwxyz"):
        for _ in range(500):
            old, new = ([chance.choice(words) for _ in range(chance.randrange(15))] for _ in range(2))
            assert made_again(old, new) == new


def test_one_line_that_moved_in_is_one_change() -> None:
    lines = [f"line {number}" for number in range(1000)]
    assert changes_between(lines, [*lines[:500], "new", *lines[500:]]) == [(500, 500, 500, 501)]
    assert changes_between(lines, lines) == []
    assert keys_of(["a 1.5 b", "c"], ignores_numbers=True) == ["a 0 b", "c"]


HARD = {
    "the same two lines": lambda chance, at: chance.choice("ab"),
    "a thousand lines": lambda chance, at: str(chance.randrange(1000)),
    "all differ": lambda chance, at: f"{at} {chance.random()}",
    "each second": lambda chance, at: f"line {at}" if at % 2 else chance.choice("ab"),
    "islands": lambda chance, at: f"line {at}" if not at % 500 else chance.choice("ab"),
}


@pytest.mark.everything
@pytest.mark.parametrize("line", HARD.values(), ids=HARD.keys())
def test_the_work_of_a_comparison_is_bounded_whatever_the_lines(line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []
    compared: list[int] = []
    anchors = differences._Differences._anchors

    def counted(self: Any, begin: int, end: int, new_begin: int, new_end: int) -> Any:
        looked_at.append(end - begin + new_end - new_begin)
        return anchors(self, begin, end, new_begin, new_end)

    class Matcher(difflib.SequenceMatcher[int]):
        def __init__(self, junk: None, old: list[int], new: list[int], *, autojunk: bool) -> None:
            compared.append(len(old) * len(new))
            super().__init__(junk, old, new, autojunk=autojunk)

    monkeypatch.setattr(differences._Differences, "_anchors", counted)
    monkeypatch.setattr("difflib.SequenceMatcher", Matcher)
    chance = random.Random(2)
    old, new = ([line(chance, at) for at in range(MOST_LINES)] for _ in range(2))
    changes_between(old, new)
    assert 0 < sum(looked_at) <= 2 * MOST_LINES * differences._DEEPEST
    assert sum(compared) <= differences._WORK


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_one_comparison_at_a_time_works_in_a_slot_though_its_client_has_gone(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> list[str]:
        begun.set()
        assert may_end.wait(60)
        return []

    with BackgroundMiddleware(Told("one", "two"), when=marks.always, stream_slots=1) as site:
        first, second = (start(InProcess(site), "/") for _ in range(2))
        for each in (first, second):
            ended(site, each)
        monkeypatch.setattr(comparing, "_lines", slow)
        target = f"{first}&_view=compare&_with={token_of(second)}"
        asked = environ(method, target) | {"waitress.client_disconnected": lambda: True}
        thread = threading.Thread(target=lambda: list(site(asked, lambda *_: None)), name="gone")
        thread.start()
        assert begun.wait(60)
        refused = InProcess(site).request(method, target)
        may_end.set()
        thread.join()
        assert refused.status == 503
        assert InProcess(site).request(method, target).status == 200


def test_what_is_shown_is_bounded() -> None:
    old, new = ([f"{name} {at}" for at in range(5000)] for name in ("old", "new"))
    rows = _bounded(_rows(old, ["x" * 10_000, *new], ignores_numbers=False))
    assert len(rows) == 2001
    assert rows[-1][0] == "@"
    assert max(len(text) for row in rows for text in row) <= 501


def test_lines_that_are_the_same_are_folded() -> None:
    old = [f"line {at}" for at in range(100)]
    new = [*old[:50], "other", *old[51:]]
    assert list(_rows(old, new, ignores_numbers=False)) == [
        ("@", "… 47 …", ""),
        *((" ", f"line {at}", f"line {at}") for at in (47, 48, 49)),
        ("~", "line 50", "other"),
        *((" ", f"line {at}", f"line {at}") for at in (51, 52, 53)),
        ("@", "… 46 …", ""),
    ]
    assert list(_rows(old, old, ignores_numbers=False)) == []


def test_an_output_with_too_many_lines_is_compared_at_its_head_and_its_tail(opens: Stores) -> None:
    long = "\n".join(map(str, range(MOST_LINES + 10)))
    site, client = opens(Told(long, f"{long}\nend"), keep_requests=True)
    second = again(site, client, begun(site, client))
    text = client.request("GET", f"{second}&_view=compare").text
    assert text.endswith("+end\n")
    assert "lines are left out" in text
