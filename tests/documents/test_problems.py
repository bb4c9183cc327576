"""Each problem has a name of its own, and the page that explains it has each."""

import ast
import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, MemoryRegistry, RegistryError, ThreadExecutor, ask, marks
from tests.kit.clients import InProcess, Reply, ended, environ, start
from tests.kit.documents import PAGES, ROOT
from tests.kit.readers import BOTH, UNKNOWN, Client, Clock, Opener, Play, answering, opened

PAGE = PAGES["problems.rst"].read_text("utf-8")
ROW = re.compile(
    r"^   \* - ``([a-z-]+)``\n     - ([0-9, ]+)\n     - (\S[^*]*?)\n     - (\S.*?)(?=\n   \* -|\n\n|\Z)", re.M | re.S
)
DOCUMENTED = {kind: {int(code) for code in codes.split(",")} for kind, codes, *_ in ROW.findall(PAGE)}


def in_code() -> dict[str, set[int]]:
    """Return the kinds that the code can say, with the codes that it names."""
    found: dict[str, set[int]] = {}
    for path in (ROOT / "bgmiddleware").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("problem"):
                _, code, kind, *_ = node.args
                assert isinstance(kind, ast.Constant), f"{path.name}: a kind is a word"
                found.setdefault(str(kind.value), set())
                if isinstance(code, ast.Constant):
                    found[str(kind.value)].add(int(str(code.value)))
    return found


def test_each_problem_of_the_code_is_documented_with_its_status() -> None:
    code = in_code()
    assert DOCUMENTED.keys() == code.keys()
    for kind, codes in code.items():
        assert codes <= DOCUMENTED[kind], kind


def test_a_kind_is_one_word_and_has_one_status() -> None:
    for kind, codes in DOCUMENTED.items():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", kind)
        assert len(codes) == 1 or kind == "bad-request-body"
    assert len(ROW.findall(PAGE)) == len(DOCUMENTED), "each is explained once"


# Each of them, provoked.


def _queue_full(opens: Opener, accept: str) -> Reply:
    _, client = opens(Play(), executor=ThreadExecutor(max_workers=1, max_pending=0, drain=0.0))
    start(client, "/")
    return client.request("POST", "/", accept=accept)


def _of_no_job(method: str = "POST", path: str = "/", body: bytes = b"", **headers: str) -> Callable[..., Reply]:
    def provoke(opens: Opener, accept: str) -> Reply:
        _, client = opens(answering(), max_body=10, dashboard="/_jobs", authorize=lambda environ: "x" in str(environ))
        return client.request(method, path, body, accept=accept, **headers)

    return provoke


class Broken(MemoryRegistry):
    """Fails as one whose disk is gone, in *what* is named."""

    def __init__(self, *what: str) -> None:
        super().__init__()
        for name in what:
            setattr(self, name, self._fail)

    def _fail(self, *arguments: Any, **options: Any) -> Any:
        raise RegistryError("the disk is gone")


def _broken(opens: Opener, accept: str) -> Reply:
    _, client = opens(answering(), registry=Broken("add"))
    return client.request("POST", "/", accept=accept)


def _forbidden(opens: Opener, accept: str) -> Reply:
    _, client = opens(answering(), dashboard="/_jobs", authorize=lambda environ: False)
    return client.request("GET", "/_jobs", accept=accept)


def _discard_running(opens: Opener, accept: str) -> Reply:
    site, client = opens(Play(), dashboard="/_jobs", authorize=lambda environ: True)
    start(client, "/")
    form = {"content_type": "application/x-www-form-urlencoded", "accept": accept}
    return client.request("POST", f"/_jobs/{site.registry.jobs()[0].key}", b"_action=discard", **form)


def _bad_query(opens: Opener, accept: str) -> Reply:
    site, _ = opens(answering())
    return InProcess(site).request("POST", "/?q=\u2603", accept=accept)  # no client of HTTP sends that


def _reused(opens: Opener, accept: str) -> Reply:
    _, client = opens(answering())
    start(client, "/a", idempotency_key="k")
    return client.request("POST", "/b", idempotency_key="k", accept=accept)


def _expired(opens: Opener, accept: str) -> Reply:
    clock = Clock()
    site, client = opens(answering(), registry=MemoryRegistry(ttl=10.0, clock=clock))
    target = start(client, "/")
    ended(site, target)
    clock.ahead = 11.0
    return client.request("GET", target, accept=accept)


def _running(query: str = "", method: str = "GET", body: bytes = b"", **headers: str) -> Callable[..., Reply]:
    def provoke(opens: Opener, accept: str) -> Reply:
        play = Play()
        _, client = opens(play, stream_slots=0, keep_requests=True)
        target = start(client, "/")
        play.begins()
        return client.request(method, target + query, body, **{"accept": accept, **headers})

    return provoke


