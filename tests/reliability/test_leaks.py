"""Jobs leave threads, descriptors, files and objects where they were.

``python -m tests.reliability.leaks`` does so with more jobs, and looks at memory.
"""

import pytest

from tests.conftest import needs
from tests.reliability.leaks import KINDS, leaks, left_by

JOBS = 500


@pytest.mark.everything
@pytest.mark.parametrize("kind", KINDS)
def test_jobs_leave_nothing_behind(kind: str) -> None:
    needs("redis")
    assert leaks(*left_by(kind, JOBS), JOBS) == []
