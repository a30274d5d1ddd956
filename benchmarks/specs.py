"""Specifications: how problems and estimators are written on a command line and in a record.

``name`` or ``name[parameter=value,...]``, where a value may be a specification itself: ``antithetic[of=renyi[alpha=0.3]]``.
The canonical form spells out every parameter, in the order of definition, so that equal settings have equal text. Imports
no torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

_SPEC = re.compile(r"^(?P<name>[^\[\]]+?)(\[(?P<settings>.*)\])?$", re.DOTALL)
_FALSE_TRUE = {"false": False, "true": True}
MOST_SAMPLES = 100_000_000
"""The largest number of samples that can be asked for: beyond, it is a slip of the hand."""


class SpecError(ValueError):
    """A specification that cannot be read, or that names what is not there. One line, fit to be shown."""


def nearest(wrong: str, allowed: Iterable[str]) -> str:
    """``; did you mean X?`` where something is near, else the list of what is allowed."""
    allowed = list(allowed)
    near = difflib.get_close_matches(wrong, allowed, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(allowed)}"


def parse(text: str) -> tuple[str, dict[str, str]]:
    """Name and raw settings of a specification.

    Raises:
        SpecError: if the brackets or a ``parameter=value`` pair do not fit.

    Example:
        >>> parse("rainforth[dim=4, points=8]")
        ('rainforth', {'dim': '4', 'points': '8'})
        >>> parse("sobol[of=ovis[gamma=0.0],copies=4]")
        ('sobol', {'of': 'ovis[gamma=0.0]', 'copies': '4'})
    """
    match = _SPEC.match(text.strip())
    pairs = None if match is None else _pieces(match["settings"] or "")
    if match is None or pairs is None:
        raise SpecError(f"cannot read {text!r}: write name or name[parameter=value,...]")
    settings: dict[str, str] = {}
    for pair in filter(None, map(str.strip, pairs)):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not key or not value:
            raise SpecError(f"cannot read {pair!r} in {text!r}: write parameter=value")
        if key in settings:
            raise SpecError(f"{key!r} is given twice in {text!r}")
        settings[key] = value
    return match["name"].strip(), settings


def _pieces(text: str) -> list[str] | None:
    """Apart at the commas that stand in no brackets; ``None`` where brackets do not match."""
    pieces, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if depth < 0:
            return None
        if character == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += character
    return pieces if depth == 0 else None


def settings_of(kind: type) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a dataclass that belong to its identity: all but keyword-only ones."""
    return {field.name: field for field in dataclasses.fields(kind) if field.init and not field.kw_only}


def convert(kind: type, raw: Mapping[str, str]) -> dict[str, Any]:
    """Raw settings as values of the field types (int, float, bool, str) of a dataclass.

    Raises:
        SpecError: for an unknown parameter or a value of the wrong type.
    """
    fields = settings_of(kind)
    values: dict[str, Any] = {}
    for key, text in raw.items():
        if key not in fields:
            raise SpecError(
                f"{_label(kind)} has no parameter {key!r}; {nearest(key, fields) if fields else 'it has none'}"
            )
        hint = fields[key].type
        name = hint if isinstance(hint, str) else getattr(hint, "__name__", str(hint))
        values[key] = _value(f"{_label(kind)}[{key}]", text, name)
    return values


def _value(where: str, text: str, kind: str) -> Any:
    try:
        if kind == "int":
            return int(_digits(text))
        if kind == "float":
            value = float(_digits(text))
            if value - value != 0:
                raise ValueError("not finite")
            return value
        if kind == "bool":
            return _FALSE_TRUE[text.lower()]
    except (ValueError, KeyError):
        words = {"int": "a whole number", "float": "a finite number", "bool": "true or false"}
        raise SpecError(f"{where} takes {words[kind]}, not {text!r}") from None
    return text


def _digits(text: str) -> str:
    """The text, if its digits are those that everybody reads: Python takes those of other scripts and 1_000, too."""
    if not text.isascii() or "_" in text:
        raise ValueError(f"no plain digits: {text!r}")
    return text


def whole_numbers(text: str, option: str) -> list[int]:
    """Numbers of samples such as ``1,8,64``.

    Raises:
        SpecError: for anything else; ``option`` says where.

    Example:
        >>> whole_numbers("1,8", "--num-samples")
        [1, 8]
    """
    try:
        numbers = [int(_digits(part)) for part in text.split(",")]
    except ValueError:
        raise SpecError(f"{option} takes whole numbers such as 1,8,64, not {text!r}") from None
    for number in numbers:
        check_samples(number, option)
    return numbers


