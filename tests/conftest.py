"""What every test shares."""

from __future__ import annotations

import random
import secrets

import kill_matrix
import pytest


def pytest_addoption(parser):
    group = parser.getgroup("gradest's own tests")
    group.addoption(
        "--entropy", type=int, help="where seeds that nobody chose come from: replays a run that printed it"
    )
    group.addoption("--rounds", type=int, default=1, help="how many such seeds each of these tests takes")


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # the process that prints
        kill_matrix.open_folder()
        if config.option.entropy is None:
            config.option.entropy = secrets.randbits(62)  # and on to the processes that run the tests


def replay(config):
    return f"fresh seeds: --entropy {config.option.entropy} --rounds {config.option.rounds}"


def pytest_report_header(config):
    return replay(config)


def pytest_generate_tests(metafunc):
    if "fresh_seed" in metafunc.fixturenames:
        rounds = range(metafunc.config.option.rounds)
        metafunc.parametrize("fresh_seed", rounds, ids=lambda r: f"round{r}", indirect=True)


@pytest.fixture
def fresh_seed(request):
    """A seed of the run's entropy, the test and the round: another one in every run, unless the entropy is given."""
    return random.Random(f"{request.config.option.entropy} {request.node.nodeid}").getrandbits(31)


def pytest_terminal_summary(terminalreporter):
    if any("round" in report.nodeid for report in terminalreporter.getreports("failed")):
        terminalreporter.write_line(replay(terminalreporter.config))  # -q leaves the header out
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
