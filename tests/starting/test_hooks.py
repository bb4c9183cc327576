"""What follows the end of a job: hooks are called, and webhooks delivered, also if their process is killed."""

import base64
import contextlib
import http.client
import http.server
import json
import logging
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import (
    BackgroundMiddleware,
    ConfigurationError,
    Job,
    JobState,
    MemoryRegistry,
    QueueFull,
    ThreadExecutor,
    hooks,
    marks,
)
from bgmiddleware._ground import posting
from bgmiddleware._serving.recent import Recent
from bgmiddleware._starting import delivering
from bgmiddleware.registries import open_registry
from bgmiddleware.testing.clock import Clock
from tests.conftest import needs
from tests.kit.clients import InProcess, ended, start
from tests.kit.looking import eventually
from tests.kit.redis_server import RedisServer, redis_server, redis_server_of_module  # noqa: F401  # fixtures

SECRET = f"whsec_{base64.b64encode(b'x' * 24).decode()}"
WAIT = 60.0  # never reached by a test that passes


class Receiver:
    """A server that takes messages; its answers are *statuses*, then 204."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.received: list[tuple[dict[str, str], bytes]] = []
        self._came = threading.Condition()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = receiver.statuses.pop(0) if receiver.statuses else 204
                self.send_response(status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()
                with receiver._came:
                    receiver.received.append(({**self.headers, "path": self.path}, body))
                    receiver._came.notify_all()

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook/of-secret-path?k=v"

    def messages(self, count: int) -> list[tuple[dict[str, str], bytes]]:
        """Wait until so many came."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.received) >= count, WAIT), self.received
            return list(self.received)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    threading.Thread(target=receiver.server.serve_forever, name="receiver").start()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


def due_at(outbox: Any) -> float:
    """Return when the only message is due."""
    ((at, _),) = outbox._texts.values()
    return float(at)


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    if environ["PATH_INFO"] == "/raise":
        raise LookupError("of the app")
    print("printed")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]


def test_a_hook_is_called_once_with_each_job_that_has_ended() -> None:
    told: list[tuple[str, JobState, str]] = []
    with BackgroundMiddleware(
        app, when=marks.always, on_end=lambda job: told.append((job.title, job.state, job.reason))
    ) as site:
        ended(site, start(InProcess(site), "/x"))
        ended(site, start(InProcess(site), "/raise"))
    assert told == [
        ("POST /x", JobState.FINISHED, ""),
        ("POST /raise", JobState.FAILED, "LookupError: of the app"),
    ]


def test_what_a_hook_raises_is_logged_and_the_next_one_is_called(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Job] = []

    def broken(job: Job) -> None:
        print("not of the job")
        raise SystemExit("abcdef")

    with BackgroundMiddleware(app, when=marks.always, on_end=[broken, told.append], redact=["abcdef"]) as site:
        job = ended(site, start(InProcess(site), "/x"))
    assert [other.key for other in told] == [job.key]
    assert job.output_end == len("printed\n")
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "a hook raised" in record.getMessage()
    assert "SystemExit: [redacted]" in record.getMessage()


@pytest.mark.parametrize("wrong", [None, 1, "python:shop:note", [None], {}])
def test_what_is_no_hook_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^on_end = "):
        BackgroundMiddleware(app, on_end=wrong)


def test_a_webhook_is_signed_as_the_standard_says(receiver: Receiver) -> None:
    standard = needs("standardwebhooks")
    hook = hooks.webhook(receiver.url, SECRET, allow_private=True)
    with BackgroundMiddleware(app, when=marks.always, on_end=hook) as site:
        job = ended(site, start(InProcess(site), "/raise"))
        ((headers, body),) = receiver.messages(1)
    message = standard.Webhook(SECRET).verify(body, headers)
    assert headers["path"] == "/hook/of-secret-path?k=v"
    assert headers["webhook-id"] == job.key
    assert (message["type"], message["data"]["reason"]) == ("job.failed", "LookupError: of the app")
    with pytest.raises(standard.WebhookVerificationError):
        standard.Webhook(SECRET).verify(body + b" ", headers)


