"""Ratios of times, shown once all is done."""

from __future__ import annotations

import pytest

from benchmarks.runner import keep_freed_memory

LINES: list[str] = []


@pytest.fixture(scope="session")
def ratios() -> list[str]:
    """Lines to be shown at the end."""
    return LINES


def pytest_configure() -> None:
    """As in the workers: what a batch frees is kept for the next."""
    keep_freed_memory()


def pytest_terminal_summary(terminalreporter) -> None:
    if LINES:
        terminalreporter.section("gradients per second, as ratios")
        for line in LINES:
            terminalreporter.write_line(line)
