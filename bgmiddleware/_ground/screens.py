"""Screens: quick tests by which the middleware rules most requests out without calling the mark.

Every request of a site meets the mark, and a function call costs more than everything else that an unmarked request
pays.
"""

import re
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

__all__ = ["EVERY", "Screen", "screen_of", "screen_of_globs", "screened", "united"]

MOST_WORDS = 3


class Screen(NamedTuple):
    """A request passes if the environ has the key *header*, or if its path contains one of *words*, of which there are
    at most ``MOST_WORDS``. Only then its mark is asked."""

    header: str | None = None
    words: tuple[str, ...] = ()

    @property
    def tests(self) -> tuple[str | None, str | None, str | None, str | None, bool]:
        """The header; the first word, the second and the third, and where there are only two, the second one again; and
        whether the first word is not all."""
        words = self.words + self.words[-1:] if len(self.words) == MOST_WORDS - 1 else self.words
        first, second, third = (*words, None, None, None)[:MOST_WORDS]
        return self.header, first, second, third, self.header is not None or second is not None


EVERY = Screen(words=("",))
"""What every request passes."""

# By identity, and not as an attribute: who wraps a mark by functools.wraps copies its attributes.
_screens: WeakKeyDictionary[object, Screen] = WeakKeyDictionary()


def screened(mark: Callable[..., Any], screen: Screen) -> None:
    """Let *screen* be that of *mark*: no request may fail it that the mark is true for."""
    _screens[mark] = screen


def screen_of(mark: object) -> Screen:
    """Return the screen of a mark; of a site's own one, that every request passes."""
    return _screens.get(mark, EVERY) if isinstance(mark, FunctionType) else EVERY


def screen_of_globs(globs: Iterable[str]) -> Screen:
    """Return the screen of paths that match one of *globs*."""
    return united(Screen(words=(_longest_word(glob),)) for glob in globs)


# Ends what must be in a path as it stands. Only ASCII is the same in whatever way the bytes of a path are read.
_END_OF_WORD = re.compile(r"[*?\x80-\U0010ffff]|\[.*", re.DOTALL)


def _longest_word(glob: str) -> str:
    """Return what every path contains that matches *glob*: the longest such text, which is the least often there."""
    return max(_END_OF_WORD.split(glob), key=len)


def united(screens: Iterable[Screen]) -> Screen:
    """Return the screen that a request passes which passes one of *screens*; it may let others pass too."""
    screens = list(screens)
    headers = {screen.header for screen in screens if screen.header is not None}
    words = tuple(dict.fromkeys(word for screen in screens for word in screen.words))
    if "" in words or len(words) > MOST_WORDS or len(headers) > 1:
        return EVERY
    return Screen(next(iter(headers), None), words)
