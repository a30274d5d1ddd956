"""What the import of a plug-in changes for all that come after it is put back."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

import pytest
import torch

from benchmarks.registry import load
from benchmarks.specs import SpecError
from benchmarks.state import global_state

CHANGES = """
import os
import random
import signal
import numpy as np
import torch

torch.manual_seed(1)
np.random.seed(2)
random.seed(3)
torch.set_default_dtype(torch.float64)
torch.set_default_device("meta")
torch.set_grad_enabled(False)
torch.set_num_threads(torch.get_num_threads() + 1)
torch.set_flush_denormal(True)
torch.use_deterministic_algorithms(True)
torch.set_float32_matmul_precision("medium")
np.seterr(all="raise")
os.chdir("/")
os.umask(0)
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGALRM, signal.SIG_IGN)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
signal.setitimer(signal.ITIMER_REAL, 3600.0)
signal.setitimer(signal.ITIMER_PROF, 3600.0)
"""


@pytest.mark.parametrize("end", ["", "raise ValueError"])
def test_what_a_file_changes_when_it_is_imported_is_put_back(plugin, end):
    """Else it would be in force for its own cells, which are compared with those of others."""
    before = global_state()
    with suppress(SpecError):
        load(plugin(CHANGES + end))
    assert global_state() == before
    assert torch.zeros(1).device.type == "cpu"
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN and signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_file_may_remove_the_folder_it_is_imported_in(plugin, tmp_path, monkeypatch):
    """The rest is put back all the same, and nothing goes on where the file went."""
    place = tmp_path / "place"
    place.mkdir()
    file = plugin(f"import os, torch\nos.chdir({str(tmp_path)!r})\nos.rmdir({str(place)!r})\nos.umask(0)\n")
    monkeypatch.chdir(place)
    before = global_state()
    load(file)
    assert global_state() == {**before, "the working folder": "/"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is known only by being changed")
def test_the_mode_of_new_files_is_looked_at_and_not_changed(monkeypatch):
    """Of two threads that changed it at once to look at it, one took the other's for what had been there."""
    mask = os.umask(0)
    os.umask(mask)
    monkeypatch.setattr(os, "umask", None)
    assert global_state()["the mode of new files"] == mask