def test_a_webhook_is_told_of_the_states_that_it_asks_for(receiver: Receiver) -> None:
    hook = hooks.webhook(receiver.url, SECRET, events={"failed"}, allow_private=True)
    with BackgroundMiddleware(app, when=marks.always, on_end=[hook]) as site:
        ended(site, start(InProcess(site), "/x"))
        ended(site, start(InProcess(site), "/raise"))
        receiver.messages(1)
    assert [json.loads(body)["type"] for _, body in receiver.received] == ["job.failed"]
    assert site.registry.outbox(hook.name).size() == 0


@pytest.mark.everything
def test_what_was_not_taken_is_sent_again_for_a_day_and_then_given_up(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    receiver.statuses = [500] * 100
    hook = hooks.webhook(receiver.url, SECRET, allow_private=True)
    registry = MemoryRegistry(clock=clock, ttl=1e9)
    options: dict[str, Any] = {"dashboard": "/_jobs", "authorize": lambda environ: True}
    with BackgroundMiddleware(app, when=marks.always, registry=registry, on_end=hook, **options) as site:
        begun = clock.now
        client = InProcess(site)

        def shown() -> dict[str, Any]:
            object.__setattr__(site._site, "lists", Recent())
            found: dict[str, Any] = client.request("GET", "/_jobs").json["webhooks"][0]
            return found

        nothing = {"waiting": 0, "failing": 0, "oldest": None, "trouble": "", "given_up": 0}
        assert shown() == {"receiver": hook.shown, **nothing}
        ended(site, start(InProcess(site), "/x"))
        outbox = site.registry.outbox(hook.name)
        for tries, delay in enumerate(delivering.DELAYS, 1):
            receiver.messages(tries)
            eventually(lambda: abs(due_at(outbox) - clock.now - delay) < 0.01)  # noqa: B023  # called at once
            assert shown() == {
                "receiver": hook.shown,
                **nothing,
                "waiting": 1,
                "failing": 1,
                "oldest": pytest.approx(clock.now - begun),
                "trouble": "it answered 500",
            }
            clock.advance(delay)
        receiver.messages(len(delivering.DELAYS) + 1)
        eventually(lambda: outbox.size() == 0)
        assert shown() == {"receiver": hook.shown, **nothing, "given_up": 1}
        page = client.request("GET", "/_jobs", accept="text/html").text
        assert "secret-path" not in page
        assert f"<td>{hook.shown}</td><td>0</td><td>0</td><td>–</td><td>1</td>" in page
        clock.advance(86_401.0)
        assert shown() == {"receiver": hook.shown, **nothing}
        assert 44 * 3600 < clock.now - begun < 49 * 3600
    assert "was not told" in caplog.text
    assert "secret-path" not in caplog.text


def test_what_is_taken_after_a_failure_fails_no_more_on_the_dashboard(receiver: Receiver) -> None:
    clock = Clock()
    receiver.statuses = [503]
    hook = hooks.webhook(receiver.url, SECRET, allow_private=True)
    options: dict[str, Any] = {"dashboard": "/_jobs", "authorize": lambda environ: True, "on_end": hook}
    with BackgroundMiddleware(app, when=marks.always, registry=MemoryRegistry(clock=clock), **options) as site:
        client = InProcess(site)
        ended(site, start(client, "/x"))
        failing, outbox = (site.registry.outbox(f"{hook.name}{kind}") for kind in ("failing", ""))
        eventually(lambda: failing.size() == 1)
        page = client.request("GET", "/_jobs", accept="text/html").text
        assert "it answered 503</small></td><td>1</td><td>1</td>" in page
        assert page.index("it answered 503") < page.index('<h2 id="charts')
        assert "Webhooks" not in client.request("GET", "/_jobs?state=failed", accept="text/html").text
        clock.advance(delivering.DELAYS[0])
        receiver.messages(2)
        eventually(lambda: outbox.size() == failing.size() == 0)


def test_a_webhook_is_told_of_a_job_that_was_kept_before_its_message_was_written(receiver: Receiver) -> None:
    registry = MemoryRegistry()
    hook = hooks.webhook(receiver.url, SECRET, allow_private=True)
    with BackgroundMiddleware(app, when=marks.always, registry=registry) as site:  # as if its process was killed then
        key = ended(site, start(InProcess(site), "/x")).key
        kept = registry.keep(key)
        assert kept is not None
        assert kept.expires_at is None
        registry.outbox(hook.name).put(key, registry.clock(), json.dumps({"since": registry.clock(), "again": 5.0}))
        with BackgroundMiddleware(app, when=marks.always, registry=registry, on_end=hook) as other:
            ended(other, start(InProcess(other), "/y"))
            bodies = [body.decode() for _, body in receiver.messages(2)]
    assert sum(key in body for body in bodies) == 1


def test_what_a_receiver_says_that_is_no_answer_is_one_short_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    said = b"HTP \x1b[2J\rERROR of somebody else" + b"y" * 60_000 + b"\r\n"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connected, _ = server.accept()
            with connected:
                connected.recv(65536)
                connected.sendall(said)

        thread = threading.Thread(target=answer, name="receiver")
        thread.start()
        hook = hooks.webhook(f"http://127.0.0.1:{server.getsockname()[1]}/", SECRET, allow_private=True)
        with BackgroundMiddleware(app, when=marks.always, on_end=hook) as site:
            ended(site, start(InProcess(site), "/x"))
            eventually(lambda: "was not told" in caplog.text)
        thread.join()
    (told,) = [record.getMessage() for record in caplog.records if "was not told" in record.getMessage()]
    assert told.isprintable()
    assert len(told) < 500


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    receiver.statuses = [302]
    hook = hooks.webhook(receiver.url, SECRET, allow_private=True)
    assert hook.deliver("id", "{}") == 302
    assert len(receiver.messages(1)) == 1


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "10.1.2.3", "169.254.169.254", "0.0.0.0", "localhost", "[::1]", "[::ffff:127.0.0.1]"),
        *("[64:ff9b::10.1.2.3]", "[64:ff9b:1::1]", "[2002:a01:203::]", "[::10.1.2.3]", "[fec0::1]", "[ff02::1]"),
    ],
)
def test_a_private_address_is_not_connected_to(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: connected.append(address))
    with pytest.raises(posting.Refused, match="no public address"):
        hooks.webhook(f"https://{host}/x", SECRET).deliver("id", "{}")
    assert connected == []


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:4700::1", "64:ff9b::93.184.216.34"])
def test_a_public_address_is_one(address: str) -> None:
    assert posting._is_public(address)


