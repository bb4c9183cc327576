"""The table of docs/explanation/capture.rst: what scripts and libraries do with their streams, wherever jobs run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import needs
from tests.kit.documents import PAGES, ROOT
from tests.kit.idioms import IDIOMS, LIBRARIES, table

LONG = 120.0


def run_all(kind: str, directory: Path) -> Any:
    """Run all idioms as jobs, one after the other, in a process of their own; return their states and outputs."""
    for library in LIBRARIES:
        needs(library)
    path = directory / kind
    command = [sys.executable, "-W", "ignore", "-m", "tests.kit.idioms", kind, str(path)]
    # Its own output goes to a file: some libraries leave programs running, which would hold a pipe open.
    with open(directory / f"{kind}.log", "wb") as log:
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, timeout=LONG, check=True)
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What became of each idiom: by the kind, and by its name."""
    directory = tmp_path_factory.mktemp("idioms")
    return {kind: run_all(kind, directory) for kind in ("threads", "processes")}


pytestmark = [pytest.mark.everything, pytest.mark.xdist_group("idioms")]


@pytest.mark.parametrize("name", IDIOMS)
def test_an_idiom_does_no_harm_and_prints_to_its_job_or_to_the_server(found: Any, name: str) -> None:
    for kind in ("threads", "processes"):
        state, output = found[kind][name]
        assert state == "finished", f"{kind}: {output}"
        assert output.count("caught") >= IDIOMS[name][1] or "caught" not in output, f"{kind}: {output}"
        assert "nowhere" not in output
        assert "silent" not in output


def test_in_processes_all_is_the_jobs(found: Any) -> None:
    assert [name for name in IDIOMS if "caught" not in found["processes"][name][1]] == []


def test_nothing_of_it_is_left_behind(found: Any) -> None:
    for kind in ("threads", "processes"):
        assert found[kind]["afterwards"] == ["finished", "caught\n" * 3]


def test_the_table_of_the_documentation_is_what_was_found(found: Any) -> None:
    """``python -m tests.kit.idioms threads FILE``, and ``processes``, then ``table``, prints it anew."""
    assert table(found) in PAGES["capture.rst"].read_text()