def _rerun(opens: Opener, accept: str) -> Reply:
    site, client = opens(answering())
    target = start(client, "/")
    ended(site, target)
    form = {"content_type": "application/x-www-form-urlencoded"}
    return client.request("POST", target, b"_action=rerun", accept=accept, **form)


def _shared(opens: Opener, accept: str) -> Reply:
    _, client = opens(answering())
    target = start(client, "/")
    form = {"content_type": "application/x-www-form-urlencoded"}
    for _ in range(20):
        assert client.request("POST", target, b"_action=share", **form).status == 201
    return client.request("POST", target, b"_action=share", accept=accept, **form)


def _kept(opens: Opener, accept: str) -> Reply:
    site, client = opens(answering(), registry=MemoryRegistry(max_kept=0))
    target = start(client, "/")
    ended(site, target)
    form = {"content_type": "application/x-www-form-urlencoded"}
    return client.request("POST", target, b"_action=keep", accept=accept, **form)


def _asked(body: bytes) -> Callable[..., Reply]:
    def provoke(opens: Opener, accept: str) -> Reply:
        play = Play()
        _, client = opens(play)
        target = start(client, "/")
        play._steps.put(lambda: ask("Go on?", ("yes", "no")))
        while client.request("GET", f"{target}&_view=status").json["waiting_for"] is None:
            pass
        try:
            return client.request("POST", target, body, accept=accept, content_type="application/x-www-form-urlencoded")
        finally:
            client.request("DELETE", target)

    return provoke


def _result_of(end: Callable[[Play, BackgroundMiddleware, Client, str], None]) -> Callable[..., Reply]:
    def provoke(opens: Opener, accept: str) -> Reply:
        play = Play()
        site, client = opens(play)
        target = start(client, "/")
        play.begins()
        end(play, site, client, target)
        ended(site, target)
        return client.request("GET", f"{target}&_view=result", accept=accept)

    return provoke


def _challenged(opens: Opener, accept: str) -> Reply:
    play = Play()
    site, client = opens(play)
    target = start(client, "/", body=b"x")
    play.answers(b"who?", "401 Unauthorized")
    ended(site, target)
    return client.request("GET", f"{target}&_view=result", accept=accept, authorization="Basic YTpi")


def _raise(play: Play, *others: Any) -> None:
    def fail() -> None:
        raise ValueError("as told")

    play._steps.put(fail)


def _cancel(play: Play, site: BackgroundMiddleware, client: Client, target: str) -> None:
    client.request("DELETE", target)
    play._steps.put(lambda: print("stopped here"))


def _lose(play: Play, site: BackgroundMiddleware, *others: Any) -> None:
    site.executor.shutdown(0.0)


def _misconfigured(opens: Opener, accept: str) -> Reply:
    inner = BackgroundMiddleware(answering(), when=marks.always)
    _, client = opens(lambda environ, start_response: inner(environ, start_response), when=marks.prefers_async)
    return client.request("POST", "/", accept=accept)


PROVOKED: dict[str, Callable[[Opener, str], Reply]] = {
    "queue-full": _queue_full,
    "registry-error": _broken,
    "misconfigured": _misconfigured,
    "speculative": _of_no_job(sec_purpose="prefetch"),
    "bad-request-body": _of_no_job(body=b"x" * 11),
    "bad-query": _bad_query,
    "bad-idempotency-key": _of_no_job(idempotency_key="k" * 256),
    "idempotency-key-reused": _reused,
    "unknown-job": _of_no_job("GET", f"/?_t={UNKNOWN}"),
    "expired": _expired,
    "not-ready": _running(accept="application/hal+json"),
    "challenged": _challenged,
    "bad-parameter": _running("&_offset=x"),
    "no-slot": _running("&_view=events"),
    "bad-answer": _asked(b"_answer=maybe"),
    "not-asked": _asked(b"_answer=yes&_question=other"),
    "not-kept": _rerun,
    "still-running": _running(method="POST", body=b"_action=rerun", content_type="application/x-www-form-urlencoded"),
    "nothing-to-compare": _running("&_view=compare"),
    "too-many-shares": _shared,
    "too-many-kept": _kept,
    "cross-site": _running(method="DELETE", sec_fetch_site="cross-site"),
    "job-runs": _discard_running,
    "failed": _result_of(_raise),
    "cancelled": _result_of(_cancel),
    "lost": _result_of(_lose),
    "forbidden": _forbidden,
    "method-not-allowed": _of_no_job("PUT", "/_jobs"),
}
RETRIED = {"not-ready", "queue-full", "registry-error", "speculative", "no-slot"}


