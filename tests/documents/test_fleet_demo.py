"""``python -m demo.fleet`` as its user has it: a web process, a Redis, two workers, and a Ctrl-C."""

import os
import re
import signal
import subprocess
import sys

import pytest

from tests.conftest import needs
from tests.kit.clients import OverHTTP, start
from tests.kit.documents import ROOT
from tests.kit.redis_server import needs_server

pytestmark = pytest.mark.everything


@pytest.fixture(autouse=True)
def _promised() -> None:
    needs("rq")
    needs_server()


def test_a_job_is_lost_with_its_process_and_ctrl_c_ends_everything() -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "demo.fleet", "0"],
        cwd=ROOT,
        env={**os.environ, "DEMO_PAUSE": "0.01"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(4)]
        pids = [int(pid) for pid in re.findall(r"process (\d+)", "".join(said))]
        assert len(pids) == 3, said
        client = OverHTTP(int(re.findall(r"http://127\.0\.0\.1:(\d+)/", said[3])[0]))
        assert "/count/60" in client.request("GET", "/").text
        target = start(client, "/count/60", "GET")
        assert client.request("GET", f"{target}&_view=result&_wait=30").text == "Counted to 60.\n"
        output = client.request("GET", target, accept="text/plain").text
        assert int(re.findall(r"of the worker (\d+)\.", output)[0]) in pids
        assert output.endswith("Step 60 is done.\n")
        assert "Counted" not in output
        assert client.request("GET", "/jobs").status == 200
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    said = [line for line in errors.splitlines() if "Task queue depth" not in line]  # waitress, on a busy machine
    assert (process.returncode, said) == (0, ["Stopping: jobs get time to end …"])
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_killed_job_says_so() -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "demo.fleet", "0"],
        cwd=ROOT,
        env={**os.environ, "DEMO_PAUSE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(4)]
        client = OverHTTP(int(re.findall(r"http://127\.0\.0\.1:(\d+)/", said[3])[0]))
        target = start(client, "/count/60", "GET")
        with client.stream("GET", target, accept="text/plain") as (_, _, chunks):
            first = next(chunks).decode()
            while "\n" not in first:
                first += next(chunks).decode()
            os.kill(int(re.findall(r"process (\d+) of", first)[0]), signal.SIGKILL)
            rest = b"".join(chunks).decode()
        status = client.request("GET", target, accept="application/json").json
        assert (status["state"], status["reason"]) == ("lost", "its process was killed by SIGKILL")
        assert client.request("GET", target, accept="text/plain").text == first + rest
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)


def test_without_what_it_needs_it_says_what_that_is() -> None:
    code = "import sys; sys.modules['rq'] = None; import demo.fleet; sys.exit(demo.fleet.main(['0']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "pip install 'bgmiddleware[rq]'" in done.stderr
    assert "Traceback" not in done.stderr
