"""Every line of code that README.rst shows is run here."""

import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from bgmiddleware import paste
from tests.conftest import needs
from tests.kit.documents import ROOT, SHOP, blocks, get, run
from tests.kit.ports import free_port
from tests.kit.processes import opened_when_up

README = ROOT / "README.rst"

DJANGO_SETTINGS = """
import django.http, django.urls

SECRET_KEY = "for a test"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "settings"


def report(request, year):
    print("adding up", year)
    return django.http.HttpResponse("a good year\\n")


urlpatterns = [django.urls.path("reports/<int:year>", report)]
"""


def example(section: str, language: str = "python") -> str:
    (block,) = [block for block in blocks(README, language) if block.section == section]
    return block.text


def test_no_code_is_shown_that_is_not_run_here() -> None:
    assert {(block.section, block.language) for block in blocks(README)} == {
        ("bgmiddleware", "python"),
        ("bgmiddleware", ""),
        ("Try it with curl", "console"),
        *((section, "python") for section in ("Plain WSGI", "Flask", "Bottle", "Django", "Pyramid")),
        ("An ini file", "ini"),
        ("An ini file", "python"),
        ("The command line", "console"),
        ("Mark slow requests", "python"),
    }


@pytest.mark.parametrize(
    ("section", "library"),
    [
        ("bgmiddleware", "bgmiddleware"),
        ("Plain WSGI", "bgmiddleware"),
        ("Flask", "flask"),
        ("Bottle", "bottle"),
        ("Django", "django"),
        ("Pyramid", "pyramid"),
    ],
)
def test_each_example_of_mounting_runs_a_report_in_the_background(section: str, library: str, tmp_path: Path) -> None:
    needs(library)
    text = example(section)
    if section == "Django":
        text = 'import os\nos.environ["DJANGO_SETTINGS_MODULE"] = "settings"\n' + text
    (answer,) = run(tmp_path, text, ["/reports/2026"], ("settings.py", DJANGO_SETTINGS))
    assert answer["status"] == "303 See Other"
    assert answer["log"].startswith("adding up")
    assert answer["result"].endswith("a good year\n")
    assert answer["state"] == "finished"


def test_the_decorators_do_what_is_said_of_them(tmp_path: Path) -> None:
    report, count = run(tmp_path, example("Mark slow requests"), ["/report", "/count"])
    assert report["log"].splitlines() == ["▸ Reading rows"] + [f"row {row}" for row in range(100)]
    assert report["result"] == "100 rows\n"
    assert count["log"] == "This is in the job's output too.\n"
    assert count["result"] == '{"counted": 1000}'


@pytest.mark.everything
@pytest.mark.parametrize(
    ("section", "library"),
    [("Plain WSGI", "bgmiddleware"), ("Flask", "flask"), ("Bottle", "bottle"), ("Pyramid", "pyramid")],
)
def test_each_example_is_served_by_the_command_that_is_named(
    section: str, library: str, started: Callable[..., str], tmp_path: Path
) -> None:
    needs(library)
    assert "start it with ``python -m bgmiddleware serve shop:app``" in README.read_text()
    (tmp_path / "shop.py").write_text(example(section))
    address = started(sys.executable, "-m", "bgmiddleware", "serve", "shop:app", "--port", "0")
    with urlopen(f"{address}/reports/2026") as response:
        assert response.geturl().startswith(f"{address}/reports/2026?_t=")
        assert response.read().startswith(b"adding up")


@pytest.mark.everything
def test_the_ini_file_is_served_by_pserve(tmp_path: Path) -> None:
    needs("plaster_pastedeploy")
    port = free_port()
    (tmp_path / "shop.py").write_text(example("An ini file"))
    (tmp_path / "shop.ini").write_text(example("An ini file", "ini").replace(":8080", f":{port}"))
    assert "``PYTHONPATH=. pserve shop.ini``" in README.read_text()
    command = [str(Path(sys.executable).parent / "pserve"), "shop.ini"]
    url = f"http://127.0.0.1:{port}/reports/2026"
    with opened_when_up(command, tmp_path, url, PYTHONPATH=f".:{ROOT}") as response:
        assert "?_t=" in response.geturl()
        assert response.read() == b"adding up /reports/2026\n"


