"""``python -m demo`` as its user has it: a process of its own, real HTTP, the commands of its own page."""

import contextlib
import csv
import errno
import html
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.kit.clients import OverHTTP, Reply, start
from tests.kit.documents import ROOT, STRICT

pytestmark = pytest.mark.everything

PYTHON = [sys.executable, *STRICT]
SIGNED_IN = {"authorization": "Basic ZGVtbzpkZW1v"}  # demo:demo


@pytest.fixture(scope="module", autouse=True)
def _frameworks() -> None:
    for name in ("bottle", "django", "flask", "paste.deploy", "pyramid", "tqdm", "web"):
        try:
            __import__(name)
        except ModuleNotFoundError:
            if os.environ.get("CI") == "true":
                pytest.fail(f"{name} is not installed, and CI promises it")
            pytest.skip(f"{name} is not installed: pip install bgmiddleware[demo]", allow_module_level=True)


@dataclass
class Server:
    """A running ``python -m demo 0``."""

    process: subprocess.Popen[str]
    client: OverHTTP
    first_line: str

    def stop(self, number: signal.Signals) -> tuple[int, str]:
        """Send a signal; return the exit status and what was said on stderr since the start."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=120)
        return self.process.returncode, errors


@contextlib.contextmanager
def demo(pause: float) -> Iterator[Server]:
    environment = os.environ | {"DEMO_PAUSE": str(pause), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(
        [*PYTHON, "-m", "demo", "0"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        assert found, (line, process.communicate(timeout=120))
        yield Server(process, OverHTTP(int(found[1])), line)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with demo(pause=0.01) as server:
        yield server
        status, errors = server.stop(signal.SIGINT)
        assert status == 0
        assert "Warning" not in errors  # of anything that the tests did


@pytest.fixture
def client(server: Server) -> OverHTTP:
    return server.client


def followed(client: OverHTTP, target: str, method: str = "GET", body: bytes = b"", **headers: str) -> str:
    """Start a job and follow its output to its end, as ``curl -L`` does; return the target of its token."""
    at = start(client, target, method, body, **headers)
    reply = client.request("GET", at)
    assert reply.status == 200
    return at


def log(client: OverHTTP, at: str) -> str:
    return client.request("GET", at).text


def result(client: OverHTTP, at: str) -> Reply:
    return client.request("GET", f"{at}&_view=result")


# The page of them all.


def test_the_index_lists_each_demo_and_needs_nothing_else(client: OverHTTP) -> None:
    page = client.request("GET", "/", accept="text/html")
    assert page.status == 200
    assert page["Content-Type"] == "text/html; charset=utf-8"
    for name in (
        "can look like",
        "2008",
        "Statistics",
        "Plain WSGI",
        "Flask",
        "Bottle",
        "Django",
        "Pyramid",
        "web.py",
        "ini file",
    ):
        assert f"{name}" in page.text
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", page.text)
    assert "prefers-color-scheme: dark" in page.text
    assert 'name="viewport"' in page.text


def test_every_link_of_the_index_leads_somewhere(client: OverHTTP) -> None:
    links = re.findall(r'href="([^"]+)"', client.request("GET", "/").text)
    statuses = {link: client.request("GET", f"/{link}").status for link in links}
    assert len(statuses) == 20
    assert {link: status for link, status in statuses.items() if status not in (200, 303, 401)} == {}


def test_the_sources_are_shown_and_nothing_else_is(client: OverHTTP) -> None:
    assert client.request("GET", "/source/flask_app.py").body == (ROOT / "demo/flask_app.py").read_bytes()
    for name in ("index.py", "../pyproject.toml", "..%2Fpyproject.toml", ""):
        assert client.request("GET", f"/source/{name}").status == 404


def test_unknown_pages_are_404_and_a_missing_slash_is_added(client: OverHTTP) -> None:
    for page, up in (("/nothing", "./"), ("/nothing/at/all", "../.././")):
        reply = client.request("GET", page)
        assert (reply.status, re.findall('href="([^"]+)"', reply.text)) == (404, [up])
    for prefix in ("wsgi", "flask", "pyramid"):
        reply = client.request("GET", f"/{prefix}/")
        assert (reply.status, reply["Location"]) == (302, "../"), "there is nothing but what its card starts"
    reply = client.request("GET", "/upload")
    assert (reply.status, reply["Location"]) == (308, "upload/")


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("show_app.py", ["\x1b[1;32mThe shop is built.\x1b[0m"]),
        ("longrunning.py", ["hit f5 to refresh!"]),
        ("upload_app.py", ["120,000 rows, 0 of them of another width"]),
        ("wsgi_app.py", ["Month 12 is added up."]),
        ("flask_app.py", ["Row 10 of 10, for demo"]),
        ("bottle_app.py", ["Dear Ada, …", "Dear Grace, …"]),
        ("django_app.py", ["Row 10 of 10, for demo"]),
        ("pyramid_app.py", ["Row 10 of 10, for demo"]),
        ("webpy_app.py", ["hit f5 to refresh!"]),
        ("background.ini", ["file = %(here)s/background.ini"]),
    ],
)
def test_the_command_of_the_index_works_in_a_terminal(
    client: OverHTTP, tmp_path: Path, name: str, lines: list[str]
) -> None:
    if shutil.which("curl") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no curl, and CI promises it")
        pytest.skip("there is no curl")
    card = next(card for card in client.request("GET", "/").text.split("<article>") if f"source/{name}" in card)
    command = html.unescape(re.search(r"<pre[^>]*>(.*?)</pre>", card, re.DOTALL)[1])  # type: ignore[index]
    done = subprocess.run(["sh", "-ec", command], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()
    assert [line for line in lines if line not in shown] == [], done.stdout


# The demos one by one.


@pytest.mark.parametrize(
    ("view", "state", "status"),
    [
        ("build", "finished", 200),
        ("quick", "finished", 200),
        ("failed", "failed", 500),
        ("endless", "cancelled", 410),
    ],
)
def test_a_job_can_look_like_that(client: OverHTTP, view: str, state: str, status: int) -> None:
    first = client.request("GET", "/show/", accept="text/html")
    assert f'href="{view}"' in first.text
    started = client.request("GET", f"/show/{view}")
    mine = {"cookie": started["Set-Cookie"].partition(";")[0]}
    at = f"/show/{view}{started['Location'].rpartition('/')[2].partition(view)[2] or started['Location']}"
    if view == "endless":
        with client.stream("GET", at, **mine) as (_, _, chunks):
            next(chunks)
            client.request("DELETE", at, **mine)
            "".join(map(str, chunks))
    else:
        client.request("GET", at, **mine)
    document = client.request("GET", f"{at}&_view=status", **mine).json
    assert document["state"] == state
    answer = client.request("GET", f"{at}&_view=result", **mine)
    assert answer.status == status
    if state == "finished":
        assert '<a href="./">Back</a>' in answer.text
    assert client.request("GET", at).status == 404, "it is its owner's"


def test_a_job_asks_is_run_again_is_compared_and_is_shared(client: OverHTTP) -> None:
    assert 'href="clean"' in client.request("GET", "/show/").text
    started = client.request("GET", "/show/clean")
    mine = {"cookie": started["Set-Cookie"].partition(";")[0], "content_type": "application/x-www-form-urlencoded"}

    def answers(at: str, text: str) -> None:
        while client.request("GET", f"{at}&_view=status", **mine).json["waiting_for"] is None:
            pass
        assert client.request("POST", at, f"_answer={text}".encode(), **mine).status == 202

    first = "/show/clean" + started["Location"]
    answers(first, "no")
    client.request("GET", first, **mine)  # to its end
    second = "/show/clean" + client.request("POST", first, b"_action=rerun", **mine)["Location"]
    answers(second, "yes")
    answers(second, "The%20%3Clist%3E")
    client.request("GET", second, **mine)
    assert "The &lt;list&gt;: 14 orders are deleted" in client.request("GET", f"{second}&_view=result", **mine).text
    compared = client.request("GET", f"{second}&_view=compare&_ignore=numbers", **mine).text
    assert "State: failed → finished, 200 OK\n" in compared
    assert "-> no\n" in compared
    assert "It is" not in [line for line in compared.splitlines() if line.startswith(("-", "+"))]
    shared = client.request("POST", second, b"_action=share&_scope=output", **mine)["Location"]
    assert "Order 14 is deleted.\n" in client.request("GET", f"/show/clean{shared}").text
    assert client.request("GET", second).status == 404, "it is its owner's"


def test_a_refusal_can_look_like_that(client: OverHTTP) -> None:
    assert 'href="refused"' in client.request("GET", "/show/", accept="text/html").text
    started = client.request("GET", "/show/refused")
    answer = started
    if started.status == 303:  # it took longer than a client waits for such an answer
        mine = {"cookie": started["Set-Cookie"].partition(";")[0]}
        at = "/show/refused" + started["Location"]
        client.request("GET", at, **mine)
        answer = client.request("GET", f"{at}&_view=result", **mine)
    assert answer.status == 422
    assert '<a href="./">Back</a>' in answer.text


TIME = r"\d\d:\d\d:\d\d"


@pytest.mark.parametrize(("path", "answer"), [("/longrunning/", "That was it.\n"), ("/webpy/", "None")])
def test_the_example_of_2008_shows_what_the_page_printed_then_what_the_function_does(
    client: OverHTTP, path: str, answer: str
) -> None:
    at = start(client, path, "GET")
    with client.stream("GET", at) as (status, _, chunks):
        assert status == 200
        first = ""
        while first.count("\n") < 2:  # before the first number, a second later
            first += next(chunks).decode()
        assert re.match(rf"Started at {TIME}\nhit f5 to refresh!\n", first)
        second = client.request("GET", at).text  # another client, while the first is still there
        text = first + b"".join(chunks).decode()
    assert re.fullmatch(
        rf"Started at {TIME}\nhit f5 to refresh!\n" + "".join(rf"{n}: {TIME}\n" for n in range(1, 11)), text
    )
    assert second == text
    assert result(client, at).text == answer


def test_webpy_has_a_list_of_all_jobs_as_it_had_in_2008(client: OverHTTP) -> None:
    at = followed(client, "/webpy/")
    assert "hit f5 to refresh!" in log(client, at)
    assert "GET /webpy/" in client.request("GET", "/webpy/jobs", accept="text/html").text


def test_plain_wsgi_marks_its_reports_by_path(client: OverHTTP) -> None:
    at = followed(client, "/wsgi/reports/2026")
    assert result(client, at).text == "month,revenue\r\n" + "".join(f"{m},{m * 1000}\r\n" for m in range(1, 13))
    status = client.request("GET", at, accept="application/json").json
    assert status["progress"] == {"done": 12, "total": 12, "percent": 100.0, "message": "months"}
    assert status["title"] == "GET /wsgi/reports/2026"
    assert client.request("GET", "/wsgi/nothing").status == 404


@pytest.mark.parametrize("framework", ["flask", "pyramid"])
def test_a_stranger_is_asked_to_sign_in_and_starts_nothing(client: OverHTTP, framework: str) -> None:
    reply = client.request("GET", f"/{framework}/report")
    assert reply.status == 401
    assert reply["WWW-Authenticate"] == 'Basic realm="demo"'
    assert "Location" not in reply
    assert client.request("GET", f"/{framework}/report", authorization="Basic ZGVtbzp3cm9uZw==").status == 401


def test_flask_runs_the_view_of_who_signed_in(client: OverHTTP) -> None:
    at = followed(client, "/flask/report?rows=3", **SIGNED_IN)
    assert log(client, at) == "".join(f"Row {n} of 3, for demo\n" for n in (1, 2, 3))
    reply = result(client, at)
    assert reply["Content-Type"] == "text/html; charset=utf-8"
    assert "<h1>3 rows for demo</h1>" in reply.text


def test_pyramid_runs_the_view_of_who_has_the_permission(client: OverHTTP) -> None:
    at = followed(client, "/pyramid/report?rows=3", **SIGNED_IN)
    assert log(client, at) == "".join(f"Row {n} of 3, for demo\n" for n in (1, 2, 3))
    assert result(client, at).json == {"rows": 3, "user": "demo"}


FORM = {"content_type": "application/x-www-form-urlencoded"}


def test_bottle_runs_the_view_with_the_form_that_was_sent(client: OverHTTP) -> None:
    body = b"to=Zo%C3%AB, Ada"
    assert client.request("POST", "/bottle/letters", body, **FORM).status == 401
    at = followed(client, "/bottle/letters", "POST", body, **FORM, **SIGNED_IN)
    assert log(client, at) == "Dear Zoë, …\nDear Ada, …\n"
    assert result(client, at).json == {"written": ["Zoë", "Ada"]}


def test_django_checks_sign_in_and_csrf_token_first(client: OverHTTP) -> None:
    page = client.request("GET", "/django/")
    cookie = page["Set-Cookie"].partition(";")[0]
    token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', page.text)[1]  # type: ignore[index]
    fields = f"csrfmiddlewaretoken={token}".encode()
    # Not signed in: sent to the page where one can.
    reply = client.request("POST", "/django/report", fields, cookie=cookie, **FORM)
    assert (reply.status, reply["Location"]) == (302, "/django/?next=/django/report")
    reply = client.request("POST", "/django/login", fields + b"&name=ada", cookie=cookie, **FORM)
    session = next(value for name, value in reply.headers if name == "Set-Cookie" and "sessionid" in value)
    cookie += "; " + session.strip().partition(";")[0]
    assert "Hello ada" in client.request("GET", "/django/", cookie=cookie).text
    # Signed in, but sent by another site.
    assert client.request("POST", "/django/report", b"rows=2", cookie=cookie, **FORM).status == 403
    at = followed(client, "/django/report", "POST", fields + b"&rows=2", cookie=cookie, **FORM)
    assert log(client, at) == "Row 1 of 2, for ada\nRow 2 of 2, for ada\n"
    assert result(client, at).json == {"rows": 2, "user": "ada"}


def test_the_ini_file_marks_the_paths_that_it_names(client: OverHTTP) -> None:
    text = (ROOT / "demo/background.ini").read_text("utf-8")
    assert client.request("GET", "/ini/other").text == text
    at = followed(client, "/ini/slow")
    assert log(client, at) == text
    assert result(client, at).text == text


# The real job.


def uploaded(client: OverHTTP, name: str, content: bytes, **fields: str) -> str:
    """Send *content* as a browser's form does; return the target of its job, which has ended."""
    body, kind = form(name, content, **fields)
    return followed(client, "/upload/statistics", "POST", body, content_type=kind)


