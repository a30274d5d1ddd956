"""The command line in this process, plug-in files, and findings about other libraries, each pinned to the version it was made in."""

from __future__ import annotations

import importlib.metadata
import sys
import textwrap
from collections.abc import Callable

import pytest

from benchmarks import cli


@pytest.fixture
def gradest(monkeypatch, capsys):
    """The command line in this process: exit code, standard output and standard error of ``gradest ARGUMENTS``."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["gradest", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def finding(capsys) -> Callable[..., None]:
    """``finding(package, version, same, text)``: fails where that version behaves otherwise; another one is only told of."""

    def told(package: str, version: str, same: bool, text: str) -> None:
        installed = importlib.metadata.version(package).partition("+")[0]  # torch adds its build
        if installed == version:
            assert same, f"no longer found in {package} {version}: {text}"
        elif not same:
            with capsys.disabled():
                print(f"\nnotice: {package} {installed} no longer does what {version} did: {text}")

    return told


@pytest.fixture
def plugin(tmp_path):
    """Write a plug-in file and return its path."""
    before = set(sys.modules)

    def write(text, name="plugin.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("gradest_plugin_"):
            del sys.modules[name]
