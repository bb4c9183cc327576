"""The ini file: loaded by PasteDeploy, and served by the servers that people start with one."""

import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import (
    BackgroundMiddleware,
    ConfigurationError,
    JobState,
    MemoryRegistry,
    ThreadExecutor,
    marks,
    owners,
)
from bgmiddleware.executors.process import ProcessExecutor
from bgmiddleware.paste import SETTINGS, filter_app_factory
from tests.conftest import PROMISED, needs
from tests.kit.clients import ended
from tests.kit.documents import ROOT, SHOP, get
from tests.kit.ports import free_port
from tests.kit.processes import opened_when_up

needs("paste.deploy")

APP = "[app:shop]\nuse = call:shop:make_app\n"
FILTER = "[pipeline:main]\npipeline = background shop\n\n[filter:background]\nuse = egg:bgmiddleware\n"
ENVIRON = {"PATH_INFO": "/", "REQUEST_METHOD": "GET"}

Load = Callable[..., BackgroundMiddleware]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    from paste.deploy import loadapp

    (tmp_path / "shop.py").write_text(SHOP)
    monkeypatch.syspath_prepend(tmp_path)
    with contextlib.ExitStack() as opened:

        def load(*parts: str) -> BackgroundMiddleware:
            (tmp_path / "app.ini").write_text("\n".join(parts))
            app = loadapp("config:app.ini", relative_to=str(tmp_path))
            assert isinstance(app, BackgroundMiddleware)
            return opened.enter_context(app)

        yield load


def is_marked(app: BackgroundMiddleware, path: str = "/", **environ: str) -> bool:
    return bool(app._when({**ENVIRON, "PATH_INFO": path, **environ}))


def test_a_filter_in_a_pipeline_marks_its_paths(load: Load) -> None:
    app = load(FILTER + "paths = /reports/* /export/*.csv", APP)
    assert get(app, "/reports/2026")[0] == "303 See Other"
    assert get(app, "/export/a.csv")[0] == "303 See Other"
    assert get(app, "/export/a.txt")[0] == "200 OK"


def test_a_filter_app_marks_its_paths(load: Load) -> None:
    app = load("[filter-app:main]\nuse = egg:bgmiddleware\nnext = shop\npaths = /reports/*", APP)
    assert get(app, "/reports/2026")[0] == "303 See Other"
    assert get(app, "/articles/2026")[0] == "200 OK"


def test_an_app_can_ask_for_the_filter(load: Load) -> None:
    app = load(
        "[app:main]\nuse = call:shop:make_app\nfilter-with = background",
        "[filter:background]\nuse = egg:bgmiddleware\npaths = /reports/*",
    )
    assert get(app, "/reports/2026")[0] == "303 See Other"


def test_without_settings_all_is_as_by_default(load: Load) -> None:
    app = load(FILTER, APP)
    assert not is_marked(app, "/reports/2026")
    assert is_marked(app, HTTP_PREFER="respond-async")
    for made, default in ((app.registry, MemoryRegistry()), (app.executor, ThreadExecutor())):
        plain = {name: value for name, value in vars(default).items() if isinstance(value, int | float)}
        assert {name: vars(made)[name] for name in plain} == plain


def test_here_is_the_directory_of_the_file(load: Load, tmp_path: Path) -> None:
    app = load(FILTER + "paths = %(here)s/*", APP)
    assert is_marked(app, f"{tmp_path}/report")


def test_keys_of_the_default_section_are_not_refused(load: Load) -> None:
    app = load("[DEFAULT]\ndebug = true\nttl = 5\nowner = somebody\n", FILTER, APP)
    assert app.registry.ttl == 3600


SENT = [
    {"REQUEST_METHOD": method, "PATH_INFO": path}
    for method, path in (("GET", "/a/1"), ("POST", "/a/1"), ("POST", "/b"), ("GET", "/b"))
]