def refused(client: OverHTTP, target: str, method: str = "GET", body: bytes = b"", **headers: str) -> Reply:
    """Return the refusal: the answer itself, or where this machine was too busy for that, the result of a job."""
    reply = client.request(method, target, body, **headers)
    if reply.status != 303:
        return reply
    at = target + reply["Location"]
    assert client.request("GET", at).status == 200
    return result(client, at)


def form(name: str, content: bytes, **fields: str) -> tuple[bytes, str]:
    """Return *content* as a browser's form sends it, and the type of that."""
    boundary = "----a-boundary-that-is-nowhere-else"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{text}\r\n'
        for key, text in fields.items()
    ]
    parts.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = "".join(parts).encode() + content + f"\r\n--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"


def statistics(client: OverHTTP, name: str, content: bytes, **fields: str) -> Any:
    reply = result(client, uploaded(client, name, content, **fields))
    assert reply.status == 200, reply.text
    return reply.json


def columns(found: Any, *keys: str) -> list[Any]:
    return [tuple(column[key] for key in keys) if len(keys) > 1 else column[keys[0]] for column in found["columns"]]


def test_the_statistics_of_a_table_of_megabytes_are_right(client: OverHTTP) -> None:
    chance = random.Random(1)
    rows = [
        [
            n,
            chance.choice(["a, quoted", 'say "hi"', "two\nlines", "plain ünïcode"]),
            chance.choice(["", chance.random()]),
        ]
        for n in range(70_000)
    ]
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["number", "text", "maybe"])
    writer.writerows(rows)
    content = file.getvalue().encode()
    assert len(content) > 2_000_000
    at = uploaded(client, "big.csv", content)
    found = result(client, at).json
    maybe = [row[2] for row in rows if row[2] != ""]
    assert (found["kind"], found["rows"], found["ragged_rows"]) == ("table", 70_000, 0)
    assert (found["bytes"], found["encoding"], found["delimiter"]) == (len(content), "utf-8", ",")
    number, text, other = found["columns"]
    assert number == {
        "name": "number",
        "type": "number",
        "count": 70_000,
        "empty": 0,
        "distinct": 70_000,
        "distinct_is_exact": True,
        "min": 0,
        "max": 69_999,
        "mean": 34_999.5,
    }
    assert (text["type"], text["distinct"], text["mean"]) == ("text", 4, None)
    assert (text["min"], text["max"]) == ("a, quoted", "two\nlines")
    assert (other["count"], other["empty"], other["distinct"]) == (len(maybe), 70_000 - len(maybe), len(set(maybe)))
    assert (other["min"], other["max"]) == (min(maybe), max(maybe))
    assert other["mean"] == pytest.approx(sum(maybe) / len(maybe))

    output = log(client, at)
    assert output.startswith(f"Reading big.csv: {len(content):,} bytes\n")
    assert "100%|" in output  # tqdm's bar
    assert "70,000 rows, 0 of them of another width" in output
    progress = client.request("GET", at, accept="application/json").json["progress"]
    assert (progress["percent"], progress["message"]) == (100, "kilobytes")


