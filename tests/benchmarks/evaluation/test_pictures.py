"""Arrays that pictures are drawn from: what stands where, and posteriors against the linear VAE's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.evaluation import pictures
from benchmarks.problems import LinearGaussian
from benchmarks.problems.hierarchical_vae import Layered
from benchmarks.problems.pixel_vae import Autoregressive
from benchmarks.problems.vae import OneLayer
from reports import pictures as drawn

PLANE = OneLayer(hidden=3, latent=2)


def start(family, seed=0):
    found = family.start(torch.full((4,), 0.4), torch.Generator().manual_seed(seed))
    return {block: {name: leaf + 0.3 for name, leaf in leaves.items()} for block, leaves in found.items()}


def test_a_traversal_runs_to_the_right_and_up():
    """z1 rises along a row, z2 from the bottom row to the top one, at the quantiles 1/6, 1/2 and 5/6."""
    parameters = start(PLANE)
    found = pictures.traversal(PLANE, parameters, 3, torch.Generator())["traversal"]
    q = float(stats.norm.ppf(5 / 6))
    places = [(0, 0, (-q, q)), (0, 2, (q, q)), (2, 0, (-q, -q)), (1, 1, (0.0, 0.0)), (2, 1, (0.0, -q))]
    for row, column, z in places:
        image = PLANE.images(parameters["theta"], torch.tensor(z, dtype=torch.float32), torch.Generator())
        np.testing.assert_allclose(found[3 * row + column], image.numpy(), rtol=1e-5)
    assert len(np.unique(found.round(6), axis=0)) == 9


def test_posteriors_are_the_linear_models_own():
    problem = LinearGaussian(dim=2, data_dim=3, points=2, seed=4, perturbation=0.5)
    found = pictures.posteriors(problem, problem.parameters, side=161)
    theta = {name: leaf.numpy() for name, leaf in problem.parameters["theta"].items()}
    A, s2 = theta["weight"], np.exp(2 * theta["log_noise_scale"])
    covariance = np.linalg.inv(np.eye(2) + A.T @ A / s2)
    q = problem.guide(problem.parameters["phi"])
    for point in range(2):
        places = np.stack(np.meshgrid(found["horizontal"][point], found["vertical"][point]), -1)  # rows are z2
        mean = covariance @ A.T @ (problem.data[point].numpy() - theta["bias"]) / s2
        for name, law in (
            ("posterior", stats.multivariate_normal(mean, covariance)),
            ("guide", stats.multivariate_normal(q.loc[point].numpy(), np.diag(q.scale.numpy()[point] ** 2))),
        ):
            exact = law.pdf(places)
            assert exact.max() > 0.9 * law.pdf(law.mean)  # the window holds it
            np.testing.assert_allclose(found[name][point], exact, atol=2e-3 * exact.max())


def test_an_album_is_stored_and_drawn(tmp_path):
    x = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
    arrays = pictures.album(PLANE, start(PLANE), x, count=6, side=4)
    assert {name: each.shape for name, each in arrays.items()} == {
        "original": (3, 4), "reconstruction": (3, 4), "sample": (6, 4), "traversal": (16, 4),
        "horizontal": (3, 61), "vertical": (3, 61), "posterior": (3, 61, 61), "guide": (3, 61, 61),
        "rates": (1,), "distortion": (1,), "unit_rates": (2,),
    }  # fmt: skip
    np.testing.assert_array_equal(arrays["original"], x.numpy())
    pictures.store(tmp_path / "pictures.safetensors", arrays)
    read = drawn.read(tmp_path / "pictures.safetensors")
    assert all(np.array_equal(read[name], each) for name, each in arrays.items()) and len(read) == len(arrays)
    for draw in (drawn.reconstructed, drawn.sampled, drawn.traversed, drawn.approximated, drawn.coded):
        figure = draw(read)
        figure.savefig(tmp_path / "figure.svg")
        assert figure.axes


def test_a_code_is_the_bound_taken_apart():
    """Rates are KL(q || prior) of torch.distributions, unit by unit; rates and distortion together are minus the ELBO."""
    parameters, x = start(PLANE), torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]])
    model = PLANE.model_of(x)
    found = pictures.code(model, parameters, torch.Generator().manual_seed(0))
    guide = model.guide(parameters["phi"])
    q = torch.distributions.Normal(guide.loc, guide.scale)
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).mean(0)
    np.testing.assert_allclose(found["unit_rates"], kl.numpy(), rtol=1e-5)
    assert found["rates"][0] == pytest.approx(float(kl.sum()), rel=1e-5)
    z = guide.transform(guide.noise((20_000,), torch.Generator().manual_seed(1)))
    distortion = -model.log_likelihood(parameters["theta"], z)
    error = float(distortion.std()) / np.sqrt(2 * 20)
    assert abs(found["distortion"][0] - float(distortion.mean())) < 4.5 * error
    figure = drawn.coded(found)
    lengths = [bar.get_width() for bar in figure.axes[0].patches]
    np.testing.assert_allclose(lengths, [found["rates"][0], found["distortion"][0]])
    np.testing.assert_allclose(
        [bar.get_height() for bar in figure.axes[1].patches], np.sort(kl.numpy())[::-1], rtol=1e-5
    )


def test_images_stand_in_their_places():
    """Four 2 x 2 images, three in a row: the fourth begins the second row, and the rest of it stays empty."""
    images = np.arange(16, dtype=np.float32).reshape(4, 4) / 15
    (picture,) = drawn.sampled({"sample": images}, columns=3).axes[0].images
    whole = np.asarray(picture.get_array())
    assert whole.shape == (4, 6)
    np.testing.assert_array_equal(whole[:2, 2:4], images[1].reshape(2, 2))
    np.testing.assert_array_equal(whole[2:, :2], images[3].reshape(2, 2))
    assert not whole[2:, 2:].any()


@pytest.mark.parametrize("family", [Layered("3-2", "4-3"), Autoregressive(latent=3, hidden=3, channels=2, layers=1)])
def test_models_without_a_plane_have_no_traversal(family):
    parameters = start(family)
    arrays = pictures.album(family, parameters, torch.ones(2, 4), count=3)
    layers = 2 if isinstance(family, Layered) else 1
    assert arrays["rates"].shape == (layers,) and ("unit_rates" in arrays) == (layers == 1)
    assert not {"traversal", "posterior"} & set(arrays) and {"original", "sample"} <= set(arrays)
    with pytest.raises(TypeError, match="exactly two latents"):
        pictures.traversal(family, parameters, 3, torch.Generator())
