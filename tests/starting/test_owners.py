"""Whose job is it? Others see nothing of it: on every way in, a job of somebody else is as one that never was."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, ConfigurationError, marks, owners
from bgmiddleware import _serving as serving
from bgmiddleware._serving import actions
from bgmiddleware._serving.negotiate import View
from tests.kit.clients import UUID, InProcess, Reply, ended, environ, served, start
from tests.kit.readers import BOTH, UNKNOWN, Opener, Play, answering, exchanged, opened, token_of

SECRET = "sixteen letters!"
FORM = {"content_type": "application/x-www-form-urlencoded"}


@pytest.fixture(params=BOTH)
def opens(request: pytest.FixtureRequest) -> Iterator[Opener]:
    yield from opened(request)


# Who is it?


def test_the_remote_user_is_who_the_server_says() -> None:
    assert owners.remote_user({"REMOTE_USER": "ada"}) == "ada"
    assert owners.remote_user({"REMOTE_USER": ""}) is None
    assert owners.remote_user({"HTTP_REMOTE_USER": "mallory"}) is None


def test_a_header_is_who_the_proxy_says() -> None:
    owner = owners.header("X-Forwarded-User")
    assert owner({"HTTP_X_FORWARDED_USER": "ada"}) == "ada"
    assert owner({"HTTP_X_FORWARDED_USER": ""}) is None
    assert owner({}) is None


def cookie_of(reply: Reply) -> str:
    (value,) = [value for name, value in reply.headers if name == "Set-Cookie"]
    return value


def pair_of(reply: Reply) -> str:
    return cookie_of(reply).partition(";")[0]


def test_a_browser_is_given_a_cookie_when_it_starts_its_first_job(opens: Opener) -> None:
    site, client = opens(answering(b"body"), owner=owners.cookie(SECRET))
    first = client.request("POST", "/")
    assert re.fullmatch(
        r"bgmiddleware-[0-9a-f]{8}\.[0-9a-f]{8}=[\w-]+; Path=/; HttpOnly; SameSite=Lax", cookie_of(first)
    )
    pair = pair_of(first)
    target = "/" + first["Location"]
    ended(site, target)
    second = client.request("POST", "/", cookie=pair)
    assert "Set-Cookie" not in second, "it has one"
    for method, query in [
        ("GET", ""),
        ("HEAD", ""),
        ("GET", "&_view=status"),
        ("GET", "&_view=result"),
        ("DELETE", ""),
    ]:
        reply = client.request(method, target + query, cookie=pair)
        assert reply.status == 200
        assert "Set-Cookie" not in reply
    for reply in (client.request("GET", target), client.request("GET", f"/?_t={UNKNOWN}")):
        assert reply.status == 404
        assert "Set-Cookie" not in reply, "who only looks is given none"
    assert "Set-Cookie" not in client.request("GET", "/", sec_purpose="prefetch")
    jobs = site.registry.jobs()
    assert len({job.owner for job in jobs}) == 1
    assert jobs[0].owner is not None
    assert jobs[0].owner not in pair, "what the registry keeps is not what opens the door"


def test_the_cookie_comes_with_each_way_to_start(opens: Opener) -> None:
    _, client = opens(answering(b"body", headers=[("Set-Cookie", "own=1")]), owner=owners.cookie(SECRET))
    assert cookie_of(client.request("POST", "/", accept="application/json")).startswith("bgmiddleware-")
    waited = client.request("POST", "/", prefer="wait=30")
    own, ours = (value for name, value in waited.headers if name == "Set-Cookie")
    assert own == "own=1"
    assert ours.startswith("bgmiddleware-")


class Browser:
    """A client that keeps cookies, as a browser does: a new one of an old name replaces it, the others stay."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.jar: dict[str, str] = {}

    def sends(self, method: str, target: str, body: bytes = b"", **headers: str) -> Reply:
        cookie = {"cookie": "; ".join(f"{name}={value}" for name, value in self.jar.items())} if self.jar else {}
        reply: Reply = self.client.request(method, target, body, **cookie, **headers)
        return reply

    def takes(self, reply: Reply) -> Reply:
        for name, value in reply.headers:
            if name == "Set-Cookie":
                key, _, rest = value.partition("=")
                self.jar[key] = rest.partition(";")[0]
        return reply

    def starts(self, target: str, **headers: str) -> str:
        return target + self.takes(self.sends("POST", target, **headers))["Location"]

    def sees(self, target: str) -> bool:
        return self.sends("GET", target).status == 200


