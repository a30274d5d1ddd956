"""Text from outside (names, exceptions, files of others) made fit to be shown. Imports no torch."""

from __future__ import annotations

import re

_OBEYED = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)
"""Characters that move the cursor, ring, colour, end a line or turn the direction of writing; and halves of characters."""
NO_MEMORY = re.compile(r"MemoryError|bad_alloc|allocate memory|not enough memory|out of memory", re.IGNORECASE)
"""What is said where there is no memory left: by Python, by C++, by torch's allocators of processors and devices."""
LONGEST = 10_000
"""Characters of the text of an exception that are looked at."""


def plain(text: object) -> str:
    """The text with a question mark in place of what a screen would obey; line breaks and tabs stay.

    Example:
        >>> plain("red: \\x1b[31m")
        'red: ?[31m'
    """
    return _OBEYED.sub("?", str(text))


def one_line(text: object) -> str:
    """The same in one line.

    Example:
        >>> one_line("first\\nsecond")
        'first second'
    """
    return plain(" ".join(str(text).split()))


def told(problem: BaseException) -> str:
    """An exception in one line, its type and the first line of its text, whatever these do when they are asked.

    Example:
        >>> told(ValueError("first\\nsecond"))
        'ValueError: first'
    """
    kind = type.__dict__["__name__"].__get__(type(problem))  # a metaclass may give another, or none
    try:
        words = [kind, *str(problem)[:LONGEST].splitlines()[:1]]
        return one_line(": ".join(filter(None, words)))
    except BaseException:
        return one_line(f"{kind}: its text cannot be shown")


def shown(value: object) -> str:
    """A value in one line, by its type where it cannot say what it is.

    Example:
        >>> shown((1, None))
        '(1, None)'
    """
    try:
        return one_line(repr(value)[:LONGEST])[:200]
    except BaseException:
        return f"a {type(value).__name__}"
