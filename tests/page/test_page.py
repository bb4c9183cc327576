"""The page of a job as HTML: what it says, what it allows itself, and that nothing in it is more than text."""

import base64
import hashlib
import html
import inspect
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from string import Template
from typing import Any

import pytest

from bgmiddleware import (
    BackgroundMiddleware,
    ConfigurationError,
    Job,
    JobState,
    MemoryRegistry,
    PageParts,
    ThreadExecutor,
    owners,
    progress,
)
from bgmiddleware._serving import assets
from bgmiddleware._serving import kept as kept_module
from bgmiddleware._serving import page as page_module
from bgmiddleware._serving import question as question_module
from bgmiddleware._serving import rerun as rerun_module
from bgmiddleware._serving.estimates import Estimate, Estimates
from bgmiddleware._serving.icons import LOOKS
from bgmiddleware._serving.readable import readable
from tests.kit.clients import Reply, ended, start
from tests.kit.readers import BOTH, Clock, Opener, Play, answering, opened, token_of

HTML = {"accept": "text/html,*/*;q=0.8"}
MAX_BYTES = 45_000


@pytest.fixture(params=BOTH)
def opens(request: pytest.FixtureRequest) -> Iterator[Opener]:
    yield from opened(request)


@pytest.fixture(params=["in-process"])
def opens_here(request: pytest.FixtureRequest) -> Iterator[Opener]:
    """The same in-process only, for what no server changes."""
    yield from opened(request)


