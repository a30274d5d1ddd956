"""Records that nobody measured: several problems, estimators, K and seeds, refusals, an error, Pyro, a trained VAE."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from benchmarks.records import write, write_text
from benchmarks.schema import BlockResult, Cell, Cost, Manifest, Record, TrainingPoint, TrainingRecord

GAUSSIAN = "gaussian-1d[loc=0.5,scale=0.9,x=1.0,prior_loc=0.0]"
START = "digits-vae[hidden=200,latent=50,checkpoint=start]"
CONVERGED = "digits-vae[hidden=200,latent=50,checkpoint=converged]"
HOSTILE = "hostile[note=<script>alert(1)</script>]"

# target, variance at K = 1, its power of K, power of K of the mean, seconds at K = 1, unbiased, library, counterpart
RULES = {
    "score-function": ("elbo", 8.0, -1.0, 0.0, 2e-5, True, "gradest", None),
    "reparameterization": ("elbo", 2.0, -1.0, 0.0, 2.5e-5, True, "gradest", None),
    "sticking-the-landing": ("elbo", 0.4, -1.0, 0.0, 2.6e-5, True, "gradest", None),
    "iwae": ("iwae", 2.0, -1.0, -1.0, 2.7e-5, True, "gradest", None),
    "dreg": ("iwae", 0.7, -3.0, -1.0, 2.8e-5, True, "gradest", None),
    "jackknife": ("log_marginal", 1.7, -1.0, 0.0, 2.9e-5, False, "gradest", None),
    "sumo[tail=published,cap=0]": ("log_marginal", 90.0, -0.5, 0.0, 8e-5, True, "gradest", None),
    "pyro-trace-elbo": ("elbo", 2.05, -1.0, 0.0, 9e-4, True, "pyro", "reparameterization"),
    "pyro-renyi[alpha=0]": ("iwae", 1.98, -1.0, -1.0, 1.1e-3, True, "pyro", "iwae"),
}
FAMILIES = {"elbo": "elbo", "iwae": "multi-sample", "log_marginal": "debiasing"}
TRACEBACK = 'Traceback (most recent call last):\n  File "x.py"\nValueError: </pre><script>alert(2)</script>'


def block(
    name: str, rule: tuple, k: int, replicates: int, generator: np.random.Generator, estimator: str
) -> BlockResult:
    target, variance, power, mean_power, _, unbiased, _, _ = rule
    heavy = estimator.startswith("sumo")
    noise = math.exp(generator.normal() * 0.01)
    variance *= k**power * noise * (0.5 if name == "theta" else 1.0)
    mean = 1.3 * k ** (mean_power if name == "phi" else 0.0)
    error = math.sqrt(variance / replicates)
    z = max(0.0, abs(float(generator.normal())) - 0.5) + (0.0 if unbiased else 9.0)
    snr, floor = mean / math.sqrt(variance), math.sqrt(2 / (math.pi * replicates))
    verdict = "HEAVY_TAIL" if heavy else "PASS" if unbiased else "BIASED"
    return BlockResult(
        block=name, target=target, target_num_samples=k if target == "iwae" else None, unbiased=unbiased, dimensions=3,
        replicates=replicates, mean_norm=mean, reference_norm=mean, reference_standard_error=0.0,
        reference_method="exact (quadrature)", bias_norm=None if heavy else abs(z) * error,
        bias_interval=None if heavy else (max(0.0, abs(z) - 1.96) * error, (abs(z) + 1.96) * error),
        bias_z=None if heavy else z, verdict=verdict,
        verdict_reason="top 0.1 % of draws carry 0.7 of the squares" if heavy else "",
        worst_direction=None if heavy else f"{name}.x[0]",
        detectable_bias=None if heavy else 3.5 * error, variance=None if heavy else variance,
        variance_interval=None if heavy else (variance * 0.97, variance * 1.03), variance_exists=not heavy,
        snr=None if heavy else snr, snr_interval=None if heavy else (snr * 0.98, snr * 1.02), snr_floor=floor,
        snr_slope_theory=mean_power - power / 2 if name == "phi" and not heavy else None,
        mse=None if heavy else variance + (z * error) ** 2,
        skewness=0.1, kurtosis=3.2, tail_index=0.9 if heavy else 0.1, cosine=0.999,
        quantiles={"0.05": 0.3, "0.5": 1.1, "0.95": 14.0} if heavy else None,
    )  # fmt: skip


def cell(
    folder: Path, problem: str, estimator: str, k: int, seed: int = 0, replicates: int = 4000, **how: object
) -> Record:
    """Write one record and return it; ``how`` overrides its fields."""
    rule = RULES.get(estimator.partition("<")[0], RULES["reparameterization"])
    generator = np.random.default_rng([k, seed, len(problem), *estimator.encode()])
    identity = Cell(problem=problem, estimator=estimator, num_samples=k, replicates=replicates, seed=seed)
    seconds = rule[4] * (0.7 + 0.3 * k) * math.exp(generator.normal() * 0.02)
    body: dict = {
        "id": identity.id, "cell": identity, "status": "ok", "library": rule[6], "counterpart": rule[7],
        "family": FAMILIES.get(rule[0], ""),
        "citations": ["burda2016", "missing-key"] if rule[0] == "iwae" else ["kingma2014"], "tail_ratio": 0.81,
        "seconds": 1.5,
        "blocks": [block(name, rule, k, replicates, generator, estimator) for name in ("value", "theta", "phi")],
        "cost": Cost(evaluations_per_gradient=k, flops_per_gradient=2200.0 * k, seconds_per_gradient=seconds,
                     seconds_interval=(seconds * 0.96, seconds * 1.05), gradients_per_second=1 / seconds,
                     bytes_moved_per_gradient=9000.0 * k, peak_bytes=20_000 + 3000 * k, chunk=1000),
    }  # fmt: skip
    record = Record(**{**body, **how})
    write(folder / "cells" / f"{record.id}.json", record)
    return record


def write_run(folder: Path, problems: list[str], estimators: list[str], ks: list[int], seeds: int = 1) -> Path:
    """A whole run folder."""
    grid = [(p, e, k, s) for p in problems for e in estimators for k in ks for s in range(seeds)]
    ids = [cell(folder, *place).id for place in grid]
    refused = {"status": "refused", "blocks": [], "reason": "needs K >= 2, got K = 1"}
    error = {"status": "error", "blocks": [], "reason": "ValueError: <b>bold</b>", "traceback": TRACEBACK}
    ids.append(cell(folder, problems[0], "leave-one-out", 1, **refused).id)
    ids.append(cell(folder, problems[0], "<script>alert(3)</script> $x$", 1, **error).id)
    ids.append(cell(folder, HOSTILE, "reparameterization", 1, cost=Cost()).id)
    write_text(folder / "cells" / "deadbeef.json", '{"schema_version": 5, "trunc')
    bibliography = {
        "burda2016": "@inproceedings{burda2016, title={Importance Weighted Autoencoders}}",
        "kingma2014": "@inproceedings{kingma2014, title={Auto-Encoding Variational Bayes}, url={https://arxiv.org/}}",
        "unused2020": "@misc{unused2020, title={Not shown}}",
    }
    manifest = Manifest(
        name="default", command="gradest run config.toml", started="2026-11-23T00:00:00+00:00", commit="0123abc",
        dirty=True, cells=ids, settings={"replicates": 4000, "note": "</style><script>alert(4)</script>"},
        bibliography=bibliography,
    )  # fmt: skip
    write(folder / "manifest.json", manifest)
    write_text(
        folder / "environment.json",
        '{"python": "3.11.2", "torch": "2.13.0", "processor": "<img src=x>", "threads": 2, '
        '"ceiling, float64 on cpu: GFLOP/s of a matrix product": 40.0, "ceiling, float64 on cpu: GB/s copied": 10.0}',
    )
    points = [
        TrainingPoint(
            step=step, epoch=step / 50, seconds=step / 40,
            train_elbo=-540 if not step else -100 - 120 / (1 + step / 100),
            heldout_elbo=-545 if not step else -104 - 118 / (1 + step / 100), heldout_elbo_standard_error=1.1,
            heldout_iwae=-540 if not step else -98 - 115 / (1 + step / 100), heldout_iwae_standard_error=1.0,
            iwae_num_samples=100, checkpoint={0: "start", 400: "middle", 1000: "converged"}.get(step),
        )
        for step in range(0, 1001, 50)
    ]  # fmt: skip
    for name in ("iwae", "reparameterization"):
        settings = {"estimator": name, "learning_rate": 1e-3}
        trained = TrainingRecord(
            id=f"vae-{name}", problem="digits-vae[hidden=200]", settings=settings, parameters=425_000, points=points
        )
        write(folder / "training" / f"vae-{name}.json", trained)
        points = [point.model_copy(update={"train_elbo": point.train_elbo - 3}) for point in points]
    return folder
