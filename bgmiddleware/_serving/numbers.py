"""Numbers for Prometheus, for those who may see them."""

from collections.abc import Mapping
from typing import Any, Protocol

from .problems import UNSTORED, Answer, problem, whole
from .rights import Authorize, rights_of

__all__ = ["Numbers", "answer_metrics"]


class Numbers(Protocol):
    """What counts, see :mod:`bgmiddleware.metrics`."""

    @property
    def content_type(self) -> str: ...

    def text(self) -> bytes: ...


def answer_metrics(environ: Mapping[str, Any], numbers: Numbers, authorize: Authorize) -> Answer:
    """Answer with all numbers, for who may list jobs."""
    if "list" not in rights_of(authorize, environ):
        return problem(environ, 403, "forbidden", "You are not allowed to see the numbers of jobs.")
    if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
        return problem(environ, 405, "method-not-allowed", "Metrics can only be read.", ("Allow", "GET, HEAD"))
    return whole(numbers.content_type, numbers.text(), UNSTORED)