def test_every_setting_is_typed_and_passed_on(load: Load) -> None:
    settings: dict[str, tuple[str, Callable[[Any], Any], Any]] = {
        "promote_after": ("0", lambda app: app._starter.promote_after, 0.0),
        "owner": ("header:X-User", lambda app: app._site.owner({"HTTP_X_USER": "ada"}), "ada"),
        "single_flight": ("yes", lambda app: app._starter.single_flight, True),
        "dashboard": ("/_jobs", lambda app: app._is_dashboard({"PATH_INFO": "/_jobs"}), True),
        "authorize": ("python:bgmiddleware.marks:always", lambda app: app._authorize({}), True),
        "health": ("/_health", lambda app: app._is_health({"PATH_INFO": "/_health"}), True),
        "metrics": ("/_metrics", lambda app: app._is_metrics({"PATH_INFO": "/_metrics"}), True),
        "tracing": ("on", lambda app: app._starter.tracing is not None, True),
        "title": ("python:bgmiddleware.marks:always", lambda app: app._starter.title, marks.always),
        "redact": ("common", lambda app: len(app.redaction.forms) > 10, True),
        "on_end": ("python:bgmiddleware.marks:always", lambda app: app._ends._hooks, (marks.always,)),
        "page": ("python:bgmiddleware.marks:always", lambda app: app._site.page, marks.always),
        "assets": ("external", lambda app: app._site.external_assets, True),
        "registry": ("memory:", lambda app: type(app.registry), MemoryRegistry),
        "executor": ("thread", lambda app: type(app.executor), ThreadExecutor),
        "paths": ("/a/* /b", lambda app: [is_marked(app, path) for path in ("/a/1", "/b", "/c")], [True, True, False]),
        "when": ("query:slow", lambda app: is_marked(app, QUERY_STRING="slow"), True),
        "ttl": ("0.5", lambda app: app.registry.ttl, 0.5),
        "pending_ttl": ("7", lambda app: app.registry.pending_ttl, 7.0),
        "max_jobs": ("12", lambda app: app.registry.max_jobs, 12),
        "max_output": ("64k", lambda app: app.registry.max_output, 64 * 1024),
        "max_result": ("16M", lambda app: app.registry.max_result, 16 * 1024**2),
        "max_kept": ("5", lambda app: app.registry.max_kept, 5),
        "max_kept_bytes": ("2k", lambda app: app.registry.max_kept_bytes, 2048),
        "max_bytes": ("1G", lambda app: app.registry.max_bytes, 1024**3),
        "spool_threshold": ("1000", lambda app: app.registry._spool.threshold, 1000),
        "max_workers": ("3", lambda app: app.executor.max_workers, 3),
        "max_pending": ("0", lambda app: app.executor.max_pending, 0),
        "drain": ("1.5", lambda app: app.executor.drain, 1.5),
        "deadline": ("2.5", lambda app: app._starter.deadline, 2.5),
        "limit_per_owner": ("2", lambda app: app._starter.rules.limit_per_owner, 2),
        "limit_per_mark": (
            "/a/*=1 *.csv=3",
            lambda app: [(name, most) for name, _, most in app._starter.rules.limits],
            [("/a/*", 1), ("*.csv", 3)],
        ),
        "retries_per_mark": (
            "\n  /a/*=3\n  POST  /b=2",
            lambda app: [app._starter._retries(request) for request in SENT],
            [3, 0, 2, 0],
        ),
        "priority_per_mark": (
            "/a/*=low *.csv=high",
            lambda app: [priority.value for _, priority in app._starter.rules.priorities],
            ["low", "high"],
        ),
        "version": ("2026.11", lambda app: app._starter.version, "2026.11"),
        "secret": ("a secret that is long", lambda app: app._starter.secret, b"a secret that is long"),
        "max_body": ("5m", lambda app: app._starter.max_body, 5 * 1024**2),
        "stream_slots": ("0", lambda app: app._site.viewers.take_slot(lambda: False), None),
        "capture_logging": ("off", lambda app: app._starter.capture_logging, False),
        "keep_requests": ("on", lambda app: app._starter.keep_requests, True),
        "answers": ("on", lambda app: app._starter.answers, True),
        "capture_children": ("on", lambda app: app._starter.capture_children, True),
        "tee": ("on", lambda app: app._starter.tee, True),
        "details": ("off", lambda app: app._site.details, False),
        "refuse_cross_site": ("on", lambda app: app._starter.refuse_cross_site, True),
        "foreground": ("no", lambda app: app._stays_in_foreground, False),
        "token_name": ("job", lambda app: get(app, "/a/1")[1]["Location"][:5], "?job="),
    }
    of_other_executors = {"app", "max_jobs_per_child", "max_memory", "grace", "queue"}
    of_other_registries = {"busy_timeout", "prefix", "timeout", "max_waiting"}
    assert set(settings) == set(SETTINGS) - of_other_executors - of_other_registries
    if importlib.util.find_spec("prometheus_client") is None and not PROMISED:
        del settings["metrics"]
    if importlib.util.find_spec("opentelemetry") is None and not PROMISED:
        del settings["tracing"]
    app = load(FILTER + "\n".join(f"{name} = {text}" for name, (text, _, _) in settings.items()), APP)
    for name, (_, look, expected) in settings.items():
        assert look(app) == expected, name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cookie:a secret that is long enough", "bgmiddleware-"),
        ("cookie:a secret that is long enough name=shop", "shop."),
        ("cookie:a secret that is long enough   name=shop-2 ", "shop-2."),
    ],
)
def test_owner_names_its_cookie(text: str, name: str) -> None:
    owner = filter_app_factory(lambda *_: [], None, owner=text)._site.owner
    assert isinstance(owner, owners.CookieOwner)
    who, ((_, cookie),) = owner.issue({})
    assert cookie.startswith(name)
    assert owners.cookie("a secret that is long enough", name=name[:-1])({"HTTP_COOKIE": cookie}) == (
        None if name == "bgmiddleware-" else who
    )


