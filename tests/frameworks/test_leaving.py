"""How a decorated view leaves for the background, whatever lies between it and the middleware."""

import contextlib
import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context, copy_context
from typing import Any
from wsgiref.util import FileWrapper

import pytest

from bgmiddleware import BackgroundMiddleware, JobState, background, backgrounder, current_job, marks
from tests.conftest import needs
from tests.kit.clients import InProcess, ended, environ, served, start

HEADERS = [("Content-Type", "text/plain")]
CALLS: list[str] = []


@pytest.fixture(autouse=True)
def _no_calls_yet() -> None:
    CALLS.clear()


@background
def work(name: str = "work") -> str:
    CALLS.append(f"{name} {bool(current_job())}")
    print("working")
    return "worked"


@backgrounder
def view(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    CALLS.append(f"view {bool(current_job())}")
    start_response("200 OK", HEADERS)
    return [b"viewed"]


def asking(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    print("before")
    text = work()
    start_response("200 OK", HEADERS)
    return [text.encode()]


# What takes the exception on its way. Each is around a view that asks, and gives back something of its own.


def bare_except(app: Any) -> Any:
    def call(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            return app(environ, start_response)  # type: ignore[no-any-return]
        except:  # noqa: E722
            start_response("500 Internal Server Error", HEADERS, sys.exc_info())
            return [b"a page of mine"]

    return call


def another_error(app: Any) -> Any:
    def call(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            return app(environ, start_response)  # type: ignore[no-any-return]
        finally:
            raise KeyError("a clean-up that fails")

    return call


def generator_of_an_error_page(app: Any) -> Any:
    def call(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        try:
            yield from app(environ, start_response)
        except BaseException:
            start_response("500 Internal Server Error", HEADERS, sys.exc_info())
            yield b"a page of mine"

    return call


def suppressed(app: Any) -> Any:
    def call(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with contextlib.suppress(BaseException):
            return app(environ, start_response)  # type: ignore[no-any-return]
        start_response("204 No Content", [])
        return ()

    return call


def called_later(app: Any) -> Any:
    def call(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        yield from app(environ, start_response)

    return call


def called_after_empty_strings(app: Any) -> Any:
    def call(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        begun = start_response
        if not current_job():
            start_response("200 OK", HEADERS)
            yield b""
            begun = lambda *arguments: None  # noqa: E731
        yield from app(environ, begun)

    return call


class CalledByIter:
    """An iterable that calls the app when its iterator is asked for."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        app = self._app

        class Response:
            def __iter__(self) -> Iterator[bytes]:
                return iter(app(environ, start_response))

        return Response()


def in_a_context_of_its_own(app: Any) -> Any:
    return lambda environ, start_response: Context().run(app, environ, start_response)


def in_a_copied_context(app: Any) -> Any:
    return lambda environ, start_response: copy_context().run(app, environ, start_response)


WRAPPERS = [
    bare_except,
    another_error,
    generator_of_an_error_page,
    suppressed,
    called_later,
    called_after_empty_strings,
    CalledByIter,
    in_a_context_of_its_own,
    in_a_copied_context,
]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("app", [view, asking])
def test_a_view_leaves_through_whatever_is_around_it(wrapper: Any, app: Any) -> None:
    with BackgroundMiddleware(wrapper(app)) as site, served(site) as client:
        job = ended(site, start(client, "/", "GET"))
        assert job.state is (JobState.FAILED if (wrapper, app) == (another_error, view) else JobState.FINISHED)
        assert len(site.registry.jobs()) == 1
    knows_its_job = wrapper is not in_a_context_of_its_own or app is asking
    assert [f"{'view' if app is view else 'work'} {knows_its_job}"] == CALLS


@pytest.mark.parametrize("wrapper", [bare_except, called_later, called_after_empty_strings, in_a_copied_context])
def test_what_was_printed_before_is_the_beginning_of_the_output(wrapper: Any) -> None:
    with BackgroundMiddleware(wrapper(asking)) as site, served(site) as client:
        target = start(client, "/", "GET")
        ended(site, target)
        assert client.request("GET", target).text == "before\nworking\n"


def test_a_body_that_the_view_read_before_it_left_lazily_is_there_again() -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        environ["wsgi.input"].read(3)

        @backgrounder
        def rest() -> bytes:
            read: bytes = environ["wsgi.input"].read(3)
            return read

        text = rest()
        start_response("200 OK", HEADERS)
        yield text

    with BackgroundMiddleware(app) as site, served(site) as client:
        target = start(client, "/", body=b"abcdef")
        ended(site, target)
        assert client.request("GET", f"{target}&_view=result").body == b"def"


def test_the_request_is_replayed_as_it_came_and_not_as_an_app_changed_it() -> None:
    seen: list[tuple[str, str, bool]] = []

    def dispatcher(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        seen.append((environ["SCRIPT_NAME"], environ["PATH_INFO"], "app.note" in environ))
        environ["SCRIPT_NAME"], environ["PATH_INFO"] = "/shop", "/report"
        environ["app.note"] = object()
        return view(environ, start_response)

    with BackgroundMiddleware(dispatcher) as site:
        ended(site, start(InProcess(site), "/shop/report", "GET"))
    assert seen == [("", "/shop/report", False)] * 2


class Answer:
    """What an app answers although its view left: it wants to be read to its end, and closed."""

    def __iter__(self) -> Iterator[bytes]:
        yield b"a page"
        CALLS.append("read to its end")

    def close(self) -> None:
        CALLS.append("closed")


@pytest.mark.parametrize("lazily", [False, True])
def test_what_the_app_answered_instead_is_ended_before_the_job_begins(lazily: bool) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        try:
            view(environ, start_response)
        except SystemExit:
            start_response("500 Internal Server Error", HEADERS)
            return Answer()
        return [b""]

    def lazy(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        answer = app(environ, start_response)
        try:
            yield from answer
        finally:
            if isinstance(answer, Answer):
                answer.close()

    with BackgroundMiddleware(lazy if lazily else app) as site:
        ended(site, start(InProcess(site), "/", "GET"))
    assert CALLS == ["read to its end", "closed", "view True"]


def test_what_the_app_answered_instead_may_be_endless_and_may_fail() -> None:
    def endless(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        with contextlib.suppress(SystemExit):
            view(environ, start_response)
        while not current_job():
            yield b"x"
        yield b""

    def failing(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        with contextlib.suppress(SystemExit):
            return view(environ, start_response)
        return iter(lambda: 1 // 0, b"")

    for app in (endless, failing):
        with BackgroundMiddleware(app) as site:
            ended(site, start(InProcess(site), "/", "GET"))
    assert CALLS == ["view True"] * 2


def test_a_view_that_catches_its_leaving_and_asks_again_starts_the_first_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        for name in ("first", "second"):
            with contextlib.suppress(SystemExit):
                work(name)
        start_response("200 OK", HEADERS)
        return [b""]

    with BackgroundMiddleware(app) as site, caplog.at_level(logging.ERROR, "bgmiddleware"):
        ended(site, start(InProcess(site), "/", "GET"))
    assert CALLS == ["first True"]
    assert [record.getMessage().partition(" by ")[0] for record in caplog.records] == [
        "a view asked for the background twice; only the first counts, which was kept from leaving"
    ]
    assert f"{__file__}:" in caplog.text
    assert "in app" in caplog.text


def test_a_view_that_is_called_in_the_midst_of_a_response_runs_there_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", HEADERS)
        yield b"begun, "
        yield work().encode()

    with BackgroundMiddleware(app) as site:
        assert InProcess(site).request("GET", "/").text == "begun, worked"
        assert site.registry.jobs() == []
    assert CALLS == ["work False"]
    assert "called in the midst of a response, and runs in the foreground" in caplog.text
    assert "in app" in caplog.text


@pytest.mark.parametrize("server", ["in-process", "waitress"])
def test_a_response_that_was_begun_but_not_sent_gives_way(server: str) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        start_response("200 OK", HEADERS)
        return view(environ, lambda *arguments: None)

    with (
        BackgroundMiddleware(app) as site,
        served(site) if server == "waitress" else contextlib.nullcontext(InProcess(site)) as client,
    ):
        assert client.request("GET", "/").status == 303


def test_a_response_on_its_way_to_the_client_cannot_give_way_and_nothing_that_ends_a_server_is_raised() -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        start_response("200 OK", HEADERS)(b"sent")
        return view(environ, start_response)

    sent: list[bytes] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        if sent and exc_info:
            raise exc_info[1].with_traceback(exc_info[2])
        if sent:
            raise AssertionError("headers are sent")
        return sent.append

    with BackgroundMiddleware(app) as site, pytest.raises(RuntimeError, match="on its way to the client"):
        site(environ("GET", "/"), start_response)


# What must not change.


def test_a_list_a_tuple_a_file_and_the_start_response_are_those_of_app_and_server() -> None:
    class Sized:
        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[bytes]:
            return iter([b"x"])

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any: ...

    for returned in ([b"x"], (b"x",), Sized(), FileWrapper(io.BytesIO(b"x")), io.BytesIO(b"x")):
        seen: list[Any] = []

        def app(environ: Any, begin: Any, returned: Any = returned, seen: Any = seen) -> Any:
            seen.append(begin)
            return returned

        with BackgroundMiddleware(app) as site:
            call = environ("GET", "/") | {"wsgi.file_wrapper": FileWrapper}
            assert site(call, start_response) is returned
        assert seen == [start_response]


def test_a_response_in_pieces_passes_and_is_closed_once() -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        start_response("200 OK", HEADERS)

        class Pieces:
            def __iter__(self) -> Iterator[bytes]:
                yield from (b"", b"a", b"", b"b")

            def close(self) -> None:
                CALLS.append("closed")

        return Pieces()

    with BackgroundMiddleware(app) as site:
        assert InProcess(site).request("GET", "/").body == b"ab"
        assert CALLS == ["closed"]


@pytest.mark.parametrize("error", [SystemExit(3), SystemExit(), KeyboardInterrupt(), ValueError("odd")])
@pytest.mark.parametrize("lazily", [False, True])
def test_what_an_app_raises_by_itself_comes_as_it_is(error: BaseException, lazily: bool) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        raise error

    with BackgroundMiddleware(called_later(app) if lazily else app) as site:
        with pytest.raises(type(error)) as raised:
            b"".join(site(environ("POST", "/", b"body"), lambda *arguments: None))
        assert raised.value is error


def test_what_ends_the_server_does_so_although_a_view_asked() -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        try:
            return view(environ, start_response)
        finally:
            raise KeyboardInterrupt

    with BackgroundMiddleware(app) as site:
        with pytest.raises(KeyboardInterrupt):
            site(environ("GET", "/"), lambda *arguments: None)
        assert site.registry.jobs() == []


def test_outside_of_a_middleware_nothing_is_raised_that_could_end_a_thread_or_a_process() -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        contexts.append(copy_context())
        with ThreadOf(contexts[0].run, work, "in a thread of the request"):
            pass
        start_response("200 OK", HEADERS)
        return [b"answered"]

    contexts: list[Context] = []
    with BackgroundMiddleware(app) as site:
        assert InProcess(site).request("GET", "/").text == "answered"
        contexts[0].run(work, "after it")
        with ThreadOf(contexts[0].run, work, "in a thread after it"):
            pass
        work("outside")
    assert [
        f"{where} False" for where in ("in a thread of the request", "after it", "in a thread after it", "outside")
    ] == CALLS


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_that_a_view_forks_runs_a_decorated_function_itself() -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        number, ours = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.write(ours, work().encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(ours)
        with open(number, "rb") as pipe:
            body = pipe.read()
        start_response("200 OK", HEADERS)
        return [body]

    with BackgroundMiddleware(app) as site:
        assert InProcess(site).request("GET", "/").text == "worked"
        assert site.registry.jobs() == []


class ThreadOf:
    """A thread that must not die of an exception."""

    def __init__(self, *call: Any) -> None:
        self._thread = threading.Thread(target=self._run, args=call)
        self._ended = False

    def _run(self, function: Callable[..., Any], *arguments: Any) -> None:
        function(*arguments)
        self._ended = True

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        assert self._ended


def test_prints_of_one_request_do_not_reach_the_job_of_another() -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        print("secret of", environ["PATH_INFO"])
        if environ["PATH_INFO"] == "/other":
            start_response("200 OK", HEADERS)
            return [b""]
        if environ["PATH_INFO"] == "/outer":
            InProcess(site).request("GET", "/other")  # a request within a request
        return asking(environ, start_response)

    with BackgroundMiddleware(app) as site:
        client = InProcess(site)
        client.request("GET", "/other")
        print("between")
        for path in ("/one", "/outer"):
            target = start(client, path, "GET")
            ended(site, target)
            assert client.request("GET", target).text == f"secret of {path}\nbefore\nworking\n"


def test_werkzeugs_debugger_calls_later_and_the_view_leaves() -> None:
    needs("werkzeug")
    from werkzeug.debug import DebuggedApplication

    with BackgroundMiddleware(DebuggedApplication(view)) as site, served(site) as client:
        target = start(client, "/", "GET")
        ended(site, target)
        assert client.request("GET", f"{target}&_view=result").text == "viewed"
    assert CALLS == ["view True"]


def test_what_a_view_leaves_by_is_no_error_to_those_who_ask() -> None:
    seen: list[BaseException] = []

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        try:
            return view(environ, start_response)
        except BaseException as error:
            seen.append(error)
            raise

    with BackgroundMiddleware(app) as site:
        ended(site, start(InProcess(site), "/", "GET"))
    (error,) = seen
    assert isinstance(error, SystemExit)
    assert error.code == 0
    assert not isinstance(error, Exception)
    assert "left for the background" in str(error)


def test_a_middleware_that_marks_by_path_watches_the_others_too() -> None:
    with BackgroundMiddleware(bare_except(view), when=marks.path("/never")) as site:
        assert InProcess(site).request("GET", "/").status == 303
