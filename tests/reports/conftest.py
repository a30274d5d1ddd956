"""A fabricated run folder, for all tests of reports."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from fabricated import GAUSSIAN, START, cell, write_run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two problems, five estimators, three K, two seeds, and what went wrong."""
    chosen = ["reparameterization", "iwae", "jackknife", "sumo[tail=published,cap=0]", "pyro-trace-elbo"]
    return write_run(tmp_path_factory.mktemp("run"), [GAUSSIAN, START], chosen, [1, 8, 64], seeds=2)


@pytest.fixture(scope="session")
def fabricate() -> SimpleNamespace:
    """What a test needs to write records of its own."""
    return SimpleNamespace(cell=cell, problem=GAUSSIAN, write_run=write_run)
