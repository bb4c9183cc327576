"""Each cell of the matrix does what is promised, and docs/explanation/reliability.rst says so.

Cells of columns that take long are run by ``python -m tests.reliability.matrix`` only, which writes that table.
"""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import needs
from tests.reliability.matrix import (
    BEGIN,
    COLUMNS,
    DOCUMENT,
    END,
    FAULTS,
    Column,
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
def scene_of() -> Iterator[Callable[[Column], Scene]]:
    """Give the site of a column: the cells of one column share it."""
    for name in ("gunicorn", "redis"):
        needs(name)
    there: dict[str, Scene] = {}
    with contextlib.ExitStack() as stack:

        def scene(column: Column) -> Scene:
            if column.name not in there:
                there.clear()
                stack.close()
                there[column.name] = stack.enter_context(served(column))
            return there[column.name]

        yield scene


@pytest.mark.everything
@pytest.mark.parametrize(("column", "fault"), CELLS)
def test_what_becomes_of_a_job_is_what_is_promised(
    scene_of: Callable[[Column], Scene], column: Column, fault: Fault
) -> None:
    assert seen(scene_of(column), fault) == promise(column, fault)


def test_the_table_has_all_promises_and_nothing_else() -> None:
    written = DOCUMENT.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]
    assert written.strip() == table(promised()).strip()