KEY = {"idempotency_key": "6c2b1f3e"}


@pytest.mark.parametrize("headers", [{}, KEY])
def test_of_two_first_requests_at_once_no_job_is_lost_to_their_browser(opens: Opener, headers: dict[str, str]) -> None:
    _, client = opens(answering(b"body"), owner=owners.cookie(SECRET))
    browser = Browser(client)
    replies = [browser.sends("POST", path, **headers) for path in ("/a", "/b")]  # neither has its answer yet
    if headers:
        replies[1] = browser.sends("POST", "/b", idempotency_key="other")
    jobs = [f"/{reply['Location']}" for reply in map(browser.takes, replies)]
    assert [browser.sees(job) for job in jobs] == [True, True]
    assert [Browser(client).sees(job) for job in jobs] == [False, False]
    third = browser.starts("/")
    assert [browser.sees(job) for job in (*jobs, third)] == [True] * 3
    browser.jar.popitem()
    assert browser.sees(third), "who it is says the oldest"


def test_a_first_request_that_is_sent_again_is_the_same_job(opens: Opener) -> None:
    site, client = opens(answering(b"body"), owner=owners.cookie(SECRET))
    lost = client.request("POST", "/pay", b"100", **KEY)
    browser = Browser(client)
    again = browser.takes(browser.sends("POST", "/pay", b"100", **KEY))
    assert again["Location"] == lost["Location"]
    assert browser.sees("/pay" + again["Location"])
    assert not Browser(client).sees("/pay" + again["Location"])
    third = browser.takes(browser.sends("POST", "/pay", b"100", **KEY))
    assert third["Location"] == again["Location"], "also when it has the cookie by now"
    assert "Set-Cookie" not in third
    assert browser.sends("POST", "/pay", b"101", **KEY).status == 422
    assert len(site.registry.jobs()) == 1


def test_who_shares_a_first_job_shares_nothing_else(opens: Opener) -> None:
    _, client = opens(answering(b"body"), owner=owners.cookie(SECRET), single_flight=True)
    ada, bob = Browser(client), Browser(client)
    first = ada.starts("/", **KEY)
    assert bob.starts("/", **KEY) == first, "nothing tells them apart yet"
    theirs = {browser: browser.starts("/other", idempotency_key="1") for browser in (ada, bob)}
    assert theirs[ada] != theirs[bob]
    assert [ada.sees(theirs[ada]), ada.sees(theirs[bob])] == [True, False]
    assert [bob.sees(theirs[ada]), bob.sees(theirs[bob])] == [False, True]
    assert ada.sees(first)
    assert bob.sees(first)


def test_who_has_logged_in_since_does_not_join_as_who_it_was_before(opens: Opener) -> None:
    play = Play()
    _, client = opens(play, owner=owners.cookie(SECRET), single_flight=True)
    ada = Browser(client)
    first = ada.starts("/")
    ada.jar["session"] = "ada"
    second = ada.starts("/")
    assert second != first
    bob = Browser(client)
    assert bob.starts("/") == first
    assert not bob.sees(second)


@pytest.mark.parametrize("headers", [{}, KEY])
def test_a_form_of_another_site_gives_no_cookie_and_replaces_none(opens: Opener, headers: dict[str, str]) -> None:
    _, client = opens(answering(b"body"), owner=owners.cookie(SECRET))
    browser = Browser(client)
    mine = browser.starts("/a")
    # It is sent without the cookies, for they are SameSite=Lax; what it answers the browser takes.
    forged = client.request("POST", "/b", b"a=b", sec_fetch_site="cross-site", **headers, **FORM)
    assert forged.status == 303
    assert "Set-Cookie" not in forged
    assert browser.sees(mine)
    assert browser.sees("/b" + forged["Location"]), "a job that is nobody's is for who has its token"
    again = client.request("POST", "/b", b"a=b", sec_fetch_site="cross-site", **headers, **FORM)
    assert (again["Location"] == forged["Location"]) is bool(headers)
    own = client.request("POST", "/b", b"a=b", sec_fetch_site="same-origin", **headers, **FORM)
    assert own["Location"] != forged["Location"]
    assert "Set-Cookie" in own


def test_two_sites_of_one_host_do_not_overwrite_each_others_cookies(opens: Opener) -> None:
    browsers = []
    jar: dict[str, str] = {}  # cookies do not know ports
    for owner in (
        owners.cookie(SECRET),
        owners.cookie("another secret!!"),
        owners.cookie(SECRET, name="shop"),
        owners.cookie(SECRET, name="shop-2"),
    ):
        _, client = opens(answering(b"body"), owner=owner)
        browsers.append(Browser(client))
        browsers[-1].jar = jar
    jobs = [browser.starts("/") for browser in browsers]
    assert len(jar) == 4
    assert all(browser.sees(job) for browser, job in zip(browsers, jobs, strict=True))


