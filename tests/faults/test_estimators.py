"""Estimators that misbehave in a run cost themselves alone, and say how."""

from __future__ import annotations

import os
import shutil
import subprocess
import zlib
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from benchmarks import records

HOSTILE = Path(__file__).with_name("hostile.py")
CHANGED = "it changed "
# Which words are to be in the reason. First one that hangs: those beside it wait for it before they take their times.
EXPECTED = {
    "Hangs": ("timeout", "did not end within 8 seconds"),
    "Raises": ("error", "RuntimeError: on purpose"),
    "RaisesHalfACharacter": ("error", "RuntimeError: ?????"),
    "RaisesWhatCannotBeShown": ("error", "Mute: its text cannot be shown"),
    "RaisesTwoLines": ("error", "Two Lines: on? purpose"),
    "SaysThatTheDiskIsFull": ("error", "No space left on device"),
    "Interrupts": ("error", "KeyboardInterrupt"),
    "Leaves": ("error", "SystemExit: 3"),
    "LeavesAtOnce": ("killed", "its process died (exit code 0)"),
    "KillsItself": ("killed", "its process died (exit code -9)"),
    "ClosesAllFiles": ("error", "Bad file descriptor"),
    "Allocates": ("error", "a worker may take 1 GiB (--memory)"),
    "AllocatesLists": ("error", "a worker may take 1 GiB (--memory)"),
    "NotANumber": ("nonfinite", "100 of 100 replicates are not finite"),
    "Infinite": ("nonfinite", "100 of 100 replicates are not finite"),
    "Enormous": ("nonfinite", "powers of the replicates are too large for a number"),
    "OfAnotherType": ("error", "TypeError: weights must have the type of log_w, torch.float64, not torch.complex64"),
    "Misshapen": ("error", "ValueError: weights: path has shape (7,); it must be (2, 1), "),
    "GivesText": ("error", "Error: "),
    "SetsDtype": ("error", CHANGED + "the default dtype"),
    "SeedsTorch": ("error", CHANGED + "torch's global random state"),
    "SeedsOthers": ("error", CHANGED + "numpy's global random state; it changed Python's global random state"),
    "FlushesDenormals": ("error", CHANGED + "how denormal numbers are treated"),
    "TakesThreads": ("error", CHANGED + "torch's number of threads"),
    "ChangesFolder": ("error", CHANGED + "the working folder"),
    "SetsVariables": ("error", CHANGED + "environment variables"),
    "ChangesParameters": ("error", CHANGED + "the parameters or the data"),
    "ChangesData": ("error", CHANGED + "the parameters or the data"),
    "ChangesNoise": ("error", "wrote into the noise that it was given"),
    "DefiesSigterm": ("timeout", "did not end within 8 seconds"),
    "Crashes": ("killed", "its process died (exit code -11)"),
    "Recurses": ("error", "RecursionError: maximum recursion depth exceeded"),
    "RaisesMuch": ("error", "RuntimeError: xxxxxxxx"),
    "RaisesNoException": ("error", "Other: its text cannot be shown"),
    "ClosesStandardOutput": ("error", "Error: "),
    "StartsAThread": ("ok", ""),
    "LimitsFiles": ("error", CHANGED + "what this process may take"),
    "HidesFiles": ("error", CHANGED + "the mode of new files"),
    "SetsAnAlarm": ("error", CHANGED + "timers"),
    "TakesAWhile": ("ok", ""),  # it is killed with the next one, and then begun alone
    "KillsTheNursery": ("killed", ""),  # begun anew, alone, until that is enough
    "StopsTheNursery": ("ok", ""),  # the next worker is had nevertheless
    "StopsTheNurseryAndDies": ("killed", "its process died (exit code 7)"),
    "StartsADaemonAndDies": ("killed", "its process died (exit code 7)"),
    "StartsAnUnknownDaemonAndDies": ("killed", "its process died (exit code 7)"),
    "OpensTooMany": ("error", "Too many open files"),
    "WritesToAllFiles": ("ok", ""),  # its worker is ended, and its record is there
    "PatchesTorch": ("ok", ""),
    "PatchesJson": ("killed", "what it sent is no answer"),
    "ForksASleeper": ("error", "it left a process running"),
    "ForksAndExits": ("ok", ""),
    "StartsADaemon": ("error", "it left a process running"),
}
TWIN = "Forks"  # two processes go on, and either may come to the end first
FINE = ("Last", "iwae", "dreg")


def command(*names, out, seconds=8):
    chosen = [word for name in names for word in ("-e", name)]
    limits = ["-j", "2", "--timeout", seconds, "--memory", "1"]
    return ["run", "--plugin", HOSTILE, "-p", "gaussian-1d", *chosen, "-K", "2", "-R", "100", *limits, "-o", out]


