"""Durations for reading."""

__all__ = ["span"]


def span(seconds: float, digits: int = 0) -> str:
    """Return a duration in its two largest units; what is shorter than ten seconds with so many *digits*."""
    if seconds < 10:
        return f"{max(0.0, seconds):.{digits}f} s"
    whole = int(seconds)
    for size, unit, part, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}{f' {rest} {smaller}' if rest else ''}"
    return f"{whole} s"
