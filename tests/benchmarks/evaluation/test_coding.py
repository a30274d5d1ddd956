"""Rates and distortions against closed forms of Gaussian models."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.data import CACHE_VARIABLE
from benchmarks.evaluation import lossy_code
from benchmarks.problems import DigitsVAE, LinearGaussian, PixelVAE, SigmoidBeliefNet, TwoLayerGaussian
from estimators import Target


def test_one_layer_is_the_closed_form():
    """KL(q || p) to rounding, latent by latent; E log p(x | z) within 4.5 standard errors at each of five points."""
    problem = LinearGaussian(dim=3, data_dim=4, points=5, seed=2)
    theta, q = problem.parameters["theta"], problem.guide(problem.parameters["phi"])
    code = lossy_code(problem, problem.parameters, 4000, torch.Generator().manual_seed(0), chunk=900)
    v = (2 * q.log_scale).exp()
    units = 0.5 * (v + q.loc**2 - 1) - q.log_scale
    (rate,) = code.rates
    torch.testing.assert_close(rate, units.sum(-1))
    torch.testing.assert_close(code.units, units.mean(0))
    s2, A = (2 * theta["log_noise_scale"]).exp(), theta["weight"]
    e = problem.data - q.loc @ A.T - theta["bias"]
    expected = 2 * torch.log(2 * math.pi * s2) + (e.square().sum(-1) + (v * A.square().sum(0)).sum(-1)) / (2 * s2)
    # Var |e - A (z - loc)|^2 = 4 e' A V A' e + 2 |A' A|^2 in the metric of V
    G = A.T @ A
    spread = 4 * ((e @ A).square() * v).sum(-1) + 2 * torch.einsum("ij,pi,pj->p", G**2, v, v)
    assert bool(((code.distortion - expected).abs() < 4.5 * spread.sqrt() / (2 * s2) / math.sqrt(4000)).all())
    assert float(code.elbo.mean()) == pytest.approx(float(-(rate + code.distortion).mean()))


def test_layers_add_up_and_each_is_its_own():
    """Two layers: -(rates + distortion) is the exact ELBO, and the upper rate follows from q's entropy and moments."""
    problem = TwoLayerGaussian(dim=2, upper_dim=3, data_dim=2, points=3, seed=4, perturbation=0.6)
    runs = [lossy_code(problem, problem.parameters, 100, torch.Generator().manual_seed(seed)) for seed in range(100)]
    assert runs[0].units is None and [rate.shape for rate in runs[0].rates] == [(3,), (3,)]

    def z_score(values, truth):
        values = torch.stack(values)
        return float((values.mean() - truth) / (values.std() / math.sqrt(len(values))))

    assert abs(z_score([run.elbo.mean() for run in runs], problem.exact(Target("elbo")).value)) < 4.5
    law_mean, law_cov = upper_law(problem)
    m = problem.parameters["theta"]["prior_loc"].numpy()
    scale = problem.parameters["phi"]["upper_log_scale"].numpy()
    entropy = scale.sum() + 1.5 * (1 + math.log(2 * math.pi))
    cross = 1.5 * math.log(2 * math.pi) + 0.5 * (((law_mean - m) ** 2).sum(1) + np.trace(law_cov))
    assert abs(z_score([run.rates[1].mean() for run in runs], float((cross - entropy).mean()))) < 4.5
    lower = float(torch.stack([run.rates[0].mean() for run in runs]).mean())
    assert abs(lower - float((cross - entropy).mean())) > 0.1  # the two are not each other


def upper_law(problem):
    """Mean and covariance of z2 under the guide."""
    phi = {name: leaf.numpy() for name, leaf in problem.parameters["phi"].items()}
    first = problem.data.numpy() @ phi["weight"].T + phi["bias"]
    C = phi["upper_weight"]
    cov = C @ np.diag(np.exp(2 * phi["log_scale"])) @ C.T + np.diag(np.exp(2 * phi["upper_log_scale"]))
    return first @ C.T + phi["upper_bias"], cov


@pytest.mark.long
def test_an_autoregressive_decoder_leaves_less_to_z(tmp_path, monkeypatch):
    """Lossy coding on real digits, as trained by default: less than half of the rate, at an ELBO 5 nats higher or more.

    Paired over 100 held-out digits; both differences are beyond 4.5 standard errors. Two trainings: minutes.
    """
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    plain, pixel = (
        lossy_code(problem, problem.parameters, 20, torch.Generator().manual_seed(0))
        for problem in (DigitsVAE(points=100), PixelVAE(points=100))
    )
    saved = 0.5 * plain.rates[0] - pixel.rates[0]
    gained = pixel.elbo - plain.elbo - 5
    for each in (saved, gained):
        assert float(each.mean()) > 4.5 * float(each.std()) / 10


def test_it_says_itself_and_refuses_what_has_no_prior():
    problem = LinearGaussian(points=2)
    text = str(lossy_code(problem, problem.parameters, 10, torch.Generator().manual_seed(0)))
    assert text.startswith("rate z1 ") and "distortion" in text and text.endswith("nats")
    apart = SigmoidBeliefNet()
    with pytest.raises(TypeError, match="SigmoidBeliefNet does not give its prior apart"):
        lossy_code(apart, apart.parameters, 2, torch.Generator())
