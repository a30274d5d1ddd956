"""What classes of plug-ins declare, held against the contract where they are taken in: so nobody trips over it later."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from .outside import shown, told


def _is_name(value: Any) -> bool:
    """Fit for a specification, a pattern and a line."""
    return (
        type(value) is str and value.isprintable() and value == value.strip() != "" and not set(value) & set("[],=*?!")
    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, tuple | list | frozenset | set) and all(type(each) is str for each in value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


CONTRACT: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ("a text that can be printed, without any of []=,*?!", _is_name),
    "min_num_samples": ("a whole number from 0 up", _is_count),
    "warm_up": ("a whole number from 0 up", _is_count),
    "needs": ("a frozenset of texts", lambda value: isinstance(value, frozenset | set) and _are_texts(value)),
    "offers": ("a frozenset of texts", lambda value: isinstance(value, frozenset | set) and _are_texts(value)),
    "citations": ("a tuple of texts", _are_texts),
    "exact_targets": ("a tuple of texts", _are_texts),
    "version": ("a text", lambda value: type(value) is str),
    "family": ("a text", lambda value: type(value) is str),
    "summary": ("a text", lambda value: type(value) is str),
    "spec": ("a text", lambda value: type(value) is str),
    "variance_exists": ("True or False", lambda value: type(value) is bool),
    "label": ("a method that gives a text", lambda value: type(value()) is str),
    "usual_num_samples": ("a method that gives a whole number", lambda value: _is_count(value())),
    "__doc__": ("a text", lambda value: value is None or type(value) is str),
}
"""By attribute: what it is to be, in words, and whether a value is that."""
OF_THE_CLASS = ("name", "min_num_samples", "summary", "citations", "label", "usual_num_samples")
"""What is asked of the class alone; the others may be properties, which their instances are asked for."""


def fault(component: Any) -> str | None:
    """What of a class, or of an instance, is not as the contract has it, or ``None``."""
    for attribute, (what, fits) in CONTRACT.items():
        stated = inspect.getattr_static(component, attribute, CONTRACT)
        if stated is CONTRACT:  # a problem has no family
            continue
        try:
            value = getattr(component, attribute)
            right = fits(value) or (isinstance(value, property) and attribute not in OF_THE_CLASS)
        except Exception as problem:
            return f"{attribute} cannot be had: {told(problem)}"
        if not right:
            return f"{attribute} is to be {what}, not {shown(value)}"
    return None