def test_the_result_is_a_file_to_download_again_and_again(client: OverHTTP) -> None:
    at = uploaded(client, "Zoë's table.csv", b"a,b\n1,2\n")
    for _ in range(2):
        reply = result(client, at)
        assert reply["Content-Type"] == "application/json; charset=utf-8" or reply["Content-Type"] == "application/json"
        assert reply["Content-Disposition"] == (
            "attachment; filename=\"Zo_s_table-statistics.json\"; filename*=UTF-8''Zo%C3%AB%27s%20table-statistics.json"
        )
        assert json.loads(reply.body)["file"] == "Zoë's table.csv"


def test_the_result_can_be_had_as_csv(client: OverHTTP) -> None:
    reply = result(client, uploaded(client, "t.csv", b'"a, b",c\n1,x\n3,\n', format="csv"))
    assert reply["Content-Type"] == "text/csv; charset=utf-8"
    assert 'filename="t-statistics.csv"' in reply["Content-Disposition"]
    first, second = csv.DictReader(io.StringIO(reply.text))
    assert (first["name"], first["type"], first["mean"]) == ("a, b", "number", "2.0")
    assert (second["name"], second["count"], second["empty"], second["mean"]) == ("c", "1", "1", "")
    text = result(client, uploaded(client, "t.txt", b"one two one\n", format="csv")).text
    assert dict(csv.reader(io.StringIO(text)))["word one"] == "2"