class Elements(HTMLParser):
    """All elements of a page, with their attributes; and the text of some."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.found.append((tag, attributes))
        self._open.append(attributes.get("id") or tag)

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]] = self.texts.get(self._open[-1], "") + data

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def __getitem__(self, element_id: str) -> dict[str, str | None]:
        (attributes,) = [attributes for _, attributes in self.found if attributes.get("id") == element_id]
        return attributes

    def tags(self) -> set[str]:
        return {tag for tag, _ in self.found}


def page_of(client: Any, target: str, **headers: str) -> tuple[Reply, Elements]:
    reply = client.request("GET", target, **{**HTML, **headers})
    assert reply.status == 200
    return reply, Elements(reply.text)


def data_of(elements: Elements) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(elements.texts["job-data"])
    return data


def policy_of(reply: Reply) -> dict[str, list[str]]:
    directives = [part.split() for part in reply["Content-Security-Policy"].split(";")]
    return {name: sources for name, *sources in directives}


def sha256(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# What it says, without a script too.


def test_a_running_job_can_be_watched_and_cancelled_without_a_script(opens: Opener) -> None:
    play = Play()
    _, client = opens(play)
    target = start(client, "/slow?2")
    play.prints("line 1\n")
    reply, page = page_of(client, target)
    assert reply["Content-Type"] == "text/html; charset=utf-8"
    assert '<noscript><meta http-equiv="refresh" content="3"></noscript>' in reply.text
    assert page.texts["title"] == "▶ POST /slow?2"
    assert page.texts["job-badge"] == "▶ running"
    assert page.texts["job-text"] == "line 1\n"
    assert "started " in page.texts["job-time"]
    assert page["job-cancel"] == {"id": "job-cancel", "method": "post"}, "to the URL that it is seen at"
    assert "hidden" not in page["job-cancel"]
    assert '<button name="_action" value="cancel">' in reply.text
    assert "hidden" in page["job-result"]
    assert "hidden" in page["job-nothing"]


def test_an_ended_job_has_its_result_and_is_not_asked_for_again(opens: Opener) -> None:
    site, client = opens(answering(b"body", output=b"line 1\n"))
    target = start(client, "/slow?2")
    ended(site, target)
    reply, page = page_of(client, target)
    assert "refresh" not in reply.text.partition("<style>")[0]
    assert page.texts["job-badge"] == "✓ finished"
    assert page["job-result"]["href"] == f"?2&_t={token_of(target)}&_view=result"
    assert "hidden" not in page["job-result"]
    assert "hidden" in page["job-cancel"]
    assert page["job-progress"]["value"] == "100.0"


def test_the_refresh_is_only_for_who_has_no_script(opens_here: Opener) -> None:
    play = Play()
    _, client = opens_here(play)
    target = start(client, "/slow")
    play.begins()
    text = page_of(client, target)[0].text
    assert "http-equiv" not in re.sub(r"<noscript>.*?</noscript>", "", text)


def test_a_waiting_job_says_so(opens_here: Opener) -> None:
    play = Play()
    _, client = opens_here(play, executor=ThreadExecutor(max_workers=1, drain=0.0))
    start(client, "/first")
    play.begins()
    _, page = page_of(client, start(client, "/second"))
    assert page.texts["job-badge"] == "… waiting"
    assert "waiting since " in page.texts["job-time"]
    assert page.texts["job-nothing"] == "No output yet."
    assert "value" not in page["job-progress"]


def test_a_failed_job_says_why(opens_here: Opener) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        progress(1, 4)
        raise ValueError("no <such> thing")

    site, client = opens_here(app)
    target = start(client, "/")
    ended(site, target)
    _, page = page_of(client, target)
    assert page.texts["job-badge"] == "✗ failed"
    assert page.texts["job-note"] == "ValueError: no <such> thing"
    assert page["job-progress"]["value"] == "25.0", "how far it came"
    assert "hidden" in page["job-result"]


def test_a_failed_job_that_answered_has_its_answer(opens_here: Opener) -> None:
    site, client = opens_here(answering(b"sorry", status="500 Internal Server Error"))
    target = start(client, "/")
    ended(site, target)
    assert "hidden" not in page_of(client, target)[1]["job-result"]


@pytest.mark.parametrize(
    ("method", "path", "again"),
    [("GET", "/a/rows%20b?n=1&m=a+b", "./rows%20b?n=1&m=a+b"), ("GET", f"/a/b?n={'x' * 2000}", f"./b?n={'x' * 2000}")],
)
def test_a_get_that_failed_can_be_started_again(opens_here: Opener, method: str, path: str, again: str) -> None:
    site, client = opens_here(answering(b"sorry", status="500 Internal Server Error"))
    target = start(client, path, method)
    ended(site, target)
    _, page = page_of(client, target)
    assert page["job-again"]["href"] == again
    assert "hidden" not in page["job-again"]


def test_what_is_no_get_or_did_not_fail_is_not_offered_again(opens_here: Opener) -> None:
    site, client = opens_here(answering(b"sorry", status="500 Internal Server Error"))
    target = start(client, "/", "POST")
    ended(site, target)
    _, page = page_of(client, target)
    assert "href" not in page["job-again"]
    assert "hidden" in page["job-again"]
    site, client = opens_here(answering(b"done"))
    target = start(client, "/", "GET")
    ended(site, target)
    _, page = page_of(client, target)
    assert "hidden" in page["job-again"]


def test_of_a_job_that_failed_nobody_knows_how_far_it_came(opens_here: Opener) -> None:
    site, client = opens_here(answering(b"sorry", status="500 Internal Server Error"))
    target = start(client, "/")
    ended(site, target)
    assert "hidden" in page_of(client, target)[1]["job-progress"]


def test_a_form_that_was_sent_on_is_offered_again(opens_here: Opener) -> None:
    site, client = opens_here(answering(status="308 Permanent Redirect", headers=[("Location", "/form/")]))
    target = start(client, "/form", body=b"a=1")
    ended(site, target)
    _, page = page_of(client, target)
    assert page.texts["job-result"] == "Open the form"
    assert "hidden" not in page["job-result"]
    assert page.texts["job-note"] == (
        "the app did not handle this POST and redirects it to /form/: send it there again"
    )
    reply = client.request("GET", f"{target}&_view=result")
    assert (reply.status, reply["Location"]) == (308, "/form/")


def test_a_job_without_output_says_that_there_was_none(opens_here: Opener) -> None:
    site, client = opens_here(answering())
    target = start(client, "/")
    ended(site, target)
    _, page = page_of(client, target)
    assert page.texts["job-nothing"] == "There was no output."
    assert "hidden" not in page["job-nothing"]
    assert page["job-progress"]["value"] == "100.0"


def test_a_cancel_that_was_asked_for_is_said_and_not_offered_again(opens_here: Opener) -> None:
    play = Play()
    site, client = opens_here(play)
    target = start(client, "/")
    play.begins()
    client.request("DELETE", target)
    _, page = page_of(client, target)
    assert page.texts["job-note"] == "Cancelling: the job stops the next time it prints."
    assert "hidden" in page["job-cancel"]
    play.answers()
    ended(site, target)
    note = page_of(client, target)[1].texts["job-note"]
    assert note.startswith("The job was asked to stop."), note


@pytest.mark.parametrize(
    ("reported", "value", "note"),
    [
        ((1, 4, "rows"), "25.0", "rows 1 of 4"),
        ((0, 3), "0.0", "0 of 3"),
        ((1234567, None, "rows"), None, "rows 1,234,567"),
        ((1.5, 3), "50.0", "1.50 of 3"),
    ],
)
def test_progress_is_a_bar_and_words(opens_here: Opener, reported: Any, value: str | None, note: str) -> None:
    play = Play()
    _, client = opens_here(play)
    target = start(client, "/")
    play.does(lambda: progress(*reported))
    _, page = page_of(client, target)
    assert page["job-progress"].get("value") == value
    assert page.texts["job-note"] == note


def test_of_a_long_output_the_end_is_in_it_and_the_rest_is_said(opens: Opener) -> None:
    site, client = opens(answering(output=b"x" * 99 + b"\n" + b"y" * 64 * 1024))
    target = start(client, "/")
    ended(site, target)
    _, page = page_of(client, target)
    assert page.texts["job-text"] == "y" * 64 * 1024
    assert page.texts["job-earlier"] == "The first 100 bytes are not shown."
    assert "hidden" not in page["job-earlier"]


def test_what_fits_is_whole(opens_here: Opener) -> None:
    site, client = opens_here(answering(output=b"y" * 64 * 1024))
    target = start(client, "/")
    ended(site, target)
    assert "hidden" in page_of(client, target)[1]["job-earlier"]


# Size.


@pytest.mark.parametrize("language", assets.LANGUAGES)
def test_all_of_it_but_the_output_is_less_than_45_kilobytes(opens_here: Opener, language: str) -> None:
    play = Play()
    _, client = opens_here(play)
    target = start(client, "/reports/2026")
    play.prints("x" * 1000)
    reply, _ = page_of(client, target, accept_language=language)
    assert len(reply.body) - 1000 < MAX_BYTES


def test_it_asks_for_nothing_else(opens_here: Opener) -> None:
    site, client = opens_here(answering(output=b"1\n"))
    target = start(client, "/")
    ended(site, target)
    _, page = page_of(client, target)
    loading = [
        attributes.get(name, "")
        for tag, attributes in page.found
        for name in ("src", "srcset", "data", *(["href"] if tag == "link" else []))
        if name in attributes
    ]
    assert all(str(url).startswith("data:") for url in loading), loading


# Hostile input.

MARKUP = "</pre></script></title><script>alert(1)</script><img src=x onerror=alert(2)><!--"


def test_hostile_output_is_only_text(opens: Opener) -> None:
    output = (
        f"{MARKUP}\n\x1b[31mred\x1b[0m \x1b]8;;javascript:alert(3)\x07link\x1b]8;;\x07 \x1b]52;c;aGk=\x07\n10%\r99%\n"
    )
    site, client = opens(answering(output=output.encode() + b"\xff\xe2\x80\xaegpj.exe\n"))
    target = start(client, "/")
    ended(site, target)
    reply, page = page_of(client, target)
    assert page.texts["job-text"] == f"{MARKUP}\nred link \n99%\n\ufffd[U+202E]gpj.exe\n"
    assert "\x1b" not in reply.text
    assert_only_ours(page)


def test_hostile_titles_queries_messages_and_reasons_are_only_text(opens: Opener) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        progress(1, 2, MARKUP + "\u202e")
        raise RuntimeError(MARKUP)

    site, client = opens(app)
    target = start(client, "/%3C/title%3E%3Cscript%3E?q=%3C/script%3E&'\"")
    ended(site, target)
    reply, page = page_of(client, target)
    assert page.texts["title"] == "✗ POST /</title><script>?q=</script>&'\""
    assert page.texts["job-note"] == f"RuntimeError: {MARKUP}"
    assert data_of(page)["job"]["title"] == "POST /</title><script>?q=</script>&'\""
    assert data_of(page)["job"]["progress"]["message"] == MARKUP + "\u202e"
    assert "\u202e" not in reply.text
    assert_only_ours(page)


def assert_only_ours(page: Elements) -> None:
    """Check that there is no element, and no attribute, that would be there without hostile input."""
    scripts = [attributes.get("type") for tag, attributes in page.found if tag == "script"]
    assert scripts == ["application/json", "module"]
    assert page.texts["script"] == assets.script()
    assert page.tags().isdisjoint({"img", "iframe", "object", "embed", "svg", "base"})
    assert not [name for _, attributes in page.found for name in attributes if name.startswith("on") or name == "style"]


@pytest.mark.parametrize(
    ("output", "read"),
    [
        ("a\r\nb\r\n", "a\nb\n"),
        ("10%\r50%\r100%\n", "100%\n"),
        ("a\x1b[1;31mb\x1b[0mc", "abc"),
        ("\x1b]0;title\x07a\x1b]8;;http://x\x1b\\b", "ab"),
        ("a\x1b]52;unterminated\nb", "a\nb"),
        ("a\x00\x06\x7f\x9bb", "ab"),
        ("\u202ea\u2066\u061c", "[U+202E]a[U+2066][U+061C]"),
        ("tab\tstays\n", "tab\tstays\n"),
        # Of a line that is written over the last state.
        ("".join("\b" * 9 + f"{n}/3 [{'=' * n:3}]" for n in (1, 2, 3)), "3/3 [===]"),
        ("wheel ... -\b\\\b|\b/\bdone\n", "wheel ... done\n"),
        ("N\bNA\bAM\bM\bE\b\b\b\b", "NAE"),
        ("_\bA\n\b\bB", "A\nB"),
        ("100% of it\rdone", "done of it"),
        ("downloading\r\x1b[Kdone", "done"),
        ("downloading\x1b[2K\rdone", "done"),
        ("abc\b \b\b.", "a."),
        ("one\x1b[1Gtwo\x1b[2Dx\x1b[3Cy", "txo  y"),
        ("abcd\r\x1b[2P\x1b[1C\x1b[1Ke", " e"),
        ("日本\b\bx", "日x"),
        ("\te\u0301\r2\n", "2       e\u0301\n"),
        ("a\r\r\nb\r", "a\nb"),
    ],
)
def test_terminal_output_is_made_readable(output: str, read: str) -> None:
    assert readable(output) == read


# What it allows itself.


def test_its_policy_allows_what_is_in_it_and_nothing_else(opens: Opener) -> None:
    site, client = opens(answering())
    target = start(client, "/")
    ended(site, target)
    reply, page = page_of(client, target)
    assert policy_of(reply) == {
        "default-src": ["'none'"],
        "script-src": [sha256(page.texts["script"])],
        "style-src": [sha256(page.texts["style"])],
        "connect-src": ["'self'"],
        "img-src": ["data:"],
        "form-action": ["'self'"],
        "base-uri": ["'none'"],
        "frame-ancestors": ["'self'"],
        "require-trusted-types-for": ["'script'"],
        "trusted-types": ["'none'"],
    }


@pytest.mark.parametrize(
    "sink", ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("]
)
def test_the_script_has_nothing_that_makes_code_of_text(sink: str) -> None:
    assert sink not in assets.script()


def test_a_page_is_for_its_reader_only(opens: Opener) -> None:
    site, client = opens(answering())
    target = start(client, "/")
    ended(site, target)
    reply, _ = page_of(client, target)
    assert "no-store" in reply["Cache-Control"]
    assert reply["Referrer-Policy"] == "same-origin"
    assert reply["X-Content-Type-Options"] == "nosniff"


# External assets.


def test_external_assets_are_links_that_a_browser_may_keep(opens: Opener) -> None:
    site, client = opens(answering(), assets="external")
    target = start(client, "/a/b?x=1")
    ended(site, target)
    reply, page = page_of(client, target)
    assert "<style" not in reply.text
    assert policy_of(reply)["script-src"] == policy_of(reply)["style-src"] == policy_of(reply)["img-src"] == ["'self'"]
    (script,) = [attributes for tag, attributes in page.found if tag == "script" and "src" in attributes]
    (style,) = [attributes for _, attributes in page.found if attributes.get("rel") == "stylesheet"]
    found = {
        "text/javascript; charset=utf-8": (script["src"], assets.script()),
        "text/css; charset=utf-8": (style["href"], assets.style()),
        "image/svg+xml; charset=utf-8": (page["job-icon"]["href"], None),
    }
    for content_type, (link, text) in found.items():
        asset = client.request("GET", f"/a/b{link}")
        assert (asset.status, asset["Content-Type"]) == (200, content_type)
        assert asset["Cache-Control"] == "private, max-age=31536000, immutable"
        assert asset["X-Content-Type-Options"] == "nosniff"
        assert text is None or asset.text == text
        assert token_of(target) not in asset.text


@pytest.mark.parametrize("state", LOOKS)
def test_each_state_has_an_icon_of_its_own(opens_here: Opener, state: str) -> None:
    site, client = opens_here(answering(), assets="external")
    target = start(client, "/")
    ended(site, target)
    link = data_of(page_of(client, target)[1])["icon"]
    icons = {other: client.request("GET", "/" + link.replace("STATE", other)).text for other in LOOKS}
    assert [other for other in LOOKS if icons[other] == icons[state]] == [state]


def test_an_asset_of_another_version_is_not_kept(opens_here: Opener) -> None:
    site, client = opens_here(answering())
    target = start(client, "/")
    ended(site, target)
    for version in ("", "&_version=old"):
        reply = client.request("GET", f"{target}&_view=app.js{version}")
        assert (reply.status, reply["Cache-Control"]) == (200, "no-store")
    assert client.request("GET", f"{target}&_view=icon.svg&_version=happy").status == 400


@pytest.mark.parametrize("wrong", ["", "inlined", None, True])
def test_assets_are_inline_or_external(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="assets"):
        BackgroundMiddleware(answering(), assets=wrong)


# A page of the site's own.


def test_a_site_makes_the_page_by_a_function_of_its_parts(opens: Opener) -> None:
    def page(parts: PageParts) -> str:
        assert parts.status["state"] == "finished"
        assert parts.output == "1 < 2\n"
        return (
            f"<html lang={parts.language}><head>{parts.head}<link rel=stylesheet href=/site.css></head>"
            f"<body><h1>Shop</h1>{parts.body}</body></html>"
        )

    site, client = opens(answering(output=b"1 < 2\n"), page=page)
    target = start(client, "/")
    ended(site, target)
    reply, elements = page_of(client, target)
    assert elements.texts["h1"].startswith("Shop")
    assert elements.texts["job-text"] == "1 < 2\n"
    policy = policy_of(reply)
    assert policy["script-src"] == ["'self'", sha256(assets.script())]
    assert policy["style-src"] == ["'self'", sha256(assets.style())]
    assert policy["object-src"] == ["'none'"]


def test_a_site_makes_the_page_by_a_template(opens_here: Opener) -> None:
    template = Template("<title>$title is $state</title>$head<p lang=$language>$output</p>$body")
    site, client = opens_here(answering(output=b"1 < 2\n"), page=template)
    target = start(client, "/%3Cb%3E")
    ended(site, target)
    text = page_of(client, target)[0].text
    assert text.startswith("<title>POST /&lt;b&gt; is finished</title>")
    assert "<p lang=en>1 &lt; 2\n</p>" in text


def test_a_page_of_the_site_may_have_external_assets(opens_here: Opener) -> None:
    site, client = opens_here(answering(), page=Template("$head $body"), assets="external")
    target = start(client, "/")
    ended(site, target)
    reply, _ = page_of(client, target)
    assert policy_of(reply)["script-src"] == ["'self'"]
    assert "<style" not in reply.text


@pytest.mark.parametrize(
    "wrong",
    ["page.html", 1, Template("$body"), Template("$head"), Template("$head $body $user"), Template("$head $body $")],
)
def test_a_page_that_cannot_be_is_refused_when_the_app_is_built(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="page"):
        BackgroundMiddleware(answering(), page=wrong)


# Languages.


@pytest.mark.parametrize(
    ("accepts", "language"),
    [
        (None, "en"),
        ("", "en"),
        ("en", "en"),
        ("de", "de"),
        ("de-AT,de;q=0.9,en;q=0.8", "de"),
        ("en-GB,en;q=0.9,de;q=0.8", "en"),
        ("fr, de;q=0.5", "de"),
        ("fr", "en"),
        ("de;q=0", "en"),
        ("*", "en"),
        ("(nonsense", "en"),
    ],
)
def test_the_page_speaks_the_language_that_is_asked_for(opens_here: Opener, accepts: str | None, language: str) -> None:
    site, client = opens_here(answering())
    target = start(client, "/")
    ended(site, target)
    reply, page = page_of(client, target, **({} if accepts is None else {"accept_language": accepts}))
    assert page.found[0] == ("html", {"lang": language})
    assert page.texts["job-badge"] == {"en": "✓ finished", "de": "✓ fertig"}[language]
    assert reply["Vary"] == "Accept, Accept-Language"


def test_there_is_a_file_of_words_for_each_language_and_no_other() -> None:
    static = assets.resources.files("bgmiddleware._serving").joinpath("static")
    files = {path.name for path in static.iterdir() if path.name.endswith(".json")}
    assert files == {f"{language}.json" for language in assets.LANGUAGES}


@pytest.mark.parametrize("language", assets.LANGUAGES)
def test_every_language_says_all_there_is_to_say(language: str) -> None:
    english, other = assets.words("en"), assets.words(language)
    assert {part: set(said) for part, said in other.items()} == {part: set(said) for part, said in english.items()}
    for part, said in english.items():
        for name, text in said.items():
            places = sorted(re.findall(r"\{(\w+)\}", str(other[part][name])))
            assert other[part][name], name
            assert places == sorted(re.findall(r"\{(\w+)\}", str(text))), name
    assert set(other["states"]) == set(LOOKS)


def test_every_word_is_said_somewhere() -> None:
    script, templates = "".join(map(assets.static, assets.SCRIPTS)), assets.static("body.html")
    python = "".join(map(inspect.getsource, (page_module, question_module, rerun_module, kept_module)))
    for name in assets.words("en")["script"]:
        # Some are labels of the details, which are looked up by the name of what they are of.
        used = rf'words\.{name}\b|"{name}"|^    {name}[:,]'
        assert re.search(used, script, re.MULTILINE) or name in ("cpu", "worker", "version"), name
    for name in assets.words("en")["page"]:
        assert f"$w_{name}" in templates + python or re.search(rf"[\"']{name}[\"']", python), name


# What it is made of.


def test_styles_are_stripped_of_what_is_only_for_us() -> None:
    text = '/* one\n two */\n.a, .b :hover {\n  color: red; /* x */\n  font: 1px "A B", c;\n}\n'
    assert assets.stripped_style(text) == '.a,.b :hover{color:red;font:1px "A B",c}\n'


@pytest.mark.parametrize("name", ["page.css", "terminal.css", "dashboard.css"])
def test_the_styles_have_no_string_that_stripping_would_change(name: str) -> None:
    strings = re.findall(r'"[^"]*"', assets.static(name))
    assert [text for text in strings if assets.stripped_style(text).strip() != text] == []


def test_what_is_in_the_page_is_what_the_files_say(opens_here: Opener) -> None:
    site, client = opens_here(answering())
    target = start(client, "/")
    ended(site, target)
    _, page = page_of(client, target)
    assert page.texts["script"] == assets.script()
    assert html.unescape(page["job-icon"]["href"] or "").startswith("data:image/svg+xml,<svg ")


# Estimates.


class Sleepless(Clock):
    """A clock that only goes when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def estimate_of(client: Any, target: str, **headers: str) -> Any:
    return client.request("GET", f"{target}&_view=status", **headers).json["estimate"]


