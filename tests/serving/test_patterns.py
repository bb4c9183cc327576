"""By which pattern of its path a job is counted."""

import pytest

from bgmiddleware._serving.asked import pattern_of


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("/reports/2026", "/reports/*"),
        ("/reports/2026/pdf", "/reports/*/pdf"),
        ("/api/v2/orders/a1b2c3", "/api/v2/orders/*"),
        ("/v123/x", "/*/x"),
        ("/", "/"),
        ("", ""),
        ("/plain/words", "/plain/words"),
        ("/" + "x" * 33, "/*"),
        ("/" + "x" * 32, "/" + "x" * 32),
        ("/a/" + "b/" * 90, ("/a/" + "b/" * 90)[:100]),
        ("/gr\xc3\xbc\xc3\x9fe", "/grüße"),
        ("/a\nb", "/a�b"),
    ],
)
def test_what_varies_is_left_out(path: str, pattern: str) -> None:
    assert pattern_of(path) == pattern
