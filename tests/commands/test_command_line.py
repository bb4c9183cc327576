"""``python -m bgmiddleware``: as a real process, where it serves; what it refuses, it refuses here."""

import contextlib
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from bgmiddleware.__main__ import main
from tests.kit.documents import ROOT

APPS = """
import os, signal, sys, threading, time

kept = []


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/x/ends":
        while not os.path.exists("may end"):
            time.sleep(0.01)
        os.write(2, b"the job has ended\\n")
    elif path == "/x/prints":
        print("begun")
        while not os.path.exists("may end"):
            time.sleep(0.01)
        print("ended")
    elif path == "/x/stays":
        try:
            while True:
                time.sleep(0.01)
                print("still here")
        finally:
            os.write(2, b"the job was interrupted\\n")
    elif path == "/hears":
        for _ in range(3):
            signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)
            for thread in threading.enumerate():
                if thread.name == "bgmiddleware-stop":
                    thread.join()
        os.write(2, b"heard three times\\n")
    elif path == "/opens-many":
        kept.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(1100))
    start_response("200 OK", [("Content-Type", "text/plain")])
    if path == "/who":
        names = "REMOTE_ADDR", "HTTP_HOST", "wsgi.url_scheme", "HTTP_X_FORWARDED_HOST"
        return [" ".join(environ.get(name, "-") for name in names).encode()]
    return [b"done\\n"]


class Site:
    app = staticmethod(app)


text = "no application"
"""

OWN = """
from apps import app as inner
from bgmiddleware import BackgroundMiddleware, marks

app = BackgroundMiddleware(inner, when=marks.path("/x/*"))


class Flask:
    wsgi_app = app

    def __call__(self, environ, start_response):
        return self.wsgi_app(environ, start_response)


flask = Flask()
"""


class Served:
    """A server process and its address."""

    def __init__(
        self, directory: Path, *arguments: str, app: str = "apps:app", background: str | None = "/x/*"
    ) -> None:
        marked = () if background is None else ("--background", background)
        self.process = begin(directory, *marked, "--port", "0", *arguments, app=app)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.fullmatch(r"Serving on (http://(?:127\.0\.0\.1|0\.0\.0\.0):\d+)/ \(Ctrl-C stops\)\n", line)
        assert found, (line, self.process.communicate())
        self.address = found[1]

    def get(self, target: str, **headers: str) -> tuple[str, str]:
        with urlopen(Request(self.address + target, headers=headers)) as response:
            return response.geturl(), response.read().decode()

    def wait_for(self, words: str) -> None:
        """Read what it says until a line begins with *words*; waitress may have its own to say before."""
        assert self.process.stderr is not None
        while not (line := self.process.stderr.readline()).startswith(words):
            assert line, "it ended without a word"

    def end(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=120)
        return self.process.returncode, errors


