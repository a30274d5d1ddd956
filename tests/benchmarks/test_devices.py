"""What a device says of itself, asked of one that is made up: whether the right things are asked, in order and in units."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from benchmarks import devices


class Board:
    """A device with a clock of milliseconds, an allocator and a count of millijoules; ``said`` is what was done to it."""

    def __init__(self, monkeypatch):
        self.clock, self.held, self.most, self.drawn, self.said = 0.0, 1000, 5000, 7_000_000, []
        board = self

        class Event:
            def __init__(self, device, *, enable_timing):
                assert enable_timing and torch.device(device).type == "cuda"

            def record(self):
                self.at = board.clock

            def synchronize(self):
                board.said.append("waited for an event")

            def elapsed_time(self, end):
                return end.at - self.at

        class Allocator:
            def reset_peak_memory_stats(self, device):
                board.most = board.held

            def memory_allocated(self, device):
                return board.held

            def max_memory_allocated(self, device):
                return board.most

        monkeypatch.setattr(torch, "Event", Event)
        monkeypatch.setattr(torch, "get_device_module", lambda device: Allocator())
        monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: board.said.append("waited"))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="12ab-34"))

    def work(self):
        """Three milliseconds, 700 bytes that are given back, and 250 millijoules."""
        self.clock += 3.0
        self.most = max(self.most, self.held + 700)
        self.drawn += 250


@pytest.fixture
def board(monkeypatch):
    return Board(monkeypatch)


def test_seconds_are_those_between_two_events(board):
    assert devices.seconds(board.work, "cuda") == pytest.approx(3e-3)
    assert board.said == ["waited for an event"]  # and not for whatever else is queued


def test_the_peak_is_that_of_the_work(board):
    """What the allocator held before, and its peak of earlier work, are not."""
    assert devices.peak_bytes(board.work, "cuda") == 700
    assert board.said == ["waited", "waited"]


class Library(types.ModuleType):
    """NVML, of one board: asked for by its name, it gives its count."""

    class NVMLError(Exception):
        pass

    def __init__(self, board, fails=""):
        super().__init__("pynvml")
        self.board, self.fails, self.asked = board, fails, []

    def _answer(self, call, value=None):
        self.asked.append(call)
        if self.fails == call:
            raise self.NVMLError(call)
        return value

    def nvmlInit(self):
        return self._answer("init")

    def nvmlDeviceGetHandleByUUID(self, name):
        return self._answer("handle", name)

    def nvmlDeviceGetTotalEnergyConsumption(self, name):
        assert name == "GPU-12ab-34"
        return self._answer("count", self.board.drawn)


def test_energy_is_the_count_s_growth_over_the_runs(board, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Library(board))
    monkeypatch.setattr(devices, "DRAWN_FOR", 0.01)
    assert devices.joules(board.work, "cuda") == pytest.approx(0.25)
    assert set(board.said) == {"waited"}


@pytest.mark.parametrize("fails", ["init", "handle", "count"])
def test_where_the_library_does_not_answer_there_is_no_energy(board, monkeypatch, fails):
    library = Library(board, fails)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert devices.joules(board.work, "cuda") is None
    assert library.asked[-1] == fails and board.drawn == 7_000_000  # nothing was run for it


def test_without_the_package_there_is_no_energy(board, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as Python marks what cannot be imported
    assert devices.joules(board.work, "cuda") is None


def test_a_cpu_says_seconds_only():
    done = []
    assert (
        devices.peak_bytes(lambda: done.append(1), "cpu") is None
        and devices.joules(lambda: done.append(1), "cpu") is None
    )
    assert not done and devices.seconds(lambda: done.append(1), "cpu") >= 0.0 and done == [1]
