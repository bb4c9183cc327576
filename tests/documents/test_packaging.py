"""What is installed: the wheel has all of the package and nothing else, and what it promises can be found."""

import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import setuptools

import bgmiddleware
from tests.conftest import needs
from tests.kit.documents import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGE = ROOT / "bgmiddleware"
NAME = "bgmiddleware"
# Where the wheel is made without the network: setuptools does it in a directory of its own.
BUILD = """
import sys
from setuptools import build_meta
target = sys.argv[1]  # the build changes it
build_meta.build_sdist(target)
build_meta.build_wheel(target)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the two distributions."""
    import setuptools

    if int(setuptools.__version__.partition(".")[0]) < 77:
        pytest.skip("could not import a setuptools of version 77 or newer")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in _tracked():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes((ROOT / path).read_bytes())
    done = subprocess.run([sys.executable, "-c", BUILD, str(target)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


def _tracked() -> list[str]:
    """Return what a clone has, and what is about to be committed; or what a source distribution has."""
    if not (ROOT / ".git").exists():
        made = ("PKG-INFO", "setup.cfg")
        listed = (ROOT / "bgmiddleware.egg-info" / "SOURCES.txt").read_text().splitlines()
        return [name for name in listed if name not in made and ".egg-info/" not in name]
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.everything
def test_the_wheel_has_all_of_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    ours = {name for name in _tracked() if name.startswith("bgmiddleware/")}
    in_wheel = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert in_wheel == ours
    assert "bgmiddleware/py.typed" in in_wheel
    assert any(name.endswith("/licenses/LICENSE") for name in wheel.namelist())


@pytest.mark.everything
def test_the_source_distribution_has_all_of_the_clone(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    made = {name for name in names if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
    assert names - made == set(_tracked())


@pytest.mark.everything
def test_an_index_would_take_both_distributions_and_show_the_readme(built: Path) -> None:
    needs("twine")
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, sorted(built.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    assert (done.returncode, done.stdout.count("PASSED")) == (0, 2), done.stdout + done.stderr


@pytest.mark.everything
def test_check_wheel_contents_has_nothing_to_complain_of(built: Path) -> None:
    needs("check_wheel_contents")
    (wheel,) = built.glob("*.whl")
    done = subprocess.run([sys.executable, "-m", "check_wheel_contents", str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.everything
def test_pyroma_misses_nothing_but_a_place_and_an_address_on_the_web(built: Path) -> None:
    """There is none of either yet."""
    needs("pyroma")
    (source,) = built.glob("*.tar.gz")
    done = subprocess.run([sys.executable, "-m", "pyroma", str(source)], capture_output=True, text=True, timeout=300)
    missed = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Your ")]
    assert [re.findall("author-email|'url'", line) for line in missed] == [["author-email"], ["'url'"]], done.stdout


@pytest.mark.everything
def test_the_tests_run_from_the_source_distribution(built: Path, tmp_path: Path) -> None:
    """Some of them, which read all of its files: the whole short run would take as long as in a clone."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    names = ("documents/test_architecture", "documents/test_messages", "starting/test_marks")
    some = [f"tests/{name}.py" for name in names]
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *some]
    environ = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run(command, cwd=unpacked, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stdout


def test_the_readme_needs_no_other_file_to_be_followed_on_an_index_page() -> None:
    text = (ROOT / "README.rst").read_text()
    assert not re.findall(r"<(?!https?://)[^<>`]+>`_", text)
    for name in re.findall(r"``(docs/[a-z/-]+\.rst|[A-Z]+\.rst)``", text):
        assert (ROOT / name).is_file(), name


def test_the_command_has_a_script_and_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    (entry,) = [entry for entry in importlib.metadata.entry_points(group="console_scripts") if entry.name == NAME]
    with pytest.raises(SystemExit) as end:
        entry.load()(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"bgmiddleware {bgmiddleware.__version__}\n"


def test_importing_the_package_warns_of_nothing() -> None:
    for module in ("bgmiddleware", "bgmiddleware.__main__", "bgmiddleware.client", "bgmiddleware.testing"):
        done = subprocess.run([sys.executable, "-W", "error", "-c", f"import {module}"], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("module", "name", "extra", "library"),
    [
        ("registries.redis", "RedisRegistry", "redis", "redis"),
        ("executors.rq", "RQExecutor", "rq", "rq"),
        ("executors.celery", "CeleryExecutor", "celery", "celery"),
    ],
)
def test_a_missing_extra_names_itself(module: str, name: str, extra: str, library: str) -> None:
    code = f"import sys; sys.modules[{library!r}] = None; from bgmiddleware.{module} import {name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: {name} needs the extra {extra}: pip install 'bgmiddleware[{extra}]'"
    )
    assert extra in PROJECT["optional-dependencies"]


def test_every_directory_with_modules_is_found_as_a_package() -> None:
    include = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("*.py")}
    assert set(setuptools.find_packages(str(ROOT), include=include)) == found


def test_an_ini_file_finds_the_filter_by_its_entry_point() -> None:
    (entry,) = [
        entry
        for entry in importlib.metadata.entry_points(group="paste.filter_app_factory")
        if entry.value.startswith("bgmiddleware")
    ]
    assert entry.name == "main"
    assert entry.load() is importlib.import_module("bgmiddleware.paste").filter_app_factory


def test_only_webob_and_waitress_are_installed_with_it() -> None:
    assert [re.split(r"[><=]", requirement)[0] for requirement in PROJECT["dependencies"]] == ["WebOb", "waitress"]


def test_the_tests_have_what_all_other_extras_have() -> None:
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == {"celery", "demo", "docs", "opentelemetry", "prometheus", "redis", "rq", "test"}
    assert "bgmiddleware[celery,demo,docs,opentelemetry,prometheus,redis,rq]" in extras["test"]


def test_the_changes_begin_with_this_version() -> None:
    titles = re.findall(r"^(\d+\.\d+\.\d+).*\n-+$", (ROOT / "CHANGES.rst").read_text(), re.MULTILINE)
    assert titles[0] == bgmiddleware.__version__ == importlib.metadata.version("bgmiddleware")


def test_the_licence_is_as_declared() -> None:
    assert PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n")


def test_the_package_is_imported_from_this_tree() -> None:
    assert Path(bgmiddleware.__file__).parent == PACKAGE
