"""What becomes of the messages of webhooks, for operators."""

from collections.abc import Iterable, Mapping
from string import Template
from typing import Any, NamedTuple

from .markup import Markup, filled_in
from .readable import readable
from .timed import span

__all__ = ["Delivery", "deliveries_document", "deliveries_table"]

_TABLE = Template("""<section class="job-webhooks" aria-labelledby="$name"><h2 id="$name">$w_webhooks</h2>
<div class="job-table" role="region" aria-label="$w_webhooks" tabindex="0">
<table>
<thead><tr><th>$w_receiver</th><th>$w_to_tell</th><th>$w_failing</th><th>$w_oldest</th><th>$w_given_up</th></tr></thead>
<tbody>
$rows</tbody>
</table>
</div>
</section>
""")
_ROW = Template(
    "<tr><td>$receiver$trouble</td><td>$waiting</td><td>$failing</td><td>$oldest</td><td>$given_up</td></tr>\n"
)
_TROUBLE = Template('<br><small class="job-reason">$trouble</small>')


class Delivery(NamedTuple):
    """How the messages to one *receiver* go: of how many jobs it *waits* to be told, of those that still run too; how
    many of these messages are *failing*: sent before, and not taken; since when the oldest of them is (an instant), and
    what the *trouble* was; how many were *given_up* in the last day."""

    receiver: str
    waiting: int
    failing: int
    oldest: float | None
    trouble: str
    given_up: int


def deliveries_document(deliveries: Iterable[Delivery], now: float) -> list[dict[str, Any]]:
    """Return the deliveries as JSON has them: the age of the oldest in seconds."""
    return [delivery._asdict() | {"oldest": _age(delivery, now)} for delivery in deliveries]


def deliveries_table(deliveries: Iterable[Delivery], said: Mapping[str, str], now: float, *, name: str) -> Markup:
    """Return a table of the deliveries, an element with this *name*; nothing where there are none."""
    rows = "".join(_row(delivery, said, now) for delivery in deliveries)
    words = {f"w_{name}": word for name, word in said.items()}
    return filled_in(_TABLE, {**words, "name": name, "rows": Markup(rows)}) if rows else Markup()


def _row(delivery: Delivery, said: Mapping[str, str], now: float) -> Markup:
    age = _age(delivery, now)
    values = {
        "receiver": readable(delivery.receiver),
        "waiting": str(delivery.waiting),
        "failing": str(delivery.failing),
        "trouble": filled_in(_TROUBLE, {"trouble": readable(delivery.trouble)}) if delivery.trouble else Markup(),
        "oldest": "–" if age is None else said["ago"].format(time=span(age)),
        "given_up": str(delivery.given_up),
    }
    return filled_in(_ROW, values)


def _age(delivery: Delivery, now: float) -> float | None:
    return None if delivery.oldest is None else max(0.0, now - delivery.oldest)