def test_the_ini_file_is_loaded_by_pastedeploy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deploy = needs("paste.deploy")
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "app.ini").write_text(example("An ini file", "ini"))
    monkeypatch.syspath_prepend(tmp_path)
    with deploy.loadapp("config:app.ini", relative_to=str(tmp_path)) as app:
        assert app.registry.ttl == 600
        assert get(app, "/reports/2026")[0] == "303 See Other"
        assert get(app, "/articles/2026")[0] == "200 OK"
    keys = set(re.findall(r"^(\w+) =", example("An ini file", "ini"), re.MULTILINE))
    assert keys - {"use", "pipeline", "listen"} <= set(paste.SETTINGS)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Start a server by its command; return the address that it prints."""
    processes: list[subprocess.Popen[str]] = []

    def start(*command: str, cwd: Path = tmp_path, **environment: str) -> str:
        process = subprocess.Popen(
            command, cwd=cwd, env={"PYTHONPATH": str(ROOT), **environment}, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout is not None
        found = re.search(r"http://[^ ]+:\d+", process.stdout.readline())
        assert found
        return found[0]

    yield start
    for process in processes:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)


def test_the_serve_command_serves(started: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    prompt, python, *command = shlex.split(example("The command line", "console"))
    assert (prompt, python) == ("$", "python")
    address = started(sys.executable, *command, "--port", "0")
    with urlopen(f"{address}/reports/2026") as response:
        assert response.geturl().startswith(f"{address}/reports/2026?_t=")
        assert response.read() == b"adding up /reports/2026\n"
    with urlopen(f"{address}/articles/2026") as response:
        assert response.read() == b"a good year\n"


def test_the_curl_commands_work_on_the_demo(started: Callable[..., str], tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("there is no curl here")
    address = started(sys.executable, "-m", "demo", "0", cwd=ROOT, DEMO_PAUSE="0.01")
    lines = [line.removeprefix("$ ") for line in example_commands()]
    follow, ask, wait = [line.replace("http://127.0.0.1:8080", address) for line in lines]

    assert _output_of(follow).startswith("Month 1 is added up.\n")
    said = _output_of(ask)
    assert " 202 Accepted" in said.splitlines()[0]
    token = re.search(r"_t=([0-9a-f-]{36})", said)
    assert token
    assert _output_of(wait.replace("TOKEN", token[1])).startswith("month,revenue\n")


def example_commands() -> list[str]:
    return [
        line
        for block in blocks(README, "console")
        if block.section == "Try it with curl"
        for line in block.text.splitlines()
    ]


def _output_of(command: str) -> str:
    done = subprocess.run([*shlex.split(command), "-sS"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_two_commands_for_a_fresh_machine_are_those_that_are_checked() -> None:
    demo, test = [block.text for block in blocks(README, "")]
    assert test in [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    assert demo == test.replace("test", "demo").replace("pytest", "demo").replace("pydemo", "demo")
    assert (ROOT / "demo" / "__main__.py").is_file()


def test_the_readme_is_a_first_screen() -> None:
    text = README.read_text()
    first_screen = "\n".join(text.splitlines()[:30])
    for command in blocks(README, ""):
        assert command.text in first_screen


def test_the_figures_are_the_defaults() -> None:
    from bgmiddleware import MemoryRegistry, ThreadExecutor

    registry, executor = MemoryRegistry(), ThreadExecutor()
    text: Any = " ".join(README.read_text().split())
    assert f"{executor.max_workers} at a time, {executor.max_pending} more wait" in text
    assert "for ten seconds" in text
    assert executor.drain == 10
    assert "for an hour" in text
    assert registry.ttl == 3600
    assert f"at most {registry.max_jobs:,} jobs" in text
    assert f"the last {registry.max_output // 2 // 1024**2} MiB" in text
    assert f"at most {registry.max_bytes // 1024**3} GiB" in text
