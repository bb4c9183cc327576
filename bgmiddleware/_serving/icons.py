"""How the states of a job look: a symbol each, so that colour is never the only sign."""

from .._jobs import Job, JobState

__all__ = ["ICON", "LOOKS", "icon", "look_of"]

LOOKS = {
    "pending": ("…", "gray"),
    "running": ("▶", "royalblue"),
    "finished": ("✓", "green"),
    "refused": ("!", "sienna"),
    "failed": ("✗", "firebrick"),
    "cancelled": ("■", "gray"),
    "lost": ("?", "firebrick"),
    "expired": ("–", "gray"),
}
"""The symbol and the colour of each state. ``refused`` is a finished job whose app answered 4xx; ``expired`` is what a
page says whose job is forgotten."""

ICON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='-8 -8 16 16'><circle r='8' fill='COLOUR'/>"
    "<text y='4' font-size='11' fill='white' text-anchor='middle'>SYMBOL</text></svg>"
)
"""An icon as SVG, without the two words in capitals; nothing in it has to be escaped in a URL."""


def look_of(job: Job) -> str:
    """Return which of ``LOOKS`` a job has: its state, but where the app refused what it was asked for."""
    refused = job.state is JobState.FINISHED and job.response is not None and job.response.code >= 400
    return "refused" if refused else job.state.value


def icon(template: str, state: str) -> str:
    """Return the icon of a state: *template* is ``ICON``, or a URL of or with it, which may have the STATE."""
    symbol, colour = LOOKS[state]
    return template.replace("STATE", state).replace("COLOUR", colour).replace("SYMBOL", symbol)