def test_of_many_cookies_only_some_are_looked_at() -> None:
    owner = owners.cookie(SECRET)
    pairs = [owner.issue({})[1][0][1].partition(";")[0] for _ in range(20)]
    assert len(owner.proofs({"HTTP_COOKIE": "; ".join(pairs)})) == 8


@pytest.mark.parametrize("name", ["", "a b", "a;b", "a=b", "a.b", "x" * 65, 5])
def test_a_name_that_no_cookie_can_have_is_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="name"):
        owners.cookie(SECRET, name=name)


def test_over_tls_the_cookie_stays_there() -> None:
    with BackgroundMiddleware(answering(), when=marks.always, owner=owners.cookie(SECRET)) as site:
        given = environ("POST", "/")
        given["wsgi.url_scheme"] = "https"
        heads: list[Any] = []
        site(given, lambda *head: heads.append(head))
        (value,) = [value for name, value in heads[0][1] if name == "Set-Cookie"]
        assert "; secure" in value.lower()


def test_a_cookie_that_was_forged_is_nobody(opens: Opener) -> None:
    site, client = opens(answering(b"body"), owner=owners.cookie(SECRET))
    first = client.request("POST", "/")
    pair = pair_of(first)
    target = "/" + first["Location"]
    ended(site, target)
    name, _, value = pair.partition("=")
    other_secret = owners.cookie("another secret!!").issue({})[1][0][1].partition(";")[0]
    other_name = owners.cookie(SECRET, name="other").issue({})[1][0][1].partition(";")[0]
    altered = [
        f"{name}={value[:at]}{'A' if value[at] != 'A' else 'B'}{value[at + 1 :]}" for at in range(len(value) - 2)
    ]
    for cookie in [
        *altered,
        other_secret,
        other_name,
        f"{name}=",
        f"{name}=x",
        f"{name}={value[:-8]}",
        "\xff=\xfe",
        "=;;",
    ]:
        assert client.request("GET", target, cookie=cookie).status == 404, cookie
    assert client.request("GET", target, cookie=f"a=b; {pair}; c=d").status == 200


def test_another_site_of_the_same_secret_knows_the_cookie() -> None:
    owner, headers = owners.cookie(SECRET).issue({})
    pair = headers[0][1].partition(";")[0]
    assert owners.cookie(SECRET)({"HTTP_COOKIE": pair}) == owner


@pytest.mark.parametrize("secret", ["", "short", "x" * 15])
def test_a_short_secret_is_refused(secret: str) -> None:
    with pytest.raises(ConfigurationError, match="16 characters"):
        owners.cookie(secret)
    assert SECRET not in repr(owners.cookie(SECRET))


def test_two_browsers_are_two_owners() -> None:
    issue = owners.cookie(SECRET).issue
    assert len({issue({})[0] for _ in range(100)}) == 100


# What others see.

VIEWS = (
    "",
    "&_view=page",
    "&_view=log",
    "&_offset=0",
    "&_offset=-3&_wait=30",
    "&_offset=x",
    "&_view=status",
    "&_view=status&_wait=30",
    "&_view=events",
    "&_view=result",
    "&_view=result&_wait=30",
    "&_view=no-such-view",
    *(f"&_view={view}" for view in View),
)
ASKS: tuple[dict[str, str], ...] = (
    {},
    {"accept": "text/html"},
    {"accept": "application/json"},
    {"accept": "text/event-stream"},
    {"accept": "image/png"},
    {"range": "bytes=1-"},
    {"if_none_match": "*"},
    {"last_event_id": "1"},
    {"last_event_id": "7;done"},
    {"prefer": "wait=30"},
    {"sec_fetch_site": "cross-site"},
)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY")


def undated(reply: Reply) -> Any:
    return reply.status, [header for header in reply.headers if header[0] != "Date"], reply.body