def test_the_address_that_was_checked_is_the_one_that_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that changes its address between the check and the connection leads nowhere else."""
    answers = iter(["93.184.216.34", "127.0.0.1"])
    connected: list[Any] = []

    def look_up(host: str, port: int, **options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    def connect(self: socket.socket, address: Any) -> None:
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(ConnectionRefusedError):
        hooks.webhook("https://shop.example/x", SECRET).deliver("id", "{}")
    assert connected == [("93.184.216.34", 443)]


def test_a_name_with_many_addresses_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[Any] = []

    def connect(self: socket.socket, address: Any) -> None:
        connected.append(address)
        time.sleep(0.02)
        raise TimeoutError

    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 443))]
    monkeypatch.setattr(posting, "_WHOLE", 0.1)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: 1000 * found)
    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(TimeoutError):
        hooks.webhook("https://shop.example/x", SECRET).deliver("id", "{}")
    assert 1 <= len(connected) <= 6


@pytest.mark.everything
def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, "_WHOLE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hook = hooks.webhook(f"http://127.0.0.1:{silent.getsockname()[1]}/", SECRET, allow_private=True)
        with pytest.raises(OSError):  # noqa: PT011  # of what kind depends on the system
            hook.deliver("id", "{}")


def test_a_server_that_answers_by_tls_without_an_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time for all of it passes, though each byte comes in time."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setattr(posting, "_WHOLE", 0.3)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    given_up = threading.Event()

    def drip() -> None:
        with contextlib.suppress(OSError), context.wrap_socket(server.accept()[0], server_side=True) as connected:
            while not given_up.wait(0.02):
                connected.send(b"x")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, name="drip")
        thread.start()
        late = threading.Timer(WAIT, given_up.set)
        late.start()
        hook = hooks.webhook(f"https://127.0.0.1:{server.getsockname()[1]}/", SECRET, allow_private=True)
        with pytest.raises((OSError, http.client.HTTPException)):
            hook.deliver("id", "{}")
        assert not given_up.is_set()
        late.cancel()
        given_up.set()
        thread.join()


@pytest.mark.parametrize(
    ("url", "secret", "options"),
    [
        ("http://example.com/secret", SECRET, {}),
        ("https://user:secret@example.com/", SECRET, {}),
        ("https:///secret", SECRET, {}),
        ("https://example.com/#secret", SECRET, {}),
        ("https://example..com/secret", SECRET, {}),
        (f"https://{'x' * 64}.com/secret", SECRET, {}),
        ("https://example.com/", "my secret", {}),
        ("https://example.com/", base64.b64encode(b"secret").decode(), {}),
        ("https://example.com/", SECRET, {"events": {"running"}}),
        ("https://example.com/", SECRET, {"events": "failed"}),
    ],
)
def test_a_bad_webhook_is_refused_and_shows_no_secret(url: str, secret: str, options: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^webhook ") as caught:
        hooks.webhook(url, secret, **options)
    assert "secret@" not in str(caught.value)
    assert "/secret" not in str(caught.value)
    assert secret not in str(caught.value)


def test_requests_that_are_refused_take_no_room_of_messages() -> None:
    class Full(ThreadExecutor):
        def submit(self, run: Any) -> None:
            raise QueueFull(1.0)

    hook = hooks.webhook("https://example.invalid/", SECRET)
    for site in (
        BackgroundMiddleware(app, when=marks.always, on_end=hook, executor=Full()),
        BackgroundMiddleware(app, when=marks.always, on_end=hook, registry=MemoryRegistry(max_jobs=1)),
    ):
        with site:
            outbox = site.registry.outbox(hook.name)
            site.registry.add(Job("0" * 32, "of somebody"))
            assert InProcess(site).request("POST", "/x").status == 503
            assert outbox.size() == 0


def test_two_webhooks_of_one_url_are_refused() -> None:
    """They would have one outbox, and each would take out of it what only the other one is told of."""
    both = [hooks.webhook("https://example.com/secret", SECRET, events={state}) for state in ("failed", "finished")]
    with pytest.raises(ConfigurationError, match=r"^on_end ") as caught:
        BackgroundMiddleware(app, on_end=both)
    assert "/secret" not in str(caught.value)


# A process that is killed between the end of a job and the delivery.

_KILLED = """
import os, signal, sys, threading
from bgmiddleware import BackgroundMiddleware, hooks, marks
from bgmiddleware.registries import open_registry
from bgmiddleware.testing.clients import InProcess, start
from tests.starting.test_hooks import app
location, url, secret = sys.argv[1:]
webhook = hooks.webhook(url, secret, allow_private=True)
site = BackgroundMiddleware(
    app,
    when=marks.always,
    registry=open_registry(location),
    on_end=[lambda job: os.kill(os.getpid(), signal.SIGKILL), webhook],
)
start(InProcess(site), "/x")
threading.Event().wait()
"""


@pytest.fixture(params=["spool", "redis"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "spool":
        return f"spool:{tmp_path / 'jobs'}"
    needs("redis")
    server: RedisServer = request.getfixturevalue("redis_server")
    return server.url


@pytest.mark.everything
def test_a_process_that_is_killed_between_an_end_and_its_delivery_loses_no_webhook(
    location: str, receiver: Receiver
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, location, receiver.url, SECRET], timeout=WAIT, check=False, cwd=os.getcwd()
    )
    assert done.returncode == -signal.SIGKILL
    assert receiver.received == []
    hook = hooks.webhook(receiver.url, SECRET, allow_private=True)
    with (
        open_registry(location) as registry,
        BackgroundMiddleware(app, when=marks.always, registry=registry, on_end=hook) as site,
    ):
        (job,) = registry.jobs()
        assert job.state is JobState.FINISHED
        unknown = "00000000-0000-4000-8000-000000000000"
        assert InProcess(site).request("GET", f"/x?_t={unknown}").status == 404  # a visit is enough
        ((headers, body),) = receiver.messages(1)
    assert headers["webhook-id"] == job.key
    assert json.loads(body)["type"] == "job.finished"