def test_a_running_job_says_how_long_others_like_it_took(opens_here: Opener) -> None:
    clock, play = Sleepless(), Play()
    site, client = opens_here(play, registry=MemoryRegistry(clock=clock))

    def run(path: str, seconds: float, status: str = "200 OK") -> None:
        target = start(client, path)
        play.begins()
        clock.now += seconds
        play.answers(status=status)
        ended(site, target)

    for seconds in (52.0, 35.0, 40.0):
        run("/report", seconds)
    run("/report", 1.0, "500 Internal Server Error")
    run("/other", 2.0)
    target = start(client, "/report")
    play.begins()
    assert estimate_of(client, target) == {"low": 35.0, "high": 52.0, "runs": 3}
    play.answers()
    ended(site, target)
    assert estimate_of(client, target) is None, "it took what it took"


def test_without_an_earlier_run_nothing_is_guessed(opens_here: Opener) -> None:
    play = Play()
    _, client = opens_here(play)
    target = start(client, "/report")
    play.begins()
    assert estimate_of(client, target) is None


def test_only_the_last_twenty_count(opens_here: Opener) -> None:
    clock, play = Sleepless(), Play()
    site, client = opens_here(play, registry=MemoryRegistry(clock=clock))
    for seconds in [100.0] + [10.0] * 20:
        target = start(client, "/report")
        play.begins()
        clock.now += seconds
        play.answers()
        ended(site, target)
    target = start(client, "/report")
    play.begins()
    assert estimate_of(client, target) == {"low": 10.0, "high": 10.0, "runs": 20}