def test_a_generated_sample_needs_no_file(client: OverHTTP) -> None:
    at = followed(client, "/upload/statistics", "POST", b"sample=1000", **FORM)
    found = result(client, at).json
    assert found["rows"] == 1000
    assert columns(found, "name", "type") == [
        ("order", "number"),
        ("day", "text"),
        ("place", "text"),
        ("quantity", "number"),
        ("price", "number"),
    ]


def test_the_sample_can_be_downloaded_and_is_always_the_same(client: OverHTTP) -> None:
    reply = client.request("GET", "/upload/sample.csv")
    assert reply["Content-Disposition"] == 'attachment; filename="sample.csv"'
    assert len(reply.body) > 4_000_000
    header, first, *rest = reply.text.splitlines()
    assert (header, first) == ("order,day,place,quantity,price", "1,2008-03-14,Berlin,13,22.70")
    assert len(rest) == 119_999


def test_a_text_has_lines_words_and_frequent_words(client: OverHTTP) -> None:
    text = "The cat's hat.\n\nthe CAT, der Mönch – the end"
    found = statistics(client, "notes.txt", text.encode())
    assert (found["kind"], found["lines"], found["empty_lines"]) == ("text", 3, 1)
    assert (found["words"], found["distinct_words"], found["characters"]) == (9, 7, len(text))
    assert found["longest_line"] == len("the CAT, der Mönch – the end")
    assert found["most_frequent_words"][0] == {"word": "the", "count": 3}


