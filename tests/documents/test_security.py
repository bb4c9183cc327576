"""Each statement of docs/explanation/security.rst names a test that there is."""

import re

from tests.kit.documents import PAGES, ROOT

PAGE = PAGES["security.rst"].read_text("utf-8")
STATEMENTS = re.findall(r"^\* (.*?)(?=\n\* |\n\n|\Z)", PAGE, re.M | re.S)


def test_each_statement_names_its_test() -> None:
    rooms = ROOT / "tests", ROOT / "bgmiddleware" / "testing"  # the contracts are for others, too
    sources = [path.read_text("utf-8") for room in rooms for path in room.rglob("*.py")]
    there = {name for source in sources for name in re.findall(r"^ *def (test_\w+)", source, re.M)}
    assert len(STATEMENTS) > 25
    for statement in STATEMENTS:
        last = re.search(r"\(((?:``test_\w+``[,\s]*)+)\)$", statement)
        assert last, f"it names no test at its end: {statement}"
        for name in re.findall(r"test_\w+", last[1]):
            assert name in there, name
