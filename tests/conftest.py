"""What every test shares."""

from __future__ import annotations

import kill_matrix
import pytest


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # the process that prints
        kill_matrix.open_folder()


def pytest_terminal_summary(terminalreporter):
    lines = kill_matrix.table()
    if lines:
        terminalreporter.section("kill matrix")
        quiet = terminalreporter.config.getoption("verbose") < 1
        for line in lines[:1] if quiet and "0 survived" in lines[0] else lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Tests neither read nor write the user's cache; spawned workers inherit the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADEST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
