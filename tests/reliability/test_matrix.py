"""Each cell of the matrix does what is promised, and docs/reliability.rst says so.

Cells of columns that take long are run by ``python -m tests.reliability.matrix`` only, which writes that table.
"""

from collections.abc import Iterator

import pytest

from tests.conftest import needs
from tests.reliability.matrix import (
    BEGIN,
    COLUMNS,
    DOCUMENT,
    END,
    FAULTS,
    Fault,
    Scene,
    promise,
    promised,
    seen,
    served,
    table,
)

CELLS = [
    pytest.param(column, fault, id=f"{column.name}: {fault.name}".replace("``", ""))
    for column in COLUMNS
    for fault in FAULTS
    if column.in_ci and promise(column, fault) is not None
]


@pytest.fixture(scope="module")
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    for name in ("gunicorn", "redis"):
        needs(name)
    with served(request.param) as scene:
        yield scene


@pytest.mark.everything
@pytest.mark.parametrize(("scene", "fault"), CELLS, indirect=["scene"])
def test_what_becomes_of_a_job_is_what_is_promised(scene: Scene, fault: Fault) -> None:
    assert seen(scene, fault) == promise(scene.column, fault)


def test_the_table_has_all_promises_and_nothing_else() -> None:
    written = DOCUMENT.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]
    assert written.strip() == table(promised()).strip()