@pytest.mark.parametrize(
    ("text", "environ", "owner"),
    [
        ("remote_user", {"REMOTE_USER": "ada"}, "ada"),
        ("header:X-User", {"HTTP_X_USER": "ada"}, "ada"),
        ("cookie:a secret that is long enough", {"HTTP_COOKIE": "bgmiddleware=forged"}, None),
        ("python:bgmiddleware.owners:remote_user", {}, None),
    ],
)
def test_owner_knows_each_kind_of_owner(text: str, environ: dict[str, str], owner: str | None) -> None:
    app = filter_app_factory(lambda *_: [], None, owner=text)
    assert app._site.owner is not None
    assert app._site.owner(environ) == owner


@pytest.mark.parametrize(
    ("text", "environ", "marked"),
    [
        ("always", {}, True),
        ("prefers_async", {"HTTP_PREFER": "respond-async"}, True),
        ("prefers_async", {}, False),
        ("query:slow", {"QUERY_STRING": "a=1&slow=1"}, True),
        ("query:slow", {"QUERY_STRING": "slower"}, False),
        ("header:X-Slow", {"HTTP_X_SLOW": ""}, True),
        ("header:X-Slow=yes", {"HTTP_X_SLOW": "yes"}, True),
        ("header:X-Slow=yes", {"HTTP_X_SLOW": "no"}, False),
        ("query:slow header:X-Slow", {"HTTP_X_SLOW": "1"}, True),
        ("python:bgmiddleware.marks:always", {}, True),
        ("never", {"HTTP_PREFER": "respond-async"}, False),
        ("navigation", {}, True),
        ("navigation", {"HTTP_SEC_FETCH_DEST": "image"}, False),
        ("path:/r/*", {"PATH_INFO": "/r/1"}, True),
        ("path:/r/*", {"PATH_INFO": "/r/1", "HTTP_SEC_FETCH_DEST": "image"}, False),
        ("path+parts:/r/*", {"PATH_INFO": "/r/1", "HTTP_SEC_FETCH_DEST": "image"}, True),
        ("path+parts:/r/*", {"PATH_INFO": "/s"}, False),
        ("path:/r/* and header:X-Slow", {"PATH_INFO": "/r/1", "HTTP_X_SLOW": "1"}, True),
        ("path:/r/* and header:X-Slow", {"PATH_INFO": "/r/1"}, False),
        ("path:/r/* and header:X-Slow", {"HTTP_X_SLOW": "1"}, False),
        ("path:/r/* and header:X-Slow and query:a query:b", {"QUERY_STRING": "b"}, True),
        ("path:/r/* and header:X-Slow and query:a", {"PATH_INFO": "/r/1", "HTTP_X_SLOW": "1"}, False),
    ],
)
def test_when_knows_each_kind_of_mark(text: str, environ: dict[str, str], marked: bool) -> None:
    assert is_marked(filter_app_factory(lambda *_: [], None, when=text), **environ) is marked


