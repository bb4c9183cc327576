"""Sites test themselves by the tools of ``bgmiddleware.testing``, as docs/how-to/testing.rst shows."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, Job, JobState, current_job, marks, progress
from bgmiddleware._jobs import key_of
from bgmiddleware.registries.spool import SpoolRegistry
from bgmiddleware.testing import Clock, InlineExecutor, follow, inline, plugin
from bgmiddleware.testing.clients import InProcess, start
from tests.conftest import needs
from tests.kit.documents import PAGES, ROOT, SHOP, STRICT, blocks

webtest = needs("webtest")
werkzeug_test = needs("werkzeug.test")

GUIDE = PAGES["testing.rst"]

FLASK_SITE = """
from flask import Flask

from bgmiddleware import BackgroundMiddleware, backgrounder

app = Flask(__name__)
app.wsgi_app = BackgroundMiddleware(app.wsgi_app)


@app.route("/reports/<int:year>")
@backgrounder
def report(year):
    print("adding up", year)
    return f"{year} was a good year\\n"
"""

DJANGO_SITE = {
    "mysite/__init__.py": "",
    "mysite/settings.py": """
SECRET_KEY = "for a test"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "mysite.urls"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
USE_TZ = True
""",
    "mysite/urls.py": """
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.urls import path


def report(request, year):
    print("adding up", year)
    User.objects.create(username="made by the job")
    return HttpResponse("a good year")


urlpatterns = [path("reports/<int:year>", report)]
""",
    "mysite/wsgi.py": """
import os

from django.core.wsgi import get_wsgi_application

from bgmiddleware import BackgroundMiddleware, marks

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
application = BackgroundMiddleware(get_wsgi_application(), when=marks.path("/reports/*"))
""",
}

THIN_REGISTRY = """
from bgmiddleware import MemoryRegistry


class ShelfRegistry(MemoryRegistry):
    pass
