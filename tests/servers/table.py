"""Run the kit on every server that installs here, and write the table of docs/how-to/deployment.rst.

``python -m tests.servers.table``: ends with a status other than 0 where a row is wrong, or other than ``lineup`` says.
A server that does not install here keeps the line that it has.
"""

import re
import sys
from collections.abc import Callable, Mapping
from functools import partial

from tests.kit.documents import PAGES
from tests.kit.servers import open_directory
from tests.servers.conformance import ENDINGS, ROWS, Limit, ended_by_sigterm, running_site
from tests.servers.lineup import LINEUP, Candidate

__all__ = ["BEGIN", "DOCUMENT", "END", "documented_limits"]

DOCUMENT = PAGES["deployment.rst"]
BEGIN = ".. The table is written by python -m tests.servers.table.\n"
END = ".. End of the table.\n"
_HEAD = """
.. list-table::
   :header-rows: 1
   :widths: 24 12 34 30

   * - server
     - tested
     - say to it
     - rows of the kit
"""
_ROW = re.compile(r"   \* - (.*)\n     - (.*)\n     - (.*)\n     - (.*)\n")
_ALL_WELL = "all"


def main() -> int:
    """Run the kit, print what it saw, and write the table."""
    known = {found[0].strip("`"): found for found in _ROW.findall(DOCUMENT.read_text("utf-8"))}
    wrong = False
    lines = []
    for candidate in LINEUP:
        if missing := candidate.missing():
            print(f"{candidate.name}: {missing}")
            kept = known.get(candidate.name)
            lines.append(_line(candidate, kept[1] if kept else "–"))
            continue
        seen = run(candidate)
        for row, outcome in seen.items():
            is_known = (outcome == "ok") is (row not in candidate.limits) and not outcome.startswith("WRONG")
            wrong |= not is_known
            if outcome != "ok" or not is_known:
                print(f"{candidate.name}: {row}: {outcome}{'' if is_known else ' (not as the lineup says)'}")
        lines.append(_line(candidate, candidate.version or sys.version.split()[0]))
    if not wrong:
        before, _, rest = DOCUMENT.read_text("utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        DOCUMENT.write_text(f"{before}{BEGIN}{_HEAD}{''.join(lines)}\n{END}{after}", "utf-8")
    return int(wrong)


def run(candidate: Candidate) -> dict[str, str]:
    """Return for each row ``ok``, ``limit`` or ``WRONG``, with what was seen."""
    seen = {}
    with open_directory() as directory, running_site(candidate, directory) as server:
        for row in ROWS:
            seen[row.__name__] = _outcome(partial(row, server))
    for ending in ENDINGS:
        with open_directory() as directory, running_site(candidate, directory) as server:
            seen[ending] = _outcome(partial(ended_by_sigterm, candidate, server, watched=ending == "watched"))
    return seen


def _outcome(row: Callable[[], None]) -> str:
    try:
        row()
    except Limit as limit:
        return f"limit: {limit}"
    except Exception as error:
        return f"WRONG: {error!r}"
    return "ok"


def _line(candidate: Candidate, version: str) -> str:
    limits = "; ".join(f"{reason} ({', '.join(rows)})" for reason, rows in _by_reason(candidate.limits).items())
    name = f"``{candidate.name}``"
    return f"   * - {name}\n     - {version}\n     - {candidate.setting}\n     - {limits or _ALL_WELL}\n"


def _by_reason(limits: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row, reason in limits.items():
        found.setdefault(reason, []).append(row)
    return found


def documented_limits(table: str) -> dict[str, set[str]]:
    """Return for each server of a table the reasons of its limits."""
    found: dict[str, set[str]] = {}
    for name, _, _, limits in _ROW.findall(table)[1:]:
        reasons = () if limits == _ALL_WELL else limits.split("; ")
        found[name.strip("`")] = {re.sub(r" \([^()]*\)$", "", one) for one in reasons}
    return found


if __name__ == "__main__":
    sys.exit(main())
