"""Names and numbers as a reader sees them: short titles of specifications, values with their intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
BLOCKS = {"value": "value", "theta": "θ", "phi": "φ"}


def parts(specification: str) -> tuple[str, dict[str, str]]:
    """The name and the parameters of a canonical specification.

    >>> parts("digits-vae[hidden=200,checkpoint=start]")
    ('digits-vae', {'hidden': '200', 'checkpoint': 'start'})
    >>> parts("odd[name")
    ('odd[name', {})
    """
    name, bracket, inside = specification.partition("[")
    if not bracket or not inside.endswith("]"):
        return specification, {}
    parameters, piece, depth = {}, "", 0
    for character in inside[:-1] + ",":
        if character == "," and depth == 0:
            key, equals, value = piece.partition("=")
            if piece:
                parameters[key.strip()] = value.strip() if equals else ""
            piece = ""
            continue
        depth += (character in "([{") - (character in ")]}")
        piece += character
    return name, parameters


def titles(specifications: Iterable[str]) -> dict[str, str]:
    """The shortest titles that still tell these specifications apart: parameters stand only where they differ.

    >>> titles(["a[x=1,y=2]", "a[x=1,y=3]", "b[x=1]"])
    {'a[x=1,y=2]': 'a (y=2)', 'a[x=1,y=3]': 'a (y=3)', 'b[x=1]': 'b'}
    """
    known = {one: parts(one) for one in dict.fromkeys(specifications)}
    values_of: dict[tuple[str, str], set[str]] = {}
    count = Counter(name for name, _ in known.values())
    holders: Counter[tuple[str, str]] = Counter()
    for name, parameters in known.values():
        for key, value in parameters.items():
            values_of.setdefault((name, key), set()).add(value)
            holders[name, key] += 1
    short = {}
    for one, (name, parameters) in known.items():
        differing = {
            key: value for key, value in parameters.items()
            if len(values_of[name, key]) > 1 or holders[name, key] < count[name]
        }  # fmt: skip
        values = ", ".join(f"{key}={value}" for key, value in differing.items())
        short[one] = f"{name} ({values})" if values else name
    return short if len(set(short.values())) == len(short) else {one: one for one in known}


def missing(value: Any) -> bool:
    """Whether there is no number here."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def number(value: Any, digits: int = 3) -> str:
    """A number alone, for quantities that are exact or have no interval; an en dash where there is none.

    >>> number(0.00001234), number(12.0), number(None)
    ('1.23×10⁻⁵', '12', '–')
    >>> number(5e-324), number(9.9999e-7)
    ('4.94×10⁻³²⁴', '1.00×10⁻⁶')
    """
    if missing(value):
        return "–"
    value = float(value)
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if -4 < exponent < 6:
        text = f"{value:.{max(0, digits - 1 - exponent)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    return f"10{_power(int(power))}" if mantissa == "1" else f"{mantissa}×10{_power(int(power))}"


def interval(value: Any, low: Any, high: Any, unit: str = "") -> str:
    """A value with its 95 % interval, both to the digits that the interval's width supports.

    >>> interval(1.2345e-5, 1.2e-5, 1.3e-5)
    '1.234 [1.200, 1.300] ×10⁻⁵'
    >>> interval(12.5, 11.1, 13.8, "s")
    '12.5 [11.1, 13.8] s'
    >>> interval(2.0, None, None)
    '2 (no interval)'
    """
    suffix = f" {unit}" if unit else ""
    if missing(value):
        return "–"
    if missing(low) or missing(high):
        return f"{number(value)} (no interval){suffix}"
    value, low, high = float(value), float(low), float(high)
    scale = max(abs(value), abs(low), abs(high))
    if scale == 0:
        return f"0{suffix}"
    exponent = math.floor(math.log10(scale))
    shown = 0 if -3 < exponent < 5 else max(exponent, -300)  # below, powers of ten have no number
    half = (high - low) / 2 / 10.0**shown
    decimals = min(8, max(0, 1 - math.floor(math.log10(half)))) if half > 0 else 6
    body = [f"{part / 10.0**shown:.{decimals}f}" for part in (value, low, high)]
    power = f" ×10{_power(shown)}" if shown else ""
    return f"{body[0]} [{body[1]}, {body[2]}]{power}{suffix}"


def _power(exponent: int) -> str:
    return str(exponent).translate(SUPERSCRIPT)


def listing(items: Sequence[str], most: int = 6) -> str:
    """Items as a sentence's list.

    >>> listing(["a", "b", "c"])
    'a, b and c'
    """
    shown = list(items[:most])
    if len(items) > most:
        return ", ".join(shown) + f" and {len(items) - most} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def plural(count: int, noun: str) -> str:
    """A count with its noun.

    >>> plural(1, "cell"), plural(2, "cell")
    ('1 cell', '2 cells')
    """
    return f"{count} {noun}" + ("" if count == 1 else "s")