"""


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    path = environ["PATH_INFO"]
    print("now", path)
    if path == "/fails":
        raise ValueError("no such year")
    progress(1, 1, "done")
    code = {"/refuses": "403 Forbidden", "/breaks": "503 Service Unavailable"}.get(path, "200 OK")
    start_response(code, [("Content-Type", "text/plain")])
    return [b"a good year\n"]


@pytest.fixture
def site() -> BackgroundMiddleware:
    return BackgroundMiddleware(app, when=marks.none_of(marks.path("/direct")), executor=InlineExecutor())


CONFTEST = {"conftest": 'pytest_plugins = ["bgmiddleware.testing.plugin"]\n'}


def clients_of(site: BackgroundMiddleware) -> list[Any]:
    return [webtest.TestApp(site), werkzeug_test.Client(site)]


def example(section: str, number: int = 0) -> str:
    found = [block for block in blocks(GUIDE, "python") if block.section == section]
    return found[number].text


def passed(directory: Path, *options: str, **files: str) -> str:
    """Run pytest on files in a process of its own, as their owner would; return what it says."""
    for name, text in files.items():
        (directory / f"{name}.py").write_text(text)
    command = [sys.executable, *STRICT, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *options]
    paths = os.pathsep.join([str(ROOT), str(directory)])
    environ = {**os.environ, "PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, env=environ, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# An executor without a thread.


def test_a_job_has_ended_when_the_client_is_told_of_it(site: BackgroundMiddleware) -> None:
    start(InProcess(site), "/report")
    (job,) = site.registry.jobs()
    assert job.state is JobState.FINISHED
    assert job.output_end == len("now /report\n")


def test_a_job_that_must_wait_for_another_one_is_refused_and_leaves_nothing() -> None:
    site = BackgroundMiddleware(app, when=marks.always, executor=InlineExecutor(), limit_per_mark={"*": 1})
    other = site.registry.add(Job(key_of("other"), "other", groups={"mark *": 1}))
    assert site.registry.claim(other.key, "elsewhere")
    assert InProcess(site).request("POST", "/report").status == 503
    assert [each.title for each in site.registry.jobs()] == ["other"]
    site.registry.finish(other.key, "elsewhere", JobState.FINISHED)
    client = webtest.TestApp(site)
    assert follow(client, client.get("/report")).state == "finished"


def test_after_its_shutdown_it_takes_no_more(site: BackgroundMiddleware) -> None:
    site.shutdown()
    assert InProcess(site).request("POST", "/report").status == 503


def test_a_shared_registry_works_too(tmp_path: Path) -> None:
    with SpoolRegistry(tmp_path / "jobs") as registry:
        site = BackgroundMiddleware(app, when=marks.always, registry=registry, executor=InlineExecutor())
        client = webtest.TestApp(site)
        assert follow(client, client.post("/report")).output == "now /report\n"


def test_a_job_is_the_current_one_of_its_code_and_of_that_only() -> None:
    def view(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        current_job().title = "renamed"
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    site = BackgroundMiddleware(view, when=marks.always, executor=InlineExecutor())
    client = webtest.TestApp(site)
    assert follow(client, client.get("/")).document["title"] == "renamed"
    assert not current_job()


def test_a_site_with_threads_runs_inline_in_a_block_and_no_longer() -> None:
    with BackgroundMiddleware(app, when=marks.always) as site:
        before = site.executor
        with inline(site) as executor:
            assert site.executor is executor
            start(InProcess(site), "/report")
            assert [job.state for job in site.registry.jobs()] == [JobState.FINISHED]
        assert site.executor is before
        client = webtest.TestApp(site)
        job = follow(client, client.get("/report"))
        assert job.document["receipt"]["queue_wait"] >= 0
        assert job.output == "now /report\n"


# Following, by the clients of frameworks.


@pytest.mark.parametrize("which", [0, 1], ids=["webtest", "werkzeug"])
def test_a_job_is_followed_to_its_response(site: BackgroundMiddleware, which: int) -> None:
    client = clients_of(site)[which]
    job = follow(client, client.get("/report?a=1"))
    assert (job.state, job.reason, job.output) == ("finished", "", "now /report\n")
    assert job.response.text == "a good year\n"
    assert job.document["progress"]["percent"] == 100.0


@pytest.mark.parametrize("which", [0, 1], ids=["webtest", "werkzeug"])
def test_a_failed_job_says_why(site: BackgroundMiddleware, which: int) -> None:
    client = clients_of(site)[which]
    job = follow(client, client.post("/fails"))
    assert (job.state, job.reason) == ("failed", "ValueError: no such year")
    assert job.output.startswith("now /fails\nTraceback")
    assert job.output.endswith("ValueError: no such year\n")
    assert job.response.status.startswith("500")
    assert follow(client, client.post("/breaks")).response.status.startswith("503")


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("path", ["/direct", "/refuses"])
def test_a_request_that_was_answered_directly_has_its_own_response(site: BackgroundMiddleware, path: str) -> None:
    client = webtest.TestApp(site)
    response = client.get(path, status="*")
    job = follow(client, response)
    assert (job.state, job.output, job.document) == ("", "", {})
    assert job.response is response


def test_output_of_many_pieces_is_followed_whole() -> None:
    def view(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        print("ü" * 700_000)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    client = webtest.TestApp(BackgroundMiddleware(view, when=marks.always, executor=InlineExecutor()))
    assert follow(client, client.get("/")).output == "ü" * 700_000 + "\n"


def test_a_job_that_does_not_end_in_time_is_an_error(tmp_path: Path) -> None:
    with SpoolRegistry(tmp_path / "jobs") as registry, SpoolRegistry(tmp_path / "jobs") as other:
        site = BackgroundMiddleware(app, when=marks.always, registry=registry, executor=_Idle())
        client = webtest.TestApp(site)
        with pytest.raises(TimeoutError, match=r"the job GET /report did not end within 0\.01 seconds"):
            follow(client, client.get("/report"), timeout=0.01)
        assert len(other.jobs(JobState.PENDING)) == 1


class _Idle(InlineExecutor):
    def submit(self, run: Any) -> None:
        """Leave it for ever."""


def test_a_clock_stands_still_until_it_is_told() -> None:
    clock = Clock(5.0)
    assert (clock(), clock.advance(0.5), clock()) == (5.0, 5.5, 5.5)


# The guide. Each example runs as its owner would run it, in a process of its own.


def test_the_fixture_gives_the_site_its_own_executor_back() -> None:
    fixture = plugin.run_inline.__wrapped__()
    with BackgroundMiddleware(app, when=marks.always) as site:
        before = site.executor
        assert next(fixture)(site) is site.executor is not before
        fixture.close()
        assert site.executor is before


@pytest.mark.everything
def test_the_six_lines_of_the_guide_test_a_flask_view(tmp_path: Path) -> None:
    needs("flask")
    guide = "A view in six lines"
    said = passed(tmp_path, site_of_reports=FLASK_SITE, conftest=example(guide), test_reports=example(guide, 1))
    assert said.startswith(".  ")
    broken = example(guide, 1).replace("adding up", "adding down")
    with pytest.raises(AssertionError, match="adding down"):
        passed(tmp_path, site_of_reports=FLASK_SITE, conftest=example(guide), test_reports=broken)


@pytest.mark.everything
@pytest.mark.parametrize(("section", "number"), [("Other clients", 0), ("Time", 0)])
def test_the_other_examples_of_the_guide_pass(section: str, number: int, tmp_path: Path) -> None:
    assert "1 passed" in passed(tmp_path, shop=SHOP, test_reports=example(section, number))


@pytest.mark.everything
def test_the_guide_tests_a_django_view_within_its_transaction(tmp_path: Path) -> None:
    needs("django")
    (tmp_path / "mysite").mkdir()
    for name, text in DJANGO_SITE.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "test_reports.py").write_text(
        example("Other clients", 1)
        + """
    def test_what_a_job_wrote_is_rolled_back(self):
        from django.contrib.auth.models import User

        self.assertFalse(User.objects.exists())
        client = django_client(application)
        with inline(application):
            follow(client, client.get("/reports/2026"))
        self.assertEqual(User.objects.get().username, "made by the job")

    test_what_a_job_wrote_is_rolled_back_again = test_what_a_job_wrote_is_rolled_back