def test_a_large_text_is_read_whole(client: OverHTTP) -> None:
    found = statistics(client, "large.txt", b"some words of a line\r\n" * 30_000)
    assert (found["lines"], found["words"], found["longest_line"]) == (30_000, 150_000, 20)


@dataclass
class Odd:
    """An odd file, and what must be found in it."""

    content: bytes
    check: Callable[[Any], bool]
    name: str = "odd.csv"
    fields: tuple[tuple[str, str], ...] = ()


ODD = {
    "empty file": Odd(b"", lambda f: f["notes"] == ["The file is empty."] and f["rows"] == 0 and f["columns"] == []),
    "only a BOM": Odd(b"\xef\xbb\xbf", lambda f: f["rows"] == 0),
    "only a header": Odd(
        b"a,b\n", lambda f: f["rows"] == 0 and columns(f, "name", "type") == [("a", "empty"), ("b", "empty")]
    ),
    "only line breaks": Odd(b"\n\r\n\n", lambda f: f["rows"] == 0 and f["columns"] == []),
    "no line break at its end": Odd(b"a,b\n1,2", lambda f: f["rows"] == 1 and columns(f, "max") == [1, 2]),
    "no header": Odd(b"1,x\n2,y\n", lambda f: f["rows"] == 2 and columns(f, "name") == ["column 1", "column 2"]),
    "a header by order": Odd(
        b"2008,2009\n1,2\n", lambda f: columns(f, "name") == ["2008", "2009"], fields=(("header", "yes"),)
    ),
    "no header by order": Odd(b"a,b\nc,d\n", lambda f: f["rows"] == 2, fields=(("header", "no"),)),
    "an unnamed column": Odd(b"a,\n1,2\n", lambda f: f["rows"] == 2 and columns(f, "name") == ["column 1", "column 2"]),
    "a name twice": Odd(b"a,a\n1,2\n", lambda f: f["rows"] == 2),
    "quotes": Odd(
        b'"a ""x""","b\nc"\n"1,5","2"\n', lambda f: columns(f, "name", "max") == [('a "x"', "1,5"), ("b\nc", 2)]
    ),
    "BOM": Odd(b"\xef\xbb\xbfa,b\n1,2\n", lambda f: columns(f, "name") == ["a", "b"] and f["encoding"] == "utf-8"),
    "UTF-16": Odd(
        "ä,b\n1,2\n".encode("utf-16"), lambda f: columns(f, "name") == ["ä", "b"] and f["encoding"] == "utf-16"
    ),
    "not UTF-8": Odd(
        "stadt,n\nKöln,1\n".encode("latin-1"),
        lambda f: columns(f, "min") == ["Köln", 1] and f["encoding"] == "cp1252" and "no UTF-8" in f["notes"][0],
    ),
    "not UTF-8 only at its end": Odd(
        b"a,b\n" + b"1,2\n" * 30_000 + b"\xe9,3\n", lambda f: columns(f, "max") == ["é", 3]
    ),
    "a character across two reads": Odd(
        b"a" * 65535 + "é,b\n1,2\n".encode(), lambda f: f["encoding"] == "utf-8" and columns(f, "max") == [1, 2]
    ),
    "ragged rows": Odd(
        b"a,b\n1\n1,2,3\n\n4,5\n",
        lambda f: (
            (f["rows"], f["ragged_rows"]) == (3, 2)
            and columns(f, "name", "count", "empty") == [("a", 3, 0), ("b", 2, 1), ("column 3", 1, 2)]
            and any("Line 2 is the first that has 1 cells instead of 2" in note for note in f["notes"])
        ),
    ),
    "semicolons": Odd(
        b"a;b\n1,5;2\n2,5;3\n", lambda f: f["delimiter"] == ";" and columns(f, "type") == ["text", "number"]
    ),
    "tabs, unnamed kind": Odd(b"a\tb\n1\t2\n", lambda f: (f["kind"], f["delimiter"]) == ("table", "\t"), "data"),
    "old Mac line breaks": Odd(b"a,b\r1,2\r3,4\r", lambda f: f["rows"] == 2),
    "one column": Odd(b"n\n1\n2\n", lambda f: f["rows"] == 2 and columns(f, "mean") == [1.5]),
    "numbers of all kinds": Odd(
        b"n,m\n+1,.5\n-2e3,1.\n 7 ,1E-1\n", lambda f: columns(f, "min", "max") == [(-2000, 7), (0.1, 1)]
    ),
    "what only looks like numbers": Odd(
        b"a,b,c,d\nnan,1_000,1e999,\xd9\xa3\n", lambda f: columns(f, "type") == ["text"] * 4
    ),
    "a number, then a word": Odd(b"n\n1\nx\n2\n", lambda f: columns(f, "type", "min", "mean") == [("text", "1", None)]),
    "prose with the name of a table": Odd(b"Dear all,\nhow are you\n", lambda f: f["kind"] == "table"),
    "a table as text": Odd(
        b"a,b\n1,2\n", lambda f: f["kind"] == "text" and f["words"] == 4, fields=(("kind", "text"),)
    ),
    "markup in names": Odd(b"<b>,b\n<script>,2\n", lambda f: columns(f, "name") == ["<b>", "b"], "<i>.csv"),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_odd_input_is_understood(client: OverHTTP, odd: Odd) -> None:
    found = statistics(client, odd.name, odd.content, **dict(odd.fields))
    assert odd.check(found), found


REFUSED = {
    "binary": ("data.csv", b"a,b\n\0\1\2", "This is a binary file: it has zero bytes. Expected text or CSV."),
    "controls": ("data", bytes(range(1, 30)) * 9, "This is a binary file: it is full of control characters."),
    "Excel": (
        "book.xlsx",
        b"PK\x03\x04\x14\0",
        "This file is a ZIP archive (Excel workbooks are: save the sheet as CSV).",
    ),
    "gzip": ("table.csv.gz", b"\x1f\x8b\x08\0", "This file is compressed with gzip (unpack it first)."),
    "an open quote": ("open.csv", b'a,b\n1,2\n"3,4\n5,6\n', "The row that begins in line 3 cannot be read"),
    "a stray quote": ("stray.csv", b'a,b\n"x"y,2\n', "The row that begins in line 2 cannot be read"),
    "too many columns": ("wide.csv", b"," * 1000 + b"\n", "The table has 1001 columns; 1000 is the most"),
}


@pytest.mark.parametrize(("name", "content", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused_with_a_reason(
    client: OverHTTP, name: str, content: bytes, message: str
) -> None:
    body, kind = form(name, content)
    reply = refused(client, "/upload/statistics", "POST", body, content_type=kind)
    assert reply.status == 422
    assert reply.text.startswith(message)
    assert "Traceback" not in reply.text


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "application/x-www-form-urlencoded"),
        (b"sample=many", "application/x-www-form-urlencoded"),
        (b"{}", "application/json"),
        (b"no parts", "multipart/form-data; boundary=x"),
        (b"no boundary", "multipart/form-data"),
        (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename=""\r\n\r\n\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
    ],
)
def test_a_form_without_a_file_is_refused_with_a_reason(client: OverHTTP, body: bytes, kind: str) -> None:
    reply = refused(client, "/upload/statistics", "POST", body, content_type=kind)
    assert reply.status == 422
    assert re.match("No file was sent|The form cannot be read", reply.text)


def test_the_form_is_a_page_and_other_pages_are_not_there(client: OverHTTP) -> None:
    page = client.request("GET", "/upload/")
    assert page["Content-Type"].startswith("text/html")
    assert 'enctype="multipart/form-data"' in page.text
    assert client.request("GET", "/upload/other").status == 404


# The process.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_cleanly_while_a_job_runs(number: signal.Signals) -> None:
    with demo(pause=0.02) as server:
        start(server.client, "/longrunning/", "GET")
        status, errors = server.stop(number)
    assert status == 0
    assert "Traceback" not in errors


def test_a_taken_port_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # waitress leaves the socket that it could not bind to the garbage collector
        command = [*PYTHON, "-W", "ignore::ResourceWarning", "-m", "demo", str(port)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"demo: cannot serve on port {port}: {os.strerror(errno.EADDRINUSE)}\n"


@pytest.mark.parametrize("port", ["http", "70000"])
def test_what_is_no_port_is_refused(port: str) -> None:
    done = subprocess.run([*PYTHON, "-m", "demo", port], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_without_the_frameworks_their_demos_are_listed_with_what_they_need_and_nothing_is_started() -> None:
    code = """
import sys, threading
absent = ["bottle", "django", "flask", "paste", "paste.deploy", "pyramid", "tqdm", "web"]
sys.modules.update(dict.fromkeys(absent))
streams = sys.stdout, sys.stderr
from demo.index import Mounts
mounts = Mounts()
assert threading.enumerate() == [threading.main_thread()]
assert (sys.stdout, sys.stderr) == streams
environ = {"PATH_INFO": "/", "wsgi.url_scheme": "http", "HTTP_HOST": "host"}
page = b"".join(mounts(environ, lambda *head: None)).decode()
environ["PATH_INFO"] = "/flask/report"
print(page.count("needs <code>pip install bgmiddleware[demo]</code>"), page.count("curl "))
mounts(environ, lambda status, headers: print(status))
mounts.close()
"""
    done = subprocess.run([*PYTHON, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stderr, done.stdout) == ("", "7 3\n404 Not Found\n")