def check_samples(number: int, option: str = "--num-samples") -> None:
    """Refuse a number of samples that nobody can mean.

    Raises:
        SpecError: with what is allowed; ``option`` says where.
    """
    if number < 1:
        raise SpecError(f"{option} must be at least 1, not {number}")
    if number > MOST_SAMPLES:
        raise SpecError(f"{option} must be at most {MOST_SAMPLES}, not {number:.6g}")


def canonical(component: Any, leave_out: tuple[str, ...] = ()) -> str:
    """The canonical specification of a problem or estimator instance."""
    values = {name: getattr(component, name) for name in settings_of(type(component)) if name not in leave_out}
    pairs = [f"{name}={_text(value)}" for name, value in values.items() if value != ""]  # an empty text says nothing
    return _label(type(component)) + (f"[{','.join(pairs)}]" if pairs else "")


def _text(value: Any) -> str:
    if dataclasses.is_dataclass(value):  # an estimator within another, which shares its number of samples
        return canonical(value, leave_out=("num_samples",))
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, float) else str(value)


def _label(kind: type) -> str:
    return getattr(kind, "name", "") or kind.__name__


def expand(pattern: str, names: Iterable[str], what: str) -> list[str]:
    """The names that a glob (or a plain name) stands for, with the settings of the pattern kept.

    Raises:
        SpecError: where nothing fits.

    Example:
        >>> expand("iwae*", ["dreg", "iwae", "iwae-stl"], "estimator")
        ['iwae', 'iwae-stl']
        >>> expand("sumo[cap=4]", ["sumo"], "estimator")
        ['sumo[cap=4]']
    """
    names = list(names)
    name, _ = parse(pattern)
    settings = pattern.strip()[len(name) :].strip()
    found = [each for each in names if fnmatch.fnmatchcase(each, name)]
    if not found:
        raise SpecError(f"no {what} {name!r}; {nearest(name, names)}")
    return [each + settings for each in found]


def select(patterns: Iterable[str], names: Iterable[str], what: str) -> list[str]:
    """What several patterns stand for together, in order; one that starts with ``!`` takes away from those before it.

    Raises:
        SpecError: where a pattern fits nothing, or nothing remains.

    Example:
        >>> select(["*", "!pyro-*"], ["iwae", "pyro-trace-elbo"], "estimator")
        ['iwae']
    """
    patterns, names = list(patterns), list(names)
    found: list[str] = []
    for pattern in patterns:
        if pattern.startswith("!"):
            gone = set(expand(pattern[1:], names, what))
            found = [each for each in found if each not in gone and parse(each)[0] not in gone]
        else:
            found += expand(pattern, names, what)
    if not found:
        raise SpecError(f"{', '.join(patterns)} leaves no {what}")
    return list(dict.fromkeys(found))


def assignments(pairs: Iterable[str], option: str) -> dict[str, Any]:
    """``key=value`` pairs: whole numbers, numbers, true and false as such, all else as text.

    Raises:
        SpecError: for what is no pair, or a key given twice; ``option`` says where.

    Example:
        >>> assignments(["max_workers=2", "address=tcp://127.0.0.1:8786"], "--executor-arg")
        {'max_workers': 2, 'address': 'tcp://127.0.0.1:8786'}
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise SpecError(f"{option} takes key=value, not {pair!r}")
        if key in found:
            raise SpecError(f"{option}: {key} is given twice")
        value: Any = _FALSE_TRUE.get(text.lower(), text)
        for kind in (float, int):
            with suppress(ValueError):
                value = kind(_digits(text))
        found[key] = value
    return found


def fraction(text: str, option: str) -> tuple[int, int]:
    """``i/n`` as two whole numbers with 1 <= i <= n.

    Raises:
        SpecError: for anything else; ``option`` says where.

    Example:
        >>> fraction("3/8", "--shard")
        (3, 8)
    """
    parts = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text.strip(), re.ASCII)
    if parts is None or not 1 <= int(parts[1]) <= int(parts[2]):
        raise SpecError(f"{option} takes i/n with i from 1 to n, such as 1/8 or 8/8, not {text!r}")
    return int(parts[1]), int(parts[2])