"""
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": "mysite.settings"}
    command = [sys.executable, *STRICT, "-m", "django", "test"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environ, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Ran 3 tests" in done.stderr


@pytest.mark.everything
def test_a_registry_of_ones_own_tests_itself_in_ten_lines(tmp_path: Path) -> None:
    files = {"shelf_registry": THIN_REGISTRY, "test_shelf": example("Your own registry"), **CONFTEST}
    assert " passed" in passed(tmp_path, **files)
    files["shelf_registry"] += "    def discard(self, key):\n        return False\n"
    with pytest.raises(AssertionError, match="test_a_discarded_job_is_gone_and_unknown"):
        passed(tmp_path, "-k", "discarded", **files)


@pytest.mark.everything
def test_a_registry_of_ones_own_begins_to_test_itself(tmp_path: Path) -> None:
    files = {"shelf_registry": THIN_REGISTRY, "test_shelf": example("Your own registry"), **CONFTEST}
    assert " passed" in passed(tmp_path, "-k", "test_an_ended_job_is", **files)


OWN_THREADS = """
from bgmiddleware import ThreadExecutor


class OwnThreads(ThreadExecutor):
    pass
"""


@pytest.mark.everything
def test_an_executor_of_ones_own_tests_itself(tmp_path: Path) -> None:
    files = {"own_threads": OWN_THREADS, "test_own_threads": example("Your own executor"), **CONFTEST}
    assert " passed" in passed(tmp_path, "-k", "one_after_the_other or output_and_result", **files)