def test_nobody_learns_how_long_the_jobs_of_others_took(opens_here: Opener) -> None:
    play = Play()
    site, client = opens_here(play, owner=owners.header("X-User"))
    theirs = start(client, "/report", x_user="ada")
    play.answers()
    ended(site, theirs)
    for user, runs in (("bob", None), ("ada", 1)):
        target = start(client, "/report", x_user=user)
        play.begins()
        found = estimate_of(client, target, x_user=user)
        assert (found and found["runs"]) == runs
        play.answers()
        ended(site, target)


def registry_with(*took: float, clock: Sleepless | None = None, title: str = "GET /report") -> MemoryRegistry:
    """Return a registry whose jobs finished after these seconds each, the last one last."""
    clock = clock or Sleepless()
    registry = MemoryRegistry(clock=clock)
    for number, seconds in enumerate(took):
        key = f"{number:032x}"
        registry.add(Job(key, title))
        registry.claim(key, "runner")
        clock.now += seconds
        registry.finish(key, "runner", JobState.FINISHED)
    return registry


REPORT = Job("0" * 32, "GET /report")


@pytest.mark.parametrize(("others", "runs"), [(199, 1), (200, None)])
def test_only_the_last_two_hundred_jobs_are_looked_at(others: int, runs: int | None) -> None:
    registry = registry_with(10.0)
    for number in range(others):
        registry.add(Job(f"other-{number}", "GET /other"))
    estimate = Estimates().of(registry, REPORT)
    assert (estimate and estimate.runs) == runs


def test_an_estimate_is_remembered_for_a_minute() -> None:
    clock = Sleepless()
    estimates = Estimates(clock)
    assert estimates.of(registry_with(), REPORT) is None
    registry = registry_with(10.0, 20.0)
    clock.now += 59.9
    assert estimates.of(registry, REPORT) is None
    clock.now += 0.1
    assert estimates.of(registry, REPORT) == Estimate(10.0, 20.0, 2)


def test_no_more_estimates_are_remembered_than_256() -> None:
    estimates = Estimates(Sleepless())
    assert estimates.of(registry_with(10.0), REPORT) == Estimate(10.0, 10.0, 1)
    for number in range(255):
        estimates.of(registry_with(), Job("1" * 32, f"GET /{number}"))
    assert estimates.of(registry_with(), REPORT) == Estimate(10.0, 10.0, 1), "still remembered"
    for number in range(256):
        estimates.of(registry_with(), Job("1" * 32, f"GET /more/{number}"))
    assert estimates.of(registry_with(), REPORT) is None
