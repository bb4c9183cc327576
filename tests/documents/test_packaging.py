"""What is installed: the wheel has all of the package and nothing else, and what it promises can be found."""

import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import setuptools

import bgmiddleware
from tests.kit.documents import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGE = ROOT / "bgmiddleware"
# Where the wheel is made without the network: setuptools does it in a directory of its own.
BUILD = """
import sys
from setuptools import build_meta
print(build_meta.build_wheel(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    import setuptools

    if int(setuptools.__version__.partition(".")[0]) < 77:
        pytest.skip("could not import a setuptools of version 77 or newer")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in _tracked():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes((ROOT / path).read_bytes())
    done = subprocess.run([sys.executable, "-c", BUILD, str(target)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = target.glob("*.whl")
    return zipfile.ZipFile(built)


def _tracked() -> list[str]:
    """Return what a clone has, and what is about to be committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_the_wheel_has_all_of_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    ours = {name for name in _tracked() if name.startswith("bgmiddleware/")}
    in_wheel = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert in_wheel == ours
    assert "bgmiddleware/py.typed" in in_wheel
    assert any(name.endswith("/licenses/LICENSE") for name in wheel.namelist())


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
    assert set(extras) == {"celery", "demo", "redis", "rq", "test"}
    assert "bgmiddleware[celery,demo,redis,rq]" in extras["test"]


def test_the_changes_begin_with_this_version() -> None:
    titles = re.findall(r"^(\d+\.\d+\.\d+).*\n-+$", (ROOT / "CHANGES.rst").read_text(), re.MULTILINE)
    assert titles[0] == PROJECT["version"]


def test_the_licence_is_as_declared() -> None:
    assert PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n")


def test_the_package_is_imported_from_this_tree() -> None:
    assert Path(bgmiddleware.__file__).parent == PACKAGE