@pytest.mark.parametrize("state", ["running", "finished"])
@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
def test_to_others_a_job_is_as_if_it_never_was_on_every_way(opens: Opener, state: str) -> None:
    play = Play()
    site, client = opens(play, owner=owners.header("X-User"))
    target = start(client, "/slow", x_user="ada")
    play.prints("private\n")
    if state == "finished":
        play.answers(b"private", headers=[("Content-Type", "text/plain"), ("Set-Cookie", "session=1")])
        ended(site, target)
    unknown = f"/slow?_t={UNKNOWN}"
    assert client.request("GET", f"{target}&_offset=0", x_user="ada").text == "private\n"
    before = site.registry.jobs()
    for stranger in ({"x_user": "eve"}, {}):
        for method in METHODS:
            for view in VIEWS:
                if view.startswith("&_view=result") and method in ("POST", "PUT", "PATCH"):
                    continue  # a form of a replayed document: tested below
                # All of them once; over HTTP, and for who is nobody, one request for each view and method is enough.
                for asks in ASKS if isinstance(client, InProcess) and stranger else ASKS[:1]:
                    theirs = client.request(method, target + view, **asks, **stranger)
                    nobodys = client.request(method, unknown + view, **asks, **stranger)
                    assert theirs.status == 404, (method, view, asks)
                    assert undated(theirs) == undated(nobodys), (method, view, asks)
        for body in (*(f"_action={name}".encode() for name in (*actions.ACTIONS, "other")), b"_answer=yes", b""):
            theirs = client.request("POST", target, body, **FORM, **stranger)
            nobodys = client.request("POST", unknown, body, **FORM, **stranger)
            assert theirs.status == 404
            assert undated(theirs) == undated(nobodys)
    assert site.registry.jobs() == before, "nothing was done to it"
    assert play.calls == 1
    for view in VIEWS[:5]:
        assert client.request("HEAD", target + view, x_user="ada").status == 200
    if state == "finished":
        result = client.request("GET", f"{target}&_view=result", x_user="ada")
        assert (result.body, result["Set-Cookie"]) == (b"private", "session=1"), "no stranger took the cookie"


def test_on_the_wire_a_job_of_another_is_the_same_bytes_as_none() -> None:
    play = Play()
    with (
        BackgroundMiddleware(play, when=marks.always, owner=owners.header("X-User")) as site,
        served(site) as client,
    ):
        target = start(client, "/", x_user="ada")
        play.begins()
        for accept in ("*/*", "text/html", "application/json", "text/event-stream"):
            answers = []
            for token in (token_of(target), UNKNOWN):
                request = f"GET /?_t={token} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: {accept}\r\n\r\n"
                answers.append(re.sub(rb"Date: [^\r]*", b"", exchanged(client.port, request.encode())))
            assert answers[0] == answers[1]
            assert answers[0].startswith(b"HTTP/1.1 404 ")
        play.answers()


def test_nobody_in_particular_shares_with_who_holds_the_token(opens: Opener) -> None:
    site, client = opens(answering(b"body"), owner=owners.header("X-User"))
    target = start(client, "/")
    ended(site, target)
    assert client.request("GET", f"{target}&_view=result").body == b"body"
    assert client.request("GET", f"{target}&_view=result", x_user="ada").body == b"body"


def test_without_owners_the_token_is_enough(opens: Opener) -> None:
    site, client = opens(answering(b"body"))
    target = start(client, "/", x_user="ada")
    ended(site, target)
    assert client.request("GET", target, x_user="eve").status == 200


def test_an_owner_of_ones_own(opens: Opener) -> None:
    seen: list[Any] = []

    def owner(environ: Any) -> str | None:
        seen.append(environ["PATH_INFO"])
        return str(environ.get("HTTP_X_TENANT", "public"))

    site, client = opens(answering(b"body"), owner=owner)
    target = start(client, "/a", x_tenant="t1")
    ended(site, target)
    assert client.request("GET", target, x_tenant="t1").status == 200
    assert client.request("GET", target, x_tenant="t2").status == 404
    assert client.request("GET", target).status == 404
    assert set(seen) == {"/a"}
    assert client.request("GET", target, x_tenant="t1").status == 200


def test_a_request_that_is_not_marked_has_no_owner() -> None:
    def owner(environ: Any) -> str | None:
        raise AssertionError("nobody was asked for")

    app = BackgroundMiddleware(answering(b"fast"), when=marks.path("/slow"), owner=owner)
    assert InProcess(app).request("GET", "/").body == b"fast"


