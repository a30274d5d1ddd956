"""Every citation key stands in the bibliography, and every entry of the bibliography is used."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIBLIOGRAPHY = ROOT / "estimators" / "references.bib"
ENTRY = re.compile(r"^@(?P<kind>\w+)\{(?P<key>[^,\s]+),\n(?P<body>.*?)^\}$", re.MULTILINE | re.DOTALL)
FIELDS = {
    "article": "author title journal year",
    "inproceedings": "author title booktitle year",
    "misc": "author title note year",
}


@cache
def cited() -> dict[str, set[str]]:
    """Citation keys of all classes, with the modules that name them, read from the source without importing it."""
    found: dict[str, set[str]] = {}
    for package in ("estimators", "benchmarks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                names = {target.id for target in targets if isinstance(target, ast.Name)}
                if "citations" in names and isinstance(getattr(node, "value", None), ast.Tuple):
                    for key in ast.literal_eval(node.value):
                        found.setdefault(key, set()).add(str(path.relative_to(ROOT)))
    return found


@cache
def entries() -> dict[str, re.Match[str]]:
    matches = list(ENTRY.finditer(BIBLIOGRAPHY.read_text(encoding="utf-8")))
    keys = [match["key"] for match in matches]
    assert len(keys) == len(set(keys)), "a key stands twice"
    return dict(zip(keys, matches, strict=True))


def test_every_cited_key_has_an_entry() -> None:
    missing = {key: sorted(modules) for key, modules in cited().items() if key not in entries()}
    assert not missing


def test_every_entry_is_cited_or_referenced() -> None:
    """In a class's ``citations``, or by its key in the documentation."""
    prose = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    idle = [key for key in entries() if key not in cited() and f"`{key}`" not in prose]
    assert not idle


def test_the_scan_finds_citations() -> None:
    """A canary: a scan that finds nothing would let everything pass."""
    assert "burda2016" in cited() and "rainforth2018" in cited() and len(entries()) >= 20


@pytest.mark.parametrize("key", sorted(entries()))
def test_entries_are_whole(key: str) -> None:
    entry = entries()[key]
    assert entry["body"].count("{") == entry["body"].count("}")
    fields = dict(re.findall(r"^  (\w+)\s*= \{(.*)\},$", entry["body"], re.MULTILINE))
    assert set(FIELDS[entry["kind"]].split()) <= set(fields)
    assert key.endswith(fields["year"]), "keys are name and year"
    assert len(entry["body"].strip().splitlines()) == len(fields), "one field per line"


def test_every_entry_is_read() -> None:
    """No entry escapes the pattern above: as many as there are lines that start with @."""
    lines = BIBLIOGRAPHY.read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("@") for line in lines) == len(entries())
    keys = list(entries())
    assert keys == sorted(keys)
