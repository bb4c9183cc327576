"""docs/tutorial/first-job.rst, done as it says: each of its apps is served, each command says what the page shows."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROMISED, needs
from tests.kit.documents import PAGES, ROOT, blocks

pytestmark = pytest.mark.everything

needs("docutils")

LESSON = blocks(PAGES["first-job.rst"])
TOKEN = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@contextlib.contextmanager
def served(directory: Path, text: str) -> Iterator[str]:
    """Serve the app as the lesson says, but on a free port; yield its address."""
    (directory / "shop.py").write_text(text)
    (command,) = [block.text for block in LESSON if "serve shop:app" in block.text]
    python, *arguments = command.split()
    assert python == "python"
    process = subprocess.Popen(
        [sys.executable, "-u", *arguments, "--port", "0"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = ""
        while not (found := re.search(r"Serving on (http://127\.0\.0\.1:\d+)/", said)):
            line = process.stdout.readline()
            assert line, said
            said += line
        yield found[1]
    finally:
        process.terminate()
        process.communicate(timeout=120)


def commands(session: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a session, and what it prints."""
    for part in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
        command, _, printed = part.partition("\n")
        yield command, printed.rstrip("\n")


@pytest.mark.parametrize("section", ["A slow view", "In the background", "Progress", "Cancel"])
def test_each_step_of_the_lesson_prints_what_it_shows(section: str, tmp_path: Path) -> None:
    needs("flask")
    if shutil.which("curl") is None:
        assert not PROMISED, "CI=true promises curl"
        pytest.skip("needs curl")
    titles = [block.section for block in LESSON]
    app = [block.text for block in LESSON[: titles.index(section) + 2] if block.language == "python"][-1]
    sessions = [block.text for block in LESSON if block.section == section and block.language == "console"]
    typed = [pair for session in sessions for pair in commands(session)]
    with served(tmp_path, app) as address:
        # One shell for all, since some set a variable. A line of its own comes behind what each of them prints.
        script = "\n".join(f"{command}\necho '<end>'" for command, _ in typed)
        script = script.replace("http://127.0.0.1:8080", address)
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.stderr == ""
    printed = [text.strip("\n") for text in done.stdout.split("<end>\n")[:-1]]
    assert [TOKEN.sub("TOKEN", text) for text in printed] == [TOKEN.sub("TOKEN", shown) for _, shown in typed]