def test_an_unknown_key_is_refused_by_name_when_loading(load: Load) -> None:
    with pytest.raises(ConfigurationError, match=r"unknown setting 'tll': did you mean ttl"):
        load(FILTER + "tll = 5", APP)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(
            (name, "many")
            for name in SETTINGS
            if name not in ("when", "token_name", "paths", "registry", "executor", "version", "app", "prefix")
        ),
        ("paths", "reports/*"),
        ("when", "sometimes"),
        ("when", "query:"),
        ("when", "always:1"),
        ("when", "never:1"),
        ("when", "path:"),
        ("when", "path:reports"),
        ("when", "and always"),
        ("when", "always and"),
        ("when", "always and and always"),
        ("when", "python:nosuchmodule:mark"),
        ("when", "python:bgmiddleware.marks:nosuchmark"),
        ("when", "python:bgmiddleware.marks:__all__"),
        ("owner", "cookie:"),
        ("owner", "python:nosuchmodule:user"),
        ("page", "python:bgmiddleware.marks:__all__"),
        ("page", "python:bgmiddleware.marks:nosuchpage"),
        ("page", "/srv/page.html"),
        ("assets", "outside"),
        ("promote_after", "-1"),
        ("authorize", "always"),
        ("registry", "mongodb://localhost"),
        ("registry", "spool:"),
        ("deadline", "0"),
        ("deadline", "soon"),
        ("limit_per_owner", "0"),
        ("limit_per_mark", "/reindex"),
        ("limit_per_mark", "/reindex=x"),
        ("limit_per_mark", "reindex=1"),
        ("limit_per_mark", "/reindex=0"),
        ("limit_per_mark", "/reindex=1 /reindex=2"),
        ("priority_per_mark", "/reindex=low /reindex=high"),
        ("retries_per_mark", "POST /reindex=1 POST  /reindex=2"),
        ("priority_per_mark", "/reindex"),
        ("priority_per_mark", "/reindex=urgent"),
        ("priority_per_mark", "reindex=low"),
        ("secret", "short"),
        ("executor", "fibre"),
        ("app", "shop:app"),
        ("grace", "1.0"),
        ("max_memory", "1G"),
        ("max_jobs_per_child", "10"),
        ("ttl", "0"),
        ("ttl", "-1"),
        ("ttl", "nan"),
        ("ttl", ""),
        ("max_jobs", "1.5"),
        ("max_jobs", "0"),
        ("max_output", "12T"),
        ("max_output", "k"),
        ("max_workers", "0"),
        ("max_pending", "-1"),
        ("max_body", "-1"),
        ("stream_slots", "-1"),
        ("capture_logging", "2"),
        ("token_name", "a b"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_key(name: str, text: str, load: Load) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name} = "):
        load(FILTER + f"{name} = {text}", APP)


PROCESS = "registry = spool:%(here)s/jobs\nexecutor = process\npaths = /reports/*\n"


def test_with_a_process_executor_children_load_the_same_file(load: Load, tmp_path: Path) -> None:
    app = load(FILTER + PROCESS + "max_workers = 1\nmax_jobs_per_child = 2\nmax_memory = 1G\ngrace = 0.5", APP)
    executor = app.executor
    assert isinstance(executor, ProcessExecutor)
    assert executor.app == str(tmp_path / "app.ini")
    settings = executor.max_workers, executor.max_jobs_per_child, executor.max_memory, executor.grace
    assert settings == (1, 2, 1024**3, 0.5)
    status, headers, _ = get(app, "/reports/2026")
    assert status == "303 See Other"
    job = ended(app, headers["Location"])
    assert job.state is JobState.FINISHED
    assert not job.receipt["runner"].endswith(f":{os.getpid()}")
    assert get(app, f"/reports/2026{headers['Location']}&_view=log")[2] == "adding up /reports/2026\n"


