"""Studies on the page: numbers beside those of the records, pictures, and nothing where there is nothing."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from benchmarks.records import write
from benchmarks.schema import Manifest, StudyRecord
from reports import gradients, render, tables, training
from reports.plates import Plates

ARMS = {"elbo-5": (-104.0, 5.5), "iwae-5": (-102.5, 9.25)}


def paired():
    """What benchmarks.trainer.findings.of gives, with round numbers."""
    curve = {
        "step": [0, 100, 200, 300], "evaluations": [0, 1e5, 2e5, 3e5], "seconds": [0.0, 1.0, 2.0, 3.0],
        "processor_seconds": [0.0, 1.1, 2.2, 3.3], "heldout_elbo": [-500.0, -120.0, -111.0, -110.0],
        "heldout_bound": [-490.0, -115.0, -106.0, -105.0], "heldout_elbo_half": [1.0, 0.5, 0.4, 0.3],
        "heldout_bound_half": [1.0, 0.5, 0.4, 0.3],
    }  # fmt: skip
    rows = [
        {
            "arm": arm, "seeds": 5, "targets": {"theta": "elbo", "phi": "elbo"}, "log_p": log_p, "log_p_sd": 0.21,
            "log_p_more": None, "log_p_more_sd": None, "kl": kl, "kl_sd": 0.1, "khat": 1.2, "khat_sd": 0.1,
            "active_units": 14.2, "evaluations": 1.6e7, "processor_seconds": 26.25, "elbo": log_p - kl, "elbo_sd": 0.1,
        }
        for arm, (log_p, kl) in ARMS.items()
    ]  # fmt: skip
    difference = {"difference": 1.5, "standard_error": 0.125, "each": [1.5] * 5, "p_above": 0.00012, "p_below": 0.99988}
    gap = {}
    for name, value in (("elbo", -110.0), ("best", -107.5), ("approximation", 3.0), ("amortisation", 2.5)):
        gap |= {name: value, f"{name}_standard_error": 0.5}
    iw = {"num_samples": 5}
    for name, value in (("bound", -108.0), ("lower", -107.0), ("upper", -106.0), ("approximation_most", 2.75),
                        ("approximation_least", 1.75)):  # fmt: skip
        iw |= {name: value, f"{name}_standard_error": 0.5}
    close = {"images": 10, "num_samples": 5000, "log_p": -104.5, "own_bound": -105.25, "gaps": {"diagonal": gap},
             "corrected": iw}  # fmt: skip
    cost = {"level": 1.5e7, "heldout_bound": {arm: [log_p - 1, 0.1] for arm, (log_p, _) in ARMS.items()}}
    return {
        "plan": {"seeds": 5, "epochs": 80, "images": 500, "num_samples": 1000, "model": "vae", "data": "digits"},
        "published": [{"source": "Burda <b>", "method": "IWAE", "k": [5], "nll": [85.54], "active": [22]}],
        "setting": "Here: 4,000 images.", "close": {"iwae-5": close}, "rows": rows,
        "pairs": [{"first": "iwae-5", "second": "elbo-5", "why": "tighter", "seeds": 5, "log_p": difference,
                   "kl": difference}],
        "equal_cost": {"evaluations": cost, "processor_seconds": {**cost, "level": 25.0}},
        "curves": dict.fromkeys(ARMS, curve), "failed": ["sumo, seed 1: diverged"],
    }  # fmt: skip


def split(state, estimator, K, layer, block, scale=1.0):
    row = {"state": state, "estimator": estimator, "num_samples": K, "minibatches": 24, "evaluations": 20.0 * K,
           "flops": 1e6 * K, "seconds": 1e-3 * K, "layer": layer, "block": block, "target": "elbo", "unbiased": True,
           "dimensions": 10, "reference_cosine": 0.99}  # fmt: skip
    numbers = {"monte_carlo": scale * 4.0 / K, "minibatch": 0.5, "variance": scale * 4.0 / K + 0.5, "signal": 2.0}
    numbers |= {"snr": 2.0 / math.sqrt(numbers["variance"]), "cosine": 0.5}
    for name, value in numbers.items():
        row |= {name: value, f"{name}_low": 0.9 * value, f"{name}_high": 1.1 * value}
    return row


def stepwise():
    layers = (("theta/first", "theta"), ("theta", "theta"), ("phi/first", "phi"), ("phi", "phi"))
    states = ("initial", "converged")
    return {
        "plan": {"design": {"batch": 20, "minibatches": 24, "repeats": 2, "seed": 0}},
        "states": [{"state": state, "model": "vae", "trained": "iwae <i>", "elbo": -110.0, "bound": -105.0,
                    "active_units": [13]} for state in states],
        "rows": [split(state, name, K, *layer, scale) for state in states for name, scale in (("iwae", 2.0), ("dreg", 1.0))
                 for K in (1, 8) for layer in layers],
        "refused": [{"state": "initial", "estimator": "vimco", "num_samples": 1, "reason": "K < 2"}],
    }  # fmt: skip


def folder(path: Path) -> Path:
    manifest = Manifest(name="study", command="gradest study", started="2026-11-25T00:00:00+00:00",
                        bibliography={"burda2016": "@inproceedings{burda2016, title={IWAE}}"})  # fmt: skip
    write(path / "manifest.json", manifest)
    write(path / "study" / "iwae.json", StudyRecord(kind="iwae", data=paired(), citations=["burda2016"]))
    write(path / "study" / "gradients.json", StudyRecord(kind="gradients", data=stepwise()))
    (path / "study" / "broken.json").write_text("{")
    g = np.random.default_rng(0)
    grid = g.random((2, 5, 5)).astype(np.float32)
    arrays = {
        "original": g.random((4, 16)), "reconstruction": g.random((4, 16)), "sample": g.random((4, 16)),
        "traversal": g.random((9, 16)), "horizontal": np.tile(np.linspace(-1, 1, 5), (2, 1)),
        "vertical": np.tile(np.linspace(-1, 1, 5), (2, 1)), "posterior": grid, "guide": grid,
    }  # fmt: skip
    (path / "pictures").mkdir()
    content = safetensors.numpy.save({name: np.asarray(each, np.float32) for name, each in arrays.items()})
    (path / "pictures" / "plane-iwae-5.safetensors").write_bytes(content)
    (path / "pictures" / "spoilt.safetensors").write_bytes(content[:50])
    return path


class Text(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.text, self.tag = "", ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tag = tag
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data):
        if self.tag == "td":
            self.cells[-1] += data
        if self.tag not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    path = folder(tmp_path_factory.mktemp("study") / "mine")
    return render([path], path / "report.html").read_text(encoding="utf-8")


def test_the_page_has_the_records_numbers(page: str) -> None:
    found = Text(page)
    assert "iwae-5 minus elbo-5 over 5 paired seeds: held-out L_1000 +1.50 ± 0.12 nat" in found.text.replace("\n", " ")
    assert "p = 0.00012" in found.text
    opening = page[page.index('class="opening"') : page.index("<nav")]
    assert "held-out L_1000 +1.50 ± 0.12 nat" in opening and "No cell was measured here" in opening
    for cell in ("102.50 ± 0.21", "9.25 ± 0.10", "14.2", "16.00", "85.54", "3.00 [2.02, 3.98]", "1.75 to 2.75"):
        assert any(cell in one for one in found.cells), cell
    assert "L_5000 of the guide is below it by: iwae-5 0.75" in found.text
    assert "Failed: sumo, seed 1: diverged" in found.text and "Here: 4,000 images." in found.text
    assert "initial: vae, iwae <i>, 0" not in found.text and "13 active units" in found.text
    assert "vimco at K = 1 (initial: K < 2)" in found.text
    assert "<b>" not in "".join(found.cells[:0]) and "Burda &lt;b&gt;" in page
    assert "@inproceedings{burda2016" in page
    assert "are in part 8" in found.text and 'id="vae"' in page and 'id="cost"' not in page and "#cost" not in page


def test_pictures_and_what_is_spoilt(page: str) -> None:
    assert page.count("data:image/png;base64") >= 5  # four mosaics, posteriors, and heat maps
    for words in ("Held-out images, and below each", "plane of two latents", "their approximations"):
        assert words.lower() in page.lower()
    assert "study/broken.json" in page and "pictures/spoilt.safetensors" in page
    assert page.count('download="plane-iwae-5-sample.csv"') == 0  # pixels are no table


def test_curves_are_the_records_means_and_bands() -> None:
    points = training.curves(paired())
    figure = training.study_curves(points)
    axes = figure.axes[1]  # the bound against evaluations
    line = next(line for line in axes.lines if line.get_label() == "iwae-5")
    np.testing.assert_allclose(line.get_ydata(), [-490, -115, -106, -105])
    np.testing.assert_allclose(line.get_xdata(), [0, 1e5, 2e5, 3e5])
    band = axes.collections[0].get_paths()[0].vertices
    at_end = band[band[:, 0] == 3e5][:, 1]
    assert (at_end.min(), at_end.max()) == pytest.approx((-105.3, -104.7))


def test_gradient_figures_show_the_records_numbers() -> None:
    rows = gradients.table(stepwise())
    blocks = rows[rows["layer"] == rows["block"]]
    figure = gradients.signal_against_k(blocks)
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["dreg"], [2 / math.sqrt(4.5), 2 / math.sqrt(1.0)])
    np.testing.assert_allclose(lines["minibatch alone"], [2 / math.sqrt(0.5)] * 2)
    heat = gradients.shares_by_layer(rows[rows["layer"] != rows["block"]]).axes
    images = [axes.images[0].get_array() for axes in heat if axes.images and axes.get_title() == "converged"]
    np.testing.assert_allclose(images[0], np.log10([[0.5 / 0.5, 1.0 / 0.5]] * 2))  # dreg, iwae at K = 8, over 0.5
    cost = gradients.variance_against_costs(blocks)
    line = next(line for line in cost.axes[1].lines if line.get_label() == "iwae")
    np.testing.assert_allclose(line.get_xdata(), [1e6, 8e6])
    np.testing.assert_allclose(line.get_ydata(), [(8.0 + 0.5) / 4, (1.0 + 0.5) / 4])


def test_a_study_of_nothing_and_a_folder_without_one(tmp_path: Path, run_folder: Path) -> None:
    empty = {**stepwise(), "rows": [], "refused": []}
    shown = gradients.section("run", empty, Plates(["run"]))
    assert shown["figures"] == [] and shown["table"] is None
    found = training.section([tables.load(run_folder)], Plates(["run"]))
    assert found == {"studies": [], "pictures": [], "gradients": []}
    nothing = {**paired(), "rows": [], "pairs": [], "curves": {}, "close": {}, "failed": []}
    write(tmp_path / "study" / "iwae.json", StudyRecord(kind="iwae", data=json.loads(json.dumps(nothing))))
    only = training.section([tables.load(tmp_path)], Plates(["run"]))["studies"][0]
    assert only["headline"] == "" and only["curves"] is None