@pytest.fixture(scope="module")
def hostile(gradest, tmp_path_factory):
    """All of them in one run, and after them some with which nothing is wrong."""
    folder = tmp_path_factory.mktemp("hostile")
    done = gradest(*command(*EXPECTED, TWIN, *FINE, out=folder), env={**os.environ, "GRADEST_TEST": str(folder)})
    return folder, done, running(str(folder))


@pytest.fixture(scope="module")
def clean(gradest, tmp_path_factory):
    """A run of those alone with which nothing is wrong."""
    folder = tmp_path_factory.mktemp("clean")
    assert gradest(*command(*FINE, out=folder, seconds=300)).returncode == 0
    return folder


def running(mark):
    """Processes that a run, or one of these estimators, has left behind: they inherit its environment, but for one."""
    found, unknown = [], str(10**6 + zlib.crc32(mark.encode()))
    for each in psutil.process_iter():
        with suppress(psutil.Error):
            known = each.environ().get("GRADEST_TEST") == mark or each.cmdline()[-1:] == [unknown]
            if known and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each.cmdline())
    return found


@pytest.fixture(scope="module")
def by_name(hostile, stored):
    return {record.cell.estimator: record for record in stored(hostile[0]).values()}


@pytest.mark.parametrize("name", EXPECTED)
def test_each_says_what_it_did(by_name, name):
    status, words = EXPECTED[name]
    assert (by_name[name].status, words in by_name[name].reason) == (status, True), by_name[name].reason
    assert len(by_name[name].reason) <= 4_000 and len(by_name[name].reason.splitlines()) <= 1


def test_of_twins_one_leaves_a_record(by_name):
    assert by_name[TWIN].status == "ok" or by_name[TWIN].reason == "it left a process running"


def test_all_others_finish_and_the_run_says_so(hostile, by_name):
    _, done, _ = hostile
    assert by_name.keys() == {*EXPECTED, TWIN, *FINE}
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "an estimator that talks" in done.stderr  # and not on standard output
    fine = len(FINE) + sum(status == "ok" for status, _ in EXPECTED.values()) + (by_name[TWIN].status == "ok")
    assert done.stdout.startswith(f"{fine} cells measured, {len(by_name) - fine} failed")
    assert done.stdout.count("\n") == 1


def test_later_cells_are_bit_identical_to_a_run_without(hostile, clean, same):
    assert same(clean, hostile[0]) == len(FINE)


IMPORTED = """
import numpy as np
import torch

import estimators

torch.Tensor.softmax = lambda self, *a, **k: self * 0 + 1
np.seterr(all="raise")


class Keeps(estimators.Reparameterization):
    def weights(self, log_w):
        self.keep()

    def keep(self):
        open("/nowhere/cache", "wb")
"""


def test_what_a_plugin_changes_when_it_is_imported_reaches_no_other_cell(gradest, clean, stored, same, tmp_path):
    """Nor is a file that its estimator cannot open, in a method of the name of ours, taken for a full disk."""
    (tmp_path / "plugin.py").write_text(IMPORTED)
    words = command(*FINE, "Keeps", out=tmp_path / "run", seconds=300)
    done = gradest(*words, "--plugin", tmp_path / "plugin.py", "-j", "1")
    assert done.stdout.startswith("3 cells measured, 1 failed"), done.stderr
    assert same(clean, tmp_path / "run") == 3
    failed = {record.cell.estimator: record.reason for record in stored(tmp_path / "run").values() if record.reason}
    assert failed.keys() == {"Keeps"} and failed["Keeps"].startswith("FileNotFoundError"), failed


def test_what_one_spoils_is_named_and_measured_again(gradest, clean, same, tmp_path):
    """Nothing keeps an estimator from the files of whoever runs it: what it does to records is seen, and made good."""
    folder = shutil.copytree(clean, tmp_path / "run")
    variables = {**os.environ, "GRADEST_TEST": str(folder)}
    done = gradest(*command("Spoils", out=folder, seconds=300), env=variables)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    left, unreadable = records.read_cells(folder)
    assert not {record.cell.estimator for record in left.values()} & {*FINE} and f"{'f' * 20}.json" in unreadable
    again = gradest(*command(*FINE, out=folder, seconds=300), env=variables)
    assert again.stdout.startswith("3 cells measured, 0 failed") and "set aside, measured again" in again.stderr
    assert same(clean, folder) == 3


def test_nothing_is_left_running(hostile):
    with subprocess.Popen(["sleep", "60"], env={**os.environ, "GRADEST_TEST": "seen"}) as child:
        assert running("seen")  # it would be
        child.kill()
    assert hostile[2] == []


def test_what_they_did_is_on_no_list_of_things_done(hostile):
    folder, _, _ = hostile
    done = {id for id, (status, _) in records.summary(folder).cells.items() if status in ("ok", "refused")}
    assert {record.id for record in records.read_cells(folder)[0].values() if record.status == "ok"} == done
