"""Who follows a job by curl sees nothing but its output: how a job ended that did not finish is the last line."""

import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from bgmiddleware import MemoryRegistry
from tests.conftest import PROMISED
from tests.kit.apps import WAIT
from tests.kit.clients import OverHTTP, ended, start
from tests.kit.readers import BOTH, Opener, Play, answering, opened


@pytest.fixture(params=BOTH)
def opens(request: pytest.FixtureRequest) -> Iterator[Opener]:
    yield from opened(request)


def refuse() -> None:
    raise ValueError("no\nsuch <report>")


ENDS = {
    "cancelled": "[the job was cancelled]",
    "failed": "[the job failed: ValueError: no such <report>]",
    "500": "[the job failed: the app answered 500 Oops]",
    "lost": "[the job was lost: server shut down]",
}


def end(how: str, opens: Opener, play: Play, site: Any, client: Any, target: str) -> None:
    """End a job that runs, as *how* says."""
    if how == "lost":
        opens.lose(site, target)
        play.answers()
    elif how == "failed":
        play._steps.put(refuse)
    elif how == "500":
        play.answers(status="500 Oops")
    else:
        client.request("DELETE", target)
        play._steps.put(lambda: print("never"))
    ended(site, target)


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the validator wants close()
def test_who_follows_is_told_how_it_ended(opens: Opener, how: str) -> None:
    play = Play()
    site, client = opens(play)
    target = start(client, "/report")
    play.prints("line 1\n")
    with client.stream("GET", target) as (status, _, chunks):
        followed = next(chunks)
        end(how, opens, play, site, client, target)
        followed += b"".join(chunks)
    assert status == 200
    assert followed.startswith(b"line 1\n")
    assert followed.decode().endswith(f"\n{ENDS[how]}\n")
    again = client.request("GET", target)
    assert (again.body, again["Content-Length"]) == (followed, str(len(followed)))
    assert client.request("HEAD", target)["Content-Length"] == str(len(followed))
    printed = client.request("GET", f"{target}&_offset=0")
    assert ENDS[how] not in printed.text, "a page of the output has nothing but output"
    assert followed.startswith(printed.body)


def test_a_job_that_finished_has_no_such_line(opens: Opener) -> None:
    site, client = opens(answering(b"sorry", output=b"printed", status="404 Not Found"))
    target = start(client, "/report")
    ended(site, target)
    assert client.request("GET", target).text == "printed"


def test_of_a_job_that_never_printed_it_is_all(opens: Opener) -> None:
    site, client = opens(answering(status="503 Busy"))
    target = start(client, "/report")
    ended(site, target)
    assert client.request("GET", target).text == "[the job failed: the app answered 503 Busy]\n"


def test_parts_and_gaps_have_it_too(opens: Opener) -> None:
    site, client = opens(answering(output=b"0123456789", status="500 Oops"))
    target = start(client, "/report")
    ended(site, target)
    whole = client.request("GET", target).body
    for begin in range(len(whole)):
        for last in (begin, begin + 5, len(whole) - 1):
            reply = client.request("GET", target, range=f"bytes={begin}-{last}")
            assert reply.body == whole[begin : last + 1]
            assert reply["Content-Range"].endswith(f"/{len(whole)}")
    assert client.request("GET", target, range=f"bytes={len(whole)}-").status == 416
    site, client = opens(
        answering(output=b"0123456789" * 10, status="500 Oops"), registry=MemoryRegistry(max_output=20)
    )
    target = start(client, "/report")
    ended(site, target)
    reply = client.request("GET", target)
    assert reply.text.endswith("89\n[the job failed: the app answered 500 Oops]\n")
    assert int(reply["Content-Length"]) == len(reply.body)


@pytest.mark.everything
def test_curl_ends_without_an_error_and_the_result_has_its_exit_status(opens: Opener) -> None:
    curl = shutil.which("curl")
    if curl is None:
        assert not PROMISED, "CI=true promises curl"
        pytest.skip("needs curl")
    _, client = opens(answering(output=b"printed\n", status="500 Oops"))
    if not isinstance(client, OverHTTP):
        pytest.skip("over HTTP")
    url = f"http://127.0.0.1:{client.port}/report"
    done = subprocess.run([curl, "-sSL", url], capture_output=True, text=True, timeout=WAIT)
    assert (done.returncode, done.stdout) == (0, "printed\n\n[the job failed: the app answered 500 Oops]\n")
    done = subprocess.run([curl, "-sSfL", "-H", "Prefer: wait=30", url], capture_output=True, timeout=WAIT)
    assert done.returncode == 22
