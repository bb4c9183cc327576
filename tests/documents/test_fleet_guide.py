"""docs/how-to/fleet.rst: each of its configurations is set up and used as it says, with its own commands."""

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
from tests.executors.engine_worker import SECONDS
from tests.kit.documents import PAGES, ROOT, Block, blocks
from tests.kit.redis_server import RedisServer, redis_server, redis_server_of_module  # noqa: F401  # fixtures

pytestmark = pytest.mark.everything

needs("docutils")

GUIDE = PAGES["fleet.rst"]
REDIS = "redis://localhost:6379/0"
READY = {"serve": "Serving on http://127.0.0.1:", "work": r"Listening on|@\S+ ready\."}


@contextlib.contextmanager
def running(command: str, directory: Path) -> Iterator[str]:
    """Run a command of the guide until it is ready; yield what it said until then."""
    python, *arguments = command.split()
    assert python == "python"
    kind = arguments[2]
    own = {"serve": ["--port", "0"], "work": ["--loglevel", "INFO"] if "--concurrency" in arguments else []}[kind]
    process = subprocess.Popen(
        [sys.executable, "-u", *arguments, *own],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = ""
    try:
        while not re.search(READY[kind], said):
            line = process.stdout.readline()
            assert line, said
            said += line
        yield said
    finally:
        process.terminate()
        process.communicate(timeout=SECONDS)


def in_section(section: str, language: str) -> list[Block]:
    return [block for block in blocks(GUIDE, language) if block.section == section]


@pytest.mark.parametrize("section", ["One thread", "Processes", "Workers of RQ", "Workers of Celery"])
def test_a_configuration_works_as_the_guide_says(
    section: str,
    tmp_path: Path,
    redis_server: RedisServer,  # noqa: F811
) -> None:
    curl = shutil.which("curl")
    if curl is None:
        assert not PROMISED, "CI promises curl"
        pytest.skip("needs curl")
    if "Celery" in section:
        needs("celery")
    if "RQ" in section:
        needs("rq")
    (shop,) = in_section("From one thread to a fleet", "python")
    (web,) = in_section(section, "python")
    (tmp_path / "shop.py").write_text(shop.text)
    (tmp_path / "web.py").write_text(web.text.replace(REDIS, redis_server.url))
    *commands, asked = [block.text.removeprefix("$ ") for block in in_section(section, "console")]
    with contextlib.ExitStack() as stack:
        for command in commands:
            said = stack.enter_context(running(command, tmp_path))
        (address,) = re.findall(r"http://127\.0\.0\.1:\d+", said)
        command, _, output = asked.partition("\n")
        words = command.replace("http://127.0.0.1:8080", address).split()
        assert words.pop(0) == "curl"
        done = subprocess.run([curl, *words], capture_output=True, text=True, timeout=SECONDS, check=True)
        assert done.stdout == output + "\n"
        result = subprocess.run(
            [curl, "-sSL", "-H", "Prefer: wait=30", words[-1]],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )
        assert result.stdout == "a good quarter\n"


def test_all_configurations_print_the_same() -> None:
    asked = {block.text for block in blocks(GUIDE, "console") if block.text.startswith("$ curl")}
    assert len(asked) == 1