def begin(directory: Path, *arguments: str, app: str = "apps:app") -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "bgmiddleware", "serve", app, *arguments],
        cwd=directory,
        env={"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "apps.py").write_text(APPS)
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


@pytest.fixture
def serve(directory: Path) -> Iterator[Callable[..., Served]]:
    begun: list[Served] = []

    def serve(*arguments: str, **options: Any) -> Served:
        begun.append(Served(directory, *arguments, **options))
        return begun[-1]

    yield serve
    for served in begun:
        served.process.kill()
        served.process.communicate()


def test_it_serves_the_app_and_its_slow_paths_in_the_background(serve: Callable[..., Served]) -> None:
    served = serve()
    assert served.get("/fast") == (f"{served.address}/fast", "done\n")
    url, log = served.get("/x/quick")
    assert url.startswith(f"{served.address}/x/quick?_t=")
    assert log == ""


OF_A_PROXY = {
    "Host": "inner",
    "X-Forwarded-For": "10.1.2.3",
    "X-Forwarded-Host": "shop.example",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Port": "443",
}


@pytest.mark.parametrize(
    ("arguments", "saw"),
    [
        ((), "127.0.0.1 inner http shop.example"),
        (("--trusted-proxy", "127.0.0.1"), "10.1.2.3 shop.example https shop.example"),
        (("--trusted-proxy", "*"), "10.1.2.3 shop.example https shop.example"),
        (("--trusted-proxy", "10.0.0.1"), "127.0.0.1 inner http -"),
        (
            ("--trusted-proxy", "127.0.0.1", "--trusted-proxy-headers", "x-forwarded-proto"),
            "127.0.0.1 inner https -",
        ),
    ],
)
def test_a_proxy_is_believed_where_it_is_trusted(
    serve: Callable[..., Served], arguments: tuple[str, ...], saw: str
) -> None:
    assert serve(*arguments).get("/who", **OF_A_PROXY)[1] == saw


def test_who_comes_from_elsewhere_may_be_no_proxy(serve: Callable[..., Served]) -> None:
    saw = serve("--host", "0.0.0.0").get("/who", **OF_A_PROXY)[1]
    assert saw == "127.0.0.1 inner http -"


def test_descriptors_of_any_number_are_served(serve: Callable[..., Served]) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1200:
        pytest.skip("needs more descriptors")
    served = serve()
    assert served.get("/opens-many")[1] == "done\n"
    with socket.create_connection(("127.0.0.1", int(served.address.rpartition(":")[2]))):  # has the last small one
        assert served.get("/fast")[1] == "done\n", "select() refuses such a number, and the server would have ended"


def test_a_request_that_prefers_it_goes_to_the_background(serve: Callable[..., Served]) -> None:
    assert '"state": ' in serve().get("/fast", Prefer="respond-async")[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_without_a_traceback(number: signal.Signals, serve: Callable[..., Served]) -> None:
    status, errors = serve().end(number)
    assert status == 0
    assert errors == "Stopping: jobs get time to end …\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_running_job_gets_time_to_end(number: signal.Signals, serve: Callable[..., Served], directory: Path) -> None:
    served = serve()
    served.get("/x/ends", Accept="application/json")
    served.process.send_signal(number)
    served.wait_for("Stopping")
    (directory / "may end").touch()
    _, errors = served.process.communicate(timeout=120)
    assert served.process.returncode == 0
    assert errors == "the job has ended\n"


def test_a_job_that_does_not_end_in_time_is_interrupted_and_lost(serve: Callable[..., Served]) -> None:
    served = serve("--drain", "0.2")
    served.get("/x/stays", Accept="application/json")
    status, errors = served.end(signal.SIGTERM)
    assert status == 0
    assert "Traceback" not in errors
    assert "the job was interrupted" in errors


def test_who_follows_a_job_sees_its_end_and_the_server_stops_without_a_word(
    serve: Callable[..., Served], directory: Path
) -> None:
    served = serve()
    with urlopen(f"{served.address}/x/prints") as follower:
        assert follower.readline() == b"begun\n"
        served.process.send_signal(signal.SIGTERM)
        served.wait_for("Stopping")
        (directory / "may end").touch()
        assert follower.read() == b"ended\n"
    _, errors = served.process.communicate(timeout=120)
    assert (served.process.returncode, errors) == (0, "")


def test_a_second_signal_does_not_wait_for_jobs(serve: Callable[..., Served]) -> None:
    served = serve("--drain", "600")
    served.get("/x/stays", Accept="application/json")
    served.process.send_signal(signal.SIGINT)
    served.wait_for("Stopping")
    status, errors = served.end(signal.SIGINT)
    assert status == 0
    assert "Traceback" not in errors


def test_a_signal_raises_nothing_in_the_main_thread_which_may_hold_a_lock_of_the_server(
    serve: Callable[..., Served],
) -> None:
    served = serve()
    with contextlib.suppress(OSError):  # the server ends meanwhile
        served.get("/hears")
    _, errors = served.process.communicate(timeout=120)
    assert served.process.returncode == 0
    assert "heard three times\n" in errors, "an exception after a lock is taken, and before it is given back: a hang"


@pytest.fixture
def refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[str, str]]]:
    """Run ``serve …``, which must refuse; return what it said."""
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def refused(*arguments: str) -> tuple[str, str]:
        try:
            status: object = main(["serve", *arguments])
        except SystemExit as end:  # so argparse refuses
            status = end.code
        assert status == 2
        return capsys.readouterr()

    yield refused
    for name in ("apps", "own"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("app", "said"),
    [
        ("apps", "app = 'apps': expected MODULE:APP"),
        ("apps:", "app = 'apps:': expected MODULE:APP"),
        (":app", "app = ':app': expected MODULE:APP"),
        (".apps:app", "app = '.apps:app': expected MODULE:APP"),
        ("nosuch:app", "app = 'nosuch:app': No module named 'nosuch'"),
        ("apps:nosuch", "app = 'apps:nosuch': module 'apps' has no attribute 'nosuch'"),
        ("apps:text", "app = 'apps:text': expected the name of a WSGI application"),
    ],
)
def test_a_bad_name_of_an_app_is_one_clear_line(refused: Callable[..., tuple[str, str]], app: str, said: str) -> None:
    assert refused(app) == ("", f"bgmiddleware: {said}\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--background", "x"], "bgmiddleware: path = 'x': expected a glob that begins with '/' or '*'"),
        (["--ttl", "0"], "bgmiddleware: ttl = 0.0: expected a number above 0"),
        (["--drain", "-1"], "bgmiddleware: drain = -1.0: expected a number from 0"),
        (["--workers", "0"], "argument --workers: expected a number from 1, not '0'"),
        (["--threads", "0"], "argument --threads: expected a number from 1, not '0'"),
        (["--trusted-proxy-count", "0"], "argument --trusted-proxy-count: expected a number from 1, not '0'"),
        (["--port", "99999"], "argument --port: expected 0 to 65535, not '99999'"),
        (["--port", "http"], "argument --port: expected 0 to 65535, not 'http'"),
    ],
)
def test_a_bad_option_is_refused_by_name(
    refused: Callable[..., tuple[str, str]], arguments: list[str], said: str
) -> None:
    _, errors = refused("apps:app", *arguments)
    assert errors.splitlines()[-1].endswith(said)
    assert "Traceback" not in errors


