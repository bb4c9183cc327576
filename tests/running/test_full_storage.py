"""Output finds no room where it is stored: the job ends soon all the same, and says what is missing."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from bgmiddleware import BackgroundMiddleware, marks
from bgmiddleware._running import keeper
from bgmiddleware.registries.spool import SpoolRegistry
from tests.kit.clients import InProcess, ended, start
from tests.kit.disks import mounted
from tests.kit.readers import PLAIN, print_bytes

SIZE = 8_000_000


def flooding(body: bytes) -> object:
    def app(environ, start_response):
        for _ in range(SIZE // 100_000):
            print_bytes(b"x" * 99_999 + b"\n")
        start_response("200 OK", PLAIN)
        return [body] if body else []

    return app


def test_a_job_whose_output_fills_the_disk_ends_and_says_how_much_of_it_is_missing(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=3m"), SpoolRegistry(tmp_path / "disk" / "jobs") as registry:
        site = BackgroundMiddleware(flooding(b""), when=marks.always, registry=registry)
        client = InProcess(site)
        target = start(client, "/")
        job = ended(site, target)
        assert job.state == "finished"
        missing = SIZE - job.output_end
        assert missing > SIZE // 2
        assert job.reason == f"the last {missing} bytes of its output could not be stored"
        assert client.request("GET", f"{target}&_view=status").json["reason"] == job.reason
        site.close()


def test_a_job_whose_response_finds_no_room_fails_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_PATIENCE_WHERE_FULL", 0.1)
    with mounted(tmp_path / "disk", "size=3m"), SpoolRegistry(tmp_path / "disk" / "jobs") as registry:
        site = BackgroundMiddleware(flooding(b"x" * 400_000), when=marks.always, registry=registry)
        job = ended(site, start(InProcess(site), "/"))
        assert job.state == "failed"
        assert "No space left on device" in job.reason
        assert "of its output could not be stored" in job.reason
        site.close()


@pytest.mark.parametrize("limit", [0, 300_000, 1_000_000])
def test_output_in_memory_that_finds_no_room_for_files_loses_its_middle_and_says_which_bytes(limit: int) -> None:
    script = """
        import resource, sys
        from bgmiddleware import Channel, Job, JobState, MemoryRegistry
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
        registry = MemoryRegistry()
        key = registry.add(Job("0" * 32, "title")).key
        registry.claim(key, "runner")
        data = b"".join(b"%09d\\n" % number for number in range(400_000))
        for at in range(0, len(data), 50_000):
            registry.append(key, Channel.OUTPUT, at, data[at : at + 50_000], runner="runner")
        registry.finish(key, "runner", JobState.FINISHED)
        begin, end = registry.get(key).output_dropped
        kept = b"".join(piece.data for piece in registry.follow(key))
        assert kept == data[:begin] + data[end:], "other bytes"
        assert begin >= 100_000, begin
        assert len(data) - end >= 100_000, end
        print(registry.get(key).output_end)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(limit)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (said.stdout, said.stderr) == ("4000000\n", "")
