"""Every server keeps the promises, or says what it cannot do: the kit of rows on each that installs here."""

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.conftest import PROMISED
from tests.kit.servers import open_directory
from tests.servers.conformance import ENDINGS, ROWS, Limit, ended_by_sigterm, running_site
from tests.servers.lineup import LINEUP, Candidate
from tests.servers.table import BEGIN, DOCUMENT, END, documented_limits

pytestmark = pytest.mark.everything


@pytest.fixture(params=LINEUP, ids=lambda candidate: candidate.name)
def candidate(request: pytest.FixtureRequest) -> Candidate:
    return request.param  # type: ignore[no-any-return]


def test_a_server_passes_each_row_of_the_kit_or_has_a_limit_that_is_known(candidate: Candidate) -> None:
    with _directory(candidate) as directory, running_site(candidate, directory) as server:
        limits = set()
        for row in ROWS:
            try:
                row(server)
            except Limit:
                limits.add(row.__name__)
    assert limits == candidate.limits.keys() - set(ENDINGS), "a row is better or worse than the table says"


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_server_drains_at_sigterm_or_is_known_not_to(candidate: Candidate, ending: str) -> None:
    limited = False
    with _directory(candidate) as directory, running_site(candidate, directory) as server:
        try:
            ended_by_sigterm(candidate, server, watched=ending == "watched")
        except Limit:
            limited = True
    assert limited is (ending in candidate.limits), "it is better or worse than the table says"


def _directory(candidate: Candidate) -> AbstractContextManager[Path]:
    missing = candidate.missing()
    if missing:
        assert not PROMISED or candidate.optional, f"CI=true promises what the test extra has: {missing}"
        pytest.skip(missing)
    return open_directory()


def test_the_table_in_the_documents_says_what_the_kit_holds_every_server_to() -> None:
    text = Path(DOCUMENT).read_text("utf-8")
    table = text.partition(BEGIN)[2].partition(END)[0]
    assert table, "python -m tests.servers.table writes it"
    assert documented_limits(table) == {candidate.name: set(candidate.limits.values()) for candidate in LINEUP}, (
        "python -m tests.servers.table writes it anew"
    )
