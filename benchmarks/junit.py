"""Findings as JUnit XML, which continuous integration shows by itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from .files import write_bytes
from .outside import plain

if TYPE_CHECKING:
    from .check import Checked


@dataclass(frozen=True)
class Case:
    """One test: passed, or failed with a message, or skipped with one."""

    suite: str
    name: str
    failure: str = ""
    skipped: str = ""
    text: str = ""


def of_findings(source: str, found: Iterable[Checked]) -> list[Case]:
    """A test per problem and number of samples: a bias or a non-finite estimate fails, a missing verdict is skipped."""
    cases = []
    for each in found:
        outcome, words = each.finding.outcome, f"{each.finding.outcome}: {each.finding.reason}"
        failure = words if outcome in ("BIASED", "NONFINITE") else ""
        skipped = "" if failure or outcome == "PASS" else words
        cases.append(Case(source, f"{each.problem} K={each.num_samples}", failure, skipped, str(each.finding)))
    return cases or [Case(source, "no problem", skipped="no problem knows the exact gradient of what it declares")]


def write(path: Path, name: str, cases: list[Case]) -> None:
    """Write a file, whole or not at all."""
    failed, skipped = (sum(bool(getattr(case, kind)) for case in cases) for kind in ("failure", "skipped"))
    counts = {"tests": str(len(cases)), "failures": str(failed), "skipped": str(skipped), "errors": "0"}
    root = ElementTree.Element("testsuites", {"name": _plain(name), **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": _plain(name), **counts})
    for case in cases:
        made = ElementTree.SubElement(suite, "testcase", {"classname": _plain(case.suite), "name": _plain(case.name)})
        for kind in ("failure", "skipped"):
            message = getattr(case, kind)
            if message:
                ElementTree.SubElement(made, kind, {"message": _plain(message)}).text = _plain(case.text)
    ElementTree.indent(root)
    write_bytes(Path(path), ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _plain(text: str) -> str:
    """Without what a screen would obey, and the two characters more that XML cannot hold."""
    return re.sub("[\ufffe\uffff]", "?", plain(text))