def test_a_process_executor_loads_what_it_is_told_to(load: Load, tmp_path: Path) -> None:
    app = load(FILTER + PROCESS + "app = %(here)s/app.ini#other", APP, "[pipeline:other]\npipeline = background shop")
    assert app.executor.app == f"{tmp_path / 'app.ini'}#other"
    assert ended(app, get(app, "/reports/2026")[1]["Location"]).state is JobState.FINISHED


def test_a_process_executor_without_a_file_must_be_told_what_to_load(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^app is missing: expected, since executor = process needs it"):
        filter_app_factory(lambda *_: [], None, executor="process", registry=f"spool:{tmp_path}/jobs")


def test_a_process_executor_is_refused_with_a_registry_that_processes_do_not_share(load: Load) -> None:
    with pytest.raises(ConfigurationError, match=r"other processes, which cannot see"):
        load(FILTER + "executor = process", APP)


def test_an_engine_is_chosen_by_one_line(load: Load) -> None:
    needs("rq")
    needs("celery")
    from bgmiddleware.executors.celery import CeleryExecutor
    from bgmiddleware.executors.rq import RQExecutor

    shared = FILTER + "registry = spool:%(here)s/jobs\nqueue = shop\nmax_pending = 3\ngrace = 0.5\n"
    for text, kind in (
        ("rq", RQExecutor),
        ("rq:redis://127.0.0.1:1/2", RQExecutor),
        ("celery:shop:app", CeleryExecutor),
    ):
        executor: Any = load(shared + f"executor = {text}", APP).executor
        assert type(executor) is kind
        assert (executor.grace, executor.max_pending) == (0.5, 3)
        assert executor.queue == "shop"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("celery", "executor = 'celery': expected thread, process, rq, rq:REDIS-URL, celery:MODULE:NAME"),
        ("thread:1", "executor = 'thread:1': expected thread"),
        ("kafka", "executor = 'kafka': expected thread"),
        ("kafka://me:secret@host", "executor = 'kafka': expected thread"),
        ("rq:http://localhost", "url = 'http://localhost': expected a URL that begins with one of redis://"),
        ("thread\nqueue = shop", "queue = 'shop': executor = thread has no such setting"),
        ("rq\nmax_workers = 2", "max_workers = 2: executor = rq has no such setting"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(load: Load, text: str, message: str) -> None:
    needs("rq")
    needs("celery")
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        load(FILTER + f"registry = spool:%(here)s/jobs\nexecutor = {text}", APP)


def test_an_engine_without_its_library_names_the_extra(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bgmiddleware.executors.rq", raising=False)
    monkeypatch.setitem(sys.modules, "rq", None)
    with pytest.raises(ConfigurationError, match=r"executor = rq needs its extra, pip install 'bgmiddleware\[rq\]': "):
        load(FILTER + "registry = spool:%(here)s/jobs\nexecutor = rq", APP)


SERVER = "\n[server:main]\nuse = egg:waitress#main\nhost = 127.0.0.1\nport = {port}\n"


def test_pserve_serves_it(tmp_path: Path) -> None:
    needs("pyramid")
    needs("plaster_pastedeploy")
    (tmp_path / "shop.py").write_text(SHOP)
    # pserve does not tell the port where it is 0, so one is chosen that is free now.
    port = free_port()
    (tmp_path / "app.ini").write_text(FILTER + f"paths = /reports/*\n\n{APP}" + SERVER.format(port=port))
    command = [sys.executable, "-m", "pyramid.scripts.pserve", "app.ini"]
    url = f"http://127.0.0.1:{port}/reports/2026"
    with opened_when_up(command, tmp_path, url, PYTHONPATH=f"{tmp_path}:{ROOT}") as response:
        assert "?_t=" in response.geturl()
        assert response.read() == b"adding up /reports/2026\n"
