"""What a stranger relies on: pinned versions that fit, commands that exist, files where they are said to be."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LAYOUT = """
README.md CONTRIBUTING.md CHANGELOG.md CITATION.cff LICENSE pyproject.toml constraints.txt noxfile.py .ci/run mkdocs.yml
.pre-commit-config.yaml .gitignore examples/my_estimator.py
estimators/__init__.py estimators/contract.py estimators/guides.py estimators/py.typed estimators/references.bib
benchmarks/__init__.py benchmarks/records.py benchmarks/schema.py benchmarks/moments.py benchmarks/cost.py benchmarks/cli.py
benchmarks/default.toml benchmarks/problems/__init__.py benchmarks/references/__init__.py benchmarks/speed
reports/__init__.py reports/tables.py reports/figures.py reports/render.py reports/templates reports/static
tests/estimators tests/benchmarks tests/reports tests/conformance
"""


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def pins() -> dict[str, str]:
    lines = [line.split("==") for line in read("constraints.txt").splitlines()]
    return {canonicalize_name(name): version for name, version in lines}


def sessions() -> set[str]:
    """Names of the nox sessions, read without importing nox."""
    functions = [node for node in ast.parse(read("noxfile.py")).body if isinstance(node, ast.FunctionDef)]
    return {f.name for f in functions if any(ast.unparse(d).startswith("nox.session") for d in f.decorator_list)}


def files() -> list[Path]:
    """Every file that is tracked or would be: what a clone holds."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode == 0 and listing.stdout:
        return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]
    left_out = {"__pycache__", "dist", "site", "results"}
    found = []
    for folder, below, names in os.walk(ROOT):  # no git here, or no clone
        below[:] = [name for name in below if name not in left_out and (not name.startswith(".") or name == ".ci")]
        found += [Path(folder) / name for name in names]
    return found


def test_constraints_are_names_and_versions_alone() -> None:
    lines = read("constraints.txt").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[^ ]+", line)] == []
    assert len(pins()) == len(lines), "a name stands twice"
    assert "torch==2.13.0" in lines
    # Of NVIDIA's, one package of Python that asks a driver; none of those that come with torch for CUDA alone.
    assert [name for name in pins() if name.startswith("nvidia")] == ["nvidia-ml-py"]


def test_constraints_hold_every_direct_dependency_within_its_range() -> None:
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    requirements = [Requirement(text) for group in groups for text in group]
    direct = [each for each in requirements if canonicalize_name(each.name) != "gradest"]
    assert len(direct) > 20
    outside = [str(each) for each in direct if pins().get(canonicalize_name(each.name), "") not in each.specifier]
    assert outside == []


def test_the_readme_gives_the_two_commands() -> None:
    text = read("README.md")
    assert "python -m pip install nox && python -m nox -s bench" in text
    assert "python -m nox -s tests" in text


def test_every_nox_session_that_is_named_exists() -> None:
    assert sessions() >= {"tests", "long", "bench", "speed", "report", "lint", "types", "docs"}
    named = set()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        named |= set(re.findall(r"nox -s ([\w-]+)", path.read_text(encoding="utf-8")))
    named |= set(re.findall(r"^session (\w+)", read(".ci/run"), re.MULTILINE))
    assert {"tests", "lint", "types", "bench", "docs"} <= named <= sessions()


def test_ci_runs_what_the_readme_says() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    script = read(".ci/run")
    assert script.startswith("#!/usr/bin/env bash\n") and "set -euo pipefail" in script


@pytest.mark.parametrize("name", LAYOUT.split())
def test_layout(name: str) -> None:
    assert (ROOT / name).exists()


def test_one_version_everywhere() -> None:
    version = re.search(r'^__version__ = "(.+)"$', read("benchmarks/__init__.py"), re.MULTILINE)[1]
    assert re.search(rf"^version: {re.escape(version)}$", read("CITATION.cff"), re.MULTILINE)
    assert f"## [{version}]" in read("CHANGELOG.md")


def first_column(table_under: str) -> list[str]:
    """Names in code font in the first column of the table under a heading of the README."""
    section = read("README.md").split(f"\n## {table_under}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def test_the_readme_lists_every_estimator() -> None:
    import estimators

    assert sorted(first_column("Estimators")) == sorted(estimators.names())


def test_the_readme_lists_every_problem() -> None:
    from benchmarks.problems import REGISTRY

    assert sorted(first_column("Problems")) == sorted(REGISTRY)


def forbidden() -> re.Pattern[str]:
    """Folders of the machine that this runs on, anyone's home folder, and hosts of package registries.

    The hosts are put together here, because this file is searched too.
    """
    folders = {str(ROOT), str(Path.home()), sys.prefix, sys.base_prefix, tempfile.gettempdir()}
    folders = {folder.rstrip("/\\") for folder in folders} - {"", "/usr", "/usr/local"}
    hosts = ["pypi", "pythonhosted", "npmjs", "registry.yarnpkg", "download.pytorch", "anaconda"]
    return re.compile(
        r"(?<![\w.:/-])(?:"
        + "|".join(re.escape(folder) for folder in sorted(folders))
        + r"|/home/\w|/Users/\w|/opt/\w)[\w./\\-]*"
        r"|[A-Z]:\\Users\\|\b(?:" + "|".join(map(re.escape, hosts)) + r")\.(?:org|com)\b"
    )


def test_no_file_names_this_machine_or_a_registry() -> None:
    pattern = forbidden()
    found = []
    for path in files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # fonts, pictures
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in pattern.finditer(text)]
    assert found == []


def test_the_search_for_such_names_finds_them() -> None:
    """A canary for the test above."""
    pattern = forbidden()
    assert pattern.search(f"see {ROOT}/x") and pattern.search("at https://" + "pypi" + ".org/simple")
    assert not pattern.search("results/default and docs/home/page, tmp/x, https://example.org/opt/x")
