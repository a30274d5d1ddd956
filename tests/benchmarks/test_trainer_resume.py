"""A training that was killed and one that was not end in the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import estimators
from benchmarks import data as digits_data
from benchmarks.data import DataError
from benchmarks.images import Images, load
from benchmarks.trainer import Session, Settings, trained
from benchmarks.trainer import checkpoint as files
from benchmarks.trainer.session import CHECKPOINT, CURVE


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv(digits_data.CACHE_VARIABLE, str(tmp_path_factory.getbasetemp() / "cache"))


def images():
    grey = torch.rand(70, 16, generator=torch.Generator().manual_seed(0))
    return Images(grey, (grey[:12] > 0.5).float(), 4)


def settings(**objective):
    return Settings.model_validate(
        {
            "model": "vae[hidden=6,latent=2]",
            "data": {"batch": 20},  # three steps an epoch, ten images left over
            "objective": objective,
            "optimizer": {"epochs": 5, "learning_rate": 0.01, "clip": 5.0},
            "watch": {"points": 4, "images": 8, "num_samples": 3},
        }
    )


def untimed(facts):
    def plain(tree):
        if isinstance(tree, dict):
            return {k: plain(v) for k, v in tree.items() if k not in ("seconds", "processor_seconds")}
        return [plain(each) for each in tree] if isinstance(tree, list) else tree

    return plain(facts)


def assert_same(first, second):
    ours, theirs = files.load(first / CHECKPOINT), files.load(second / CHECKPOINT)
    assert set(ours[0]) == set(theirs[0])
    assert all(torch.equal(leaf, theirs[0][name]) for name, leaf in ours[0].items())
    assert untimed(ours[1]) == untimed(theirs[1])


@pytest.mark.parametrize(
    "objective",
    [
        {"theta": "iwae", "phi": "dreg"},
        {"theta": "iwae", "phi": "dreg", "phi_num_samples": 3},
        {"theta": "sumo", "num_samples": 1},
        {"theta": "multilevel-russian-roulette", "num_samples": 1, "phi": "iwae", "shared": True},
        {"theta": "reparameterization", "warm_up_epochs": 3, "free_bits": 0.05},
        {"theta": "iwae", "phi": "sleep-phi", "num_samples": 2},
        {"theta": "moving-average-baseline", "num_samples": 1},
        {"theta": "reparameterization", "phi": "network-baseline", "num_samples": 1},
    ],
    ids=lambda objective: "-".join(str(v) for v in objective.values()),
)
def test_stopped_twice_is_the_same_bits(tmp_path, objective):
    whole = Session(settings(**objective), images())
    whole.run(tmp_path / "whole")
    for until in (4, 11, None):  # within an epoch, and across a point of the curve
        part = Session(settings(**objective), images())
        if until != 4:
            part.restore(tmp_path / "parts" / CHECKPOINT)
        part.run(tmp_path / "parts", until=until)
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert whole.step == 15 and [point["step"] for point in whole.points] == [0, 4, 8, 11, 15]
    if whole.pair.learns:
        tensors, _ = files.load(tmp_path / "whole" / CHECKPOINT)
        assert any(name.startswith("learnt/") for name in tensors)


def test_what_a_learning_estimator_learns_changes_its_steps():
    """Its state is used: with it taken away after some steps, the next step is another."""
    first, second = (Session(settings(theta="moving-average-baseline", num_samples=1), images()) for _ in range(2))
    for session in (first, second):
        session.run(until=6)
    assert first.pair.theta.state is not None
    from dataclasses import replace

    blank = replace(second.pair.theta, state=None)
    second.pair = replace(second.pair, theta=blank, phi=blank)
    for session in (first, second):
        session.run(until=7)
    assert any(not torch.equal(a, b) for a, b in zip(first.leaves, second.leaves, strict=True))
    assert estimators.REGISTRY["moving-average-baseline"].warm_up > 0


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path):
    """SIGKILL while it trains, with a checkpoint every tenth of a second; then the rest."""
    options = [
        "train", "-K", "2", "--phi", "dreg", "--model", "vae[hidden=8,latent=2]", "--epochs", "2", "--every", "0.1",
        "--set", "data.batch=100", "--set", "watch.images=10", "--set", "watch.num_samples=2", "--out",
    ]  # fmt: skip
    command = [sys.executable, "-c", "from benchmarks.cli import main; main()", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment, stderr=subprocess.DEVNULL)
    reached = 0
    for _ in range(6000):
        time.sleep(0.01)
        curve = tmp_path / "killed" / CURVE
        if curve.exists() and (reached := json.loads(curve.read_text())["step"]) >= 8:
            break
    child.send_signal(signal.SIGKILL)
    child.wait()
    _, facts = files.load(tmp_path / "killed" / CHECKPOINT)
    assert reached >= 8 and facts["step"] < 80, "it was not in the middle"
    rest, whole = (Session(Settings.model_validate(facts["settings"]), load("digits")) for _ in range(2))
    rest.restore(tmp_path / "killed" / CHECKPOINT)
    rest.run(tmp_path / "killed")
    whole.run(tmp_path / "whole")
    assert_same(tmp_path / "whole", tmp_path / "killed")


def test_only_whole_checkpoints_of_the_same_settings_are_gone_on_from(tmp_path):
    session = Session(settings(theta="iwae"), images())
    session.run(tmp_path, until=2)
    other = Session(settings(theta="iwae", num_samples=4), images())
    with pytest.raises(DataError, match=r"objective.num_samples 5 there, 4 here"):
        other.restore(tmp_path / CHECKPOINT)
    path = tmp_path / CHECKPOINT
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    for broken, said in ((content[:-40], "part of one"), (content, "altered"), (b"", "part of one")):
        path.write_bytes(bytes(broken))
        with pytest.raises(DataError, match=said):
            session.restore(path)
    with pytest.raises(DataError, match="cannot read"):
        trained(tmp_path / "nowhere")


def test_a_checkpoint_that_lies_is_refused_whatever_its_checksum(tmp_path):
    """Tensors of another shape would be broadcast, and sizes of a network that is not there would take all memory."""
    session = Session(settings(theta="iwae"), images())
    session.run(tmp_path, until=2)
    path = tmp_path / CHECKPOINT
    tensors, facts = files.load(path)
    name = "parameters/theta/logits.bias"
    huge = {"settings": {**facts["settings"], "model": "vae[hidden=100000000,latent=2]"}}
    for changed, told, said in (
        ({name: torch.zeros(1)}, {}, r"'parameters/theta/logits.bias' is float32 \[1\], and should be float32 \[16\]"),
        ({name: torch.zeros(16).double()}, {}, "is float64"),
        ({"parameters/theta/more": torch.zeros(1)}, {}, "should be absent"),
        ({"parameters/other/x": torch.zeros(1)}, {}, "should be absent"),
        ({}, huge, r"should be float32 \[100000000\]|of another training"),
        ({}, {"pixels": 10**12}, "should be float32 .*1000000000000"),
        ({}, {"pixels": -1}, "no checkpoint"),
        ({}, {"settings": {"model": "vae[hidden=-1]"}}, "no checkpoint|of another training"),
        ({}, {"settings": 3}, "it lacks 'settings'"),
        ({}, {"step": "many"}, "it lacks 'step'"),
    ):
        files.save(path, tensors | changed, facts | told)
        for reader in (session.restore, trained):
            if "pixels" in told and reader == session.restore and told["pixels"] != facts["pixels"]:
                continue  # it knows its own images
            with pytest.raises(DataError, match=said):
                reader(path)
    for changed, said in (
        ({"adam/0/exp_avg": torch.zeros(1)}, "'adam/0/exp_avg' is float32"),
        ({"adam/99/exp_avg": torch.zeros(1)}, "should be absent"),
        ({"streams/order/state": torch.zeros(1, dtype=torch.uint8)}, "'streams/order/state' is uint8"),
    ):
        files.save(path, tensors | changed, facts)
        with pytest.raises(DataError, match=said):
            session.restore(path)
    for text, said in (("{", "no checkpoint"), ("[]", "no checkpoint"), ('{"format": 1}', "has format 1")):
        files.files.save(path, tensors, text)
        with pytest.raises(DataError, match=said):
            trained(path)
    files.save(path, tensors, facts)
    session.restore(path)


def test_a_checkpoint_is_read_back_for_evaluation(tmp_path):
    session = Session(settings(theta="iwae"), images())
    session.run(tmp_path)
    family, parameters, told, facts = trained(tmp_path)
    assert family == session.family and told == session.settings and facts["step"] == 15
    for block, leaves in session.parameters.items():
        assert all(torch.equal(leaf, parameters[block][name]) for name, leaf in leaves.items())