def test_one_function_decides_and_all_ways_go_through_it() -> None:
    rooms = Path(inspect.getfile(serving)).parent
    for path in rooms.glob("*.py"):
        tree = ast.parse(path.read_text())
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef):
                continue
            calls = {ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
            # Only the door asks for the job; the rooms get the one that it let through.
            if "visit.job" in calls:
                assert (path.name, function.name) == ("__init__.py", "_answer")
    source = inspect.getsource(serving._answer)
    assert source.index("visit.job()") < source.index("_view(visit") < source.index("except")
    assert source.index("visit.job()") < source.index("answer_action")


# Cookies of a replayed response.


@pytest.mark.parametrize("view", ["&_view=result", "&_view=result&_wait=30"])
def test_cookies_of_the_response_are_for_the_first_reader_only(opens: Opener, view: str) -> None:
    headers = [("Set-Cookie", "session=1"), ("Set-Cookie", "csrf=2"), ("X-Own", "1")]
    site, client = opens(answering(b"body", headers=headers), owner=owners.header("X-User"))
    target = start(client, "/", x_user="ada")
    ended(site, target)

    def cookies(method: str, user: str) -> list[str]:
        reply = client.request(method, target + view, x_user=user)
        return [value for name, value in reply.headers if name == "Set-Cookie"]

    assert cookies("HEAD", "ada") == []
    assert cookies("GET", "eve") == []
    assert cookies("GET", "ada") == ["session=1", "csrf=2"]
    assert cookies("GET", "ada") == []
    assert cookies("HEAD", "ada") == []
    reply = client.request("GET", target + view, x_user="ada")
    assert (reply.body, reply["X-Own"]) == (b"body", "1")


def test_other_views_take_no_cookies(opens: Opener) -> None:
    site, client = opens(answering(b"body", output=b"x", headers=[("Set-Cookie", "session=1")]))
    target = start(client, "/")
    ended(site, target)
    for view in ("", "&_view=page", "&_view=log", "&_view=status", "&_view=events", "&_offset=0"):
        assert "Set-Cookie" not in client.request("GET", target + view)
    assert client.request("GET", f"{target}&_view=result")["Set-Cookie"] == "session=1"


# A form without an action in a replayed page.


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_a_form_without_an_action_goes_to_where_the_page_would_have_been(opens: Opener, method: str) -> None:
    play = Play()
    play.answers(b"<form method=post>")
    site, client = opens(play, owner=owners.header("X-User"))
    first = start(client, "/edit?id=3&_t=cache-buster&view=full", method="GET", x_user="ada")
    ended(site, first)
    query = first.partition("?")[2]
    play.answers(b"saved")
    reply = client.request(
        method, f"/edit?{query}&_view=result&_wait=5&_offset=1&_every=2", b"name=x", x_user="eve", **FORM
    )
    assert reply.status == 303
    assert re.fullmatch(rf"\?id=3&_t=cache-buster&view=full&_t={UUID}", reply["Location"])
    assert token_of(reply["Location"]) != token_of(first)
    again = "/edit" + reply["Location"]
    ended(site, again)
    assert play.environs[-1]["QUERY_STRING"] == "id=3&_t=cache-buster&view=full"
    assert play.environs[-1]["REQUEST_METHOD"] == method
    assert client.request("GET", f"{again}&_view=result", x_user="eve").body == b"saved"
    assert client.request("GET", again, x_user="ada").status == 404, "it is eve's"


def test_the_links_to_a_result_keep_the_query_for_the_forms_in_it(opens: Opener) -> None:
    site, client = opens(answering(b"<form method=post>"))
    first = start(client, "/edit?id=3")
    ended(site, first)
    links = client.request("GET", f"{first}&_view=status").json["links"]
    assert links["result"] == f"?id=3&_t={token_of(first)}&_view=result"
    again = client.request("POST", "/edit" + links["result"], b"name=x", **FORM)
    assert re.fullmatch(rf"\?id=3&_t={UUID}", again["Location"])


def test_such_a_form_reaches_the_app_itself_where_nothing_is_marked(opens: Opener) -> None:
    got: list[tuple[str, bytes]] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        size = int(environ.get("CONTENT_LENGTH") or 0)
        got.append((environ["QUERY_STRING"], environ["wsgi.input"].read(size)))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"saved"]

    _, client = opens(app, when=marks.path("/never"))
    reply = client.request("POST", f"/edit?a=1&_t={UNKNOWN}&_view=result", b"name=x", **FORM)
    assert (reply.status, reply.body) == (200, b"saved")
    assert got == [("a=1", b"name=x")]


def test_a_get_or_delete_of_the_result_is_none_of_the_apps(opens: Opener) -> None:
    play = Play()
    _, client = opens(play)
    for method in ("GET", "HEAD", "DELETE", "OPTIONS"):
        assert client.request(method, f"/edit?_t={UNKNOWN}&_view=result").status == 404
    assert play.calls == 0