@pytest.fixture(params=BOTH)
def opens(request: pytest.FixtureRequest) -> Iterator[Opener]:
    yield from opened(request)


def test_all_of_them_are_provoked_here() -> None:
    assert PROVOKED.keys() == DOCUMENTED.keys()


@pytest.mark.parametrize("kind", PROVOKED)
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # the validator wants its iterable closed
def test_a_problem_says_what_the_page_says(opens: Opener, kind: str) -> None:
    if kind != "not-ready":  # who names JSON gets it
        reply = PROVOKED[kind](opens, "application/json")
        assert reply["Content-Type"] == "application/problem+json"
        document = reply.json
        assert document.keys() == {"type", "title", "status", "detail"}
        assert document["type"] == f"urn:bgmiddleware:problem:{kind}"
        assert document["status"] == reply.status
        assert reply.status in DOCUMENTED[kind]
    reply = PROVOKED[kind](opens, "*/*")
    assert reply.status in DOCUMENTED[kind]
    assert reply["Content-Type"] == "text/plain; charset=utf-8"
    assert reply.text.count("\n") == 1
    assert reply["Content-Length"] == str(len(reply.body))
    assert reply["Cache-Control"] == "no-store, no-transform"
    assert reply["X-Content-Type-Options"] == "nosniff"
    assert "Vary" in reply
    assert ("Retry-After" in reply) is (kind in RETRIED)


@pytest.mark.parametrize("query", ["", "&_view=status", "&_view=result", "&_offset=0", "&_view=page", "&_view=events"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_registry_that_cannot_be_read_says_so_in_each_view(opens: Opener, query: str, method: str) -> None:
    _, client = opens(answering(), registry=Broken("get"))
    reply = client.request(method, "/" + client.request("POST", "/")["Location"] + query, accept="application/json")
    assert (reply.status, reply.json["type"]) == (503, "urn:bgmiddleware:problem:registry-error")
    assert "Retry-After" in reply
    assert "disk" not in reply.text, "what is wrong with it is for the server's log"


def test_a_list_of_jobs_that_cannot_be_read_says_so(opens: Opener) -> None:
    _, client = opens(answering(), registry=Broken("jobs"), dashboard="/_jobs", authorize=lambda environ: True)
    reply = client.request("GET", "/_jobs")
    assert (reply.status, reply.text) == (503, "The list of jobs cannot be read now.\n")
    assert "Retry-After" in reply


def test_a_body_has_three_things_that_may_be_wrong_with_it() -> None:
    with BackgroundMiddleware(answering(), when=marks.always, max_body=10) as site:
        for changes, status in [
            ({"CONTENT_LENGTH": "9"}, 400),
            ({"CONTENT_LENGTH": "nine"}, 400),
            ({"CONTENT_LENGTH": "11"}, 413),
            ({"CONTENT_LENGTH": "9" * 5000}, 413),
            ({"HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": ""}, 411),
        ]:
            given = {**environ("POST", "/", b"eight by"), **changes}
            heads: list[Any] = []
            body = site(given, lambda *head, heads=heads: heads.append(head))
            assert heads[0][0].startswith(str(status))
            assert b"".join(body)
            with contextlib.suppress(AttributeError):
                body.close()  # type: ignore[attr-defined]
        assert site.registry.jobs() == []


@pytest.mark.parametrize(
    ("accept", "is_json"),
    [
        ("application/json", True),
        ("application/json; charset=utf-8", True),
        ("application/problem+json, */*;q=0.1", True),
        ("text/event-stream", True),
        ("application/json, text/plain, */*", True),
        ("application/json;q=0, */*", False),
        ("*/*", False),
        ("", False),
        ("text/plain", False),
        ("(", False),
    ],
)
def test_who_gets_json(opens: Opener, accept: str, is_json: bool) -> None:
    _, client = opens(answering())
    reply = client.request("GET", f"/?_t={UNKNOWN}", accept=accept)
    assert reply["Content-Type"] == ("application/problem+json" if is_json else "text/plain; charset=utf-8")
    assert client.request("HEAD", f"/?_t={UNKNOWN}", accept=accept).body == b""


def test_a_browser_gets_a_page(opens: Opener) -> None:
    _, client = opens(answering())
    reply = client.request("GET", f"/?_t={UNKNOWN}", accept="text/html, application/json;q=0.9")
    assert reply["Content-Type"] == "text/html; charset=utf-8"


def test_a_problem_is_one_line_even_of_an_error_that_has_several(opens: Opener) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        raise ValueError("first\n  second\r\nthird")

    site, client = opens(app)
    target = start(client, "/")
    ended(site, target)
    reply = client.request("GET", target + "&_view=result")
    assert reply.text == "The job failed: ValueError: first second third. Its output says more.\n"