@pytest.mark.parametrize("app", ["own:app", "own:flask"])
@pytest.mark.parametrize(
    "option", [("background", "/y/*"), ("registry", "memory:"), ("ttl", "60"), ("workers", "8"), ("drain", "1")]
)
def test_an_option_that_an_app_with_its_own_middleware_would_ignore_is_refused(
    refused: Callable[..., tuple[str, str]], option: tuple[str, str], app: str
) -> None:
    name, value = option
    _, errors = refused(app, f"--{name}", value)
    assert errors.startswith(f"bgmiddleware: --{name}: {app} has a BackgroundMiddleware of its own. ")
    assert "Traceback" not in errors


def test_an_app_with_its_own_middleware_is_served_with_that(serve: Callable[..., Served]) -> None:
    served = serve(app="own:app", background=None)
    assert served.get("/x/quick")[0].startswith(f"{served.address}/x/quick?_t=")


@pytest.mark.parametrize("place", ["another", "missing/jobs"])
def test_a_registry_that_cannot_be_used_is_said_at_the_start(
    refused: Callable[..., tuple[str, str]], place: str, directory: Path
) -> None:
    (directory / "another").mkdir()
    (directory / "another" / "theirs.txt").touch()
    output, errors = refused("apps:app", "--port", "0", "--registry", f"spool:{place}")
    assert output == ""
    assert f"bgmiddleware: directory = '{directory / place}': " in errors


def test_a_registry_that_is_away_is_said_and_the_site_is_served(serve: Callable[..., Served]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    served = serve("--registry", f"redis://127.0.0.1:{port}")
    served.wait_for(f"The registry does not answer: redis://127.0.0.1:{port}/0: ")
    assert served.get("/fast")[1] == "done\n"


def test_without_a_path_it_says_what_starts_jobs(serve: Callable[..., Served]) -> None:
    served = serve(background=None)
    served.wait_for("No --background: only requests with the header 'Prefer: respond-async' and views with a decorator")


def test_a_taken_port_is_status_1_and_one_line(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = begin(directory, "--background", "/x/*", "--port", str(port))
        output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (1, "")
    assert re.fullmatch(rf"bgmiddleware: cannot serve on 127\.0\.0\.1:{port}: .*in use\n", errors)


def test_a_host_that_is_none_is_status_1_and_one_line(directory: Path) -> None:
    process = begin(directory, "--background", "/x/*", "--host", "nosuch.invalid", "--port", "0")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.startswith("bgmiddleware: cannot serve on nosuch.invalid:0: ")
    assert "Traceback" not in errors
