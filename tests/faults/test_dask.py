"""A scheduler and two workers of dask as processes of their own: what is lost is repeated, and the numbers are the same."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

pytestmark = pytest.mark.long

ASKED = ["run", "-p", "gaussian-1d", "-e", "iwae", "-e", "dreg", "-K", "2,3,4", "-R", "400"]
CLI = "import sys; from distributed.cli.dask_{} import main; main()"


class Cluster:
    """``dask scheduler`` and ``dask worker``, each in a process."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address, self.folder = f"tcp://127.0.0.1:{port}", folder
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard")
        self.workers = []

    def _start(self, kind, *words):
        command = [sys.executable, "-c", CLI.format(kind), *map(str, words)]
        with open(self.folder / f"{kind}-{time.monotonic_ns()}.log", "w") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)

    def add(self, *words):
        options = ["--nthreads", "1", "--no-dashboard", "--local-directory", self.folder]
        self.workers.append(self._start("worker", self.address, *options, *words))

    def stop(self):
        for process in [*self.workers, self.scheduler]:
            try:
                below = psutil.Process(process.pid).children(recursive=True)
            except psutil.NoSuchProcess:
                below = []
            for each in [process, *below]:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            process.wait()

    @property
    def options(self):
        return ["--executor", "dask", "--executor-arg", f"address={self.address}"]


@pytest.fixture
def cluster(tmp_path):
    (tmp_path / "dask").mkdir()
    made = Cluster(tmp_path / "dask")
    yield made
    made.stop()


@pytest.fixture(scope="module")
def local(gradest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    assert gradest(*ASKED, "-j", "2", "-o", folder).returncode == 0
    return folder


def test_the_numbers_are_those_of_local_workers(gradest, cluster, local, same, tmp_path):
    cluster.add()
    cluster.add()
    done = gradest(*ASKED, *cluster.options, "-o", tmp_path / "run")
    assert done.returncode == 0 and done.stdout.startswith("6 cells measured, 0 failed"), done.stderr
    assert same(local, tmp_path / "run") == 6
    assert gradest(*ASKED, *cluster.options, "-o", tmp_path / "run").stdout.startswith("0 cells measured")


def test_a_thousand_small_cells(gradest, cluster, same, stored, tmp_path):
    """Two replicates each, on two workers; the first fifty as local workers measure them."""
    small = ["run", "-p", "gaussian-1d", "-e", "iwae", "-K", "2", "-R", "2"]
    cluster.add()
    cluster.add()
    done = gradest(*small, "--seeds", "1000", *cluster.options, "-o", tmp_path / "run")
    assert done.returncode == 0 and done.stdout.startswith("1000 cells measured, 0 failed"), done.stderr
    assert len(stored(tmp_path / "run")) == 1000
    assert gradest(*small, "--seeds", "50", "-j", "2", "-o", tmp_path / "local").returncode == 0
    assert same(tmp_path / "local", tmp_path / "run") == 50


def test_a_killed_worker_costs_at_most_what_was_in_flight(gradest, cluster, local, same, until, tmp_path):
    cluster.add("--no-nanny")
    cluster.add("--no-nanny")
    folder = tmp_path / "run"
    process = gradest.start(*ASKED, *cluster.options, "-o", folder)
    until(lambda: list(folder.glob("cells/*.json")))
    assert process.poll() is None
    cluster.workers[0].send_signal(signal.SIGKILL)
    out, err = process.communicate()
    assert cluster.workers[0].wait() == -signal.SIGKILL
    assert process.returncode == 0 and "6 cells measured" in out, err
    assert same(local, folder) == 6


def test_a_lost_scheduler_is_told_and_nothing_finished_is_lost(gradest, cluster, local, same, stored, until, tmp_path):
    cluster.add("--no-nanny")
    folder = tmp_path / "run"
    process = gradest.start(*ASKED, *cluster.options, "-o", folder)
    until(lambda: list(folder.glob("cells/*.json")))
    cluster.scheduler.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3, err
    assert err.splitlines()[-1].startswith("gradest: ") and "run the same command again" in err.splitlines()[-1]
    before = {record.id for record in stored(folder).values()}
    assert 1 <= len(before) < 6
    assert gradest(*ASKED, "-j", "2", "-o", folder).returncode == 0
    assert same(local, folder) == 6


def test_workers_with_other_versions_are_refused_by_name(gradest, cluster, tmp_path):
    preload = tmp_path / "older.py"
    preload.write_text("from benchmarks import elsewhere\nelsewhere.SAME = ()\nelsewhere.__version__ = '0.0.1'\n")
    cluster.add("--no-nanny", "--preload", preload)
    done = gradest(*ASKED, *cluster.options, "-o", tmp_path / "run")
    assert done.returncode == 2 and "a worker has gradest 0.0.1, not " in done.stderr, done.stderr
    assert "Traceback" not in done.stderr.splitlines()[-1]


def test_no_scheduler(gradest, tmp_path):
    words = ["--executor", "dask", "--executor-arg", "address=tcp://127.0.0.1:1", "--executor-arg", "timeout=2"]
    done = gradest(*ASKED, *words, "-o", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("gradest: no dask scheduler at tcp://127.0.0.1:1")


def test_a_cluster_on_this_machine(gradest, local, same, tmp_path):
    done = gradest(*ASKED, "--executor", "dask", "-j", "2", "-o", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert same(local, tmp_path / "run") == 6
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["workers"] == 2
