"""Pictures of a trained model as arrays, kept in one file that reports draw without torch (:mod:`reports.pictures`)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from estimators import LatentModel, Parameters
from estimators.contract import Latent
from estimators.trees import tree_map

from ..data import write_bytes
from ..problems.family import Family
from .coding import lossy_code

Arrays = dict[str, np.ndarray]


@torch.no_grad()
def reconstructions(family: Family, parameters: Parameters, x: Tensor, generator: torch.Generator) -> Arrays:
    """``original`` and ``reconstruction``, ``(points, pixels)``: what one draw of q(z | x) looks like."""
    guide = family.model_of(x).guide(parameters["phi"])
    z = tree_map(lambda leaf: leaf[0], guide.transform(guide.noise((1,), generator)))
    return {"original": _array(x), "reconstruction": _array(family.images(parameters["theta"], z, generator))}


@torch.no_grad()
def samples(family: Family, parameters: Parameters, count: int, generator: torch.Generator) -> Arrays:
    """``sample (count, pixels)``: what draws from the prior look like."""
    z = family.prior_sample(parameters["theta"], count, generator)
    return {"sample": _array(family.images(parameters["theta"], z, generator))}


@torch.no_grad()
def traversal(family: Family, parameters: Parameters, side: int, generator: torch.Generator) -> Arrays:
    """``traversal (side^2, pixels)``: over a plane of two latents, at the normal law's quantiles, row by row from the top.

    Raises:
        TypeError: where the latent is not two numbers.

    References:
        Kingma & Welling (2014), appendix A.
    """
    like = _two_latents(family.prior_sample(parameters["theta"], 1, generator))
    axis = torch.special.ndtri((torch.arange(side, dtype=torch.float64) + 0.5) / side).to(like)
    rows = torch.cartesian_prod(axis.flip(0), axis).flip(1)
    return {"traversal": _array(family.images(parameters["theta"], rows, generator))}


@torch.no_grad()
def posteriors(model: LatentModel, parameters: Parameters, *, side: int = 61, extent: float = 5.0) -> Arrays:
    """Posterior and guide of every data point over a plane of two latents, in a window that holds both.

    ``horizontal`` and ``vertical (points, side)``, the places of z1 and of z2; ``posterior`` and ``guide (points, side,
    side)``, densities, rows by z2. Each is normalised over the window: what lies outside is not counted.

    Arguments:
        extent: the posterior is looked for within this distance of zero, on a grid of 161 x 161.

    Raises:
        TypeError: where the latent is not two numbers.
    """
    guide, theta = model.guide(parameters["phi"]), parameters["theta"]
    drawn = _two_latents(guide.transform(guide.noise((500,), torch.Generator().manual_seed(0))))
    axis = torch.linspace(-extent, extent, 161).to(drawn)
    plane = torch.cartesian_prod(axis, axis)[:, None].expand(-1, drawn.shape[-2], 2)
    weight = model.log_joint(theta, plane).softmax(0)[..., None]
    mean = (weight * plane).sum(0)
    spread = (weight * (plane - mean).square()).sum(0).sqrt().clamp_min(float(axis[1] - axis[0]))
    low = torch.minimum(mean - 4 * spread, drawn.mean(0) - 4 * drawn.std(0))
    high = torch.maximum(mean + 4 * spread, drawn.mean(0) + 4 * drawn.std(0))
    half = ((high - low) / 2).amax(-1, keepdim=True)  # one scale for both latents
    unit = torch.linspace(-1, 1, side).to(drawn)
    places = (low + high)[..., None] / 2 + half[..., None] * unit  # (points, 2, side)
    window = torch.stack(
        [places[:, 0, None, :].expand(-1, side, side), places[:, 1, :, None].expand(-1, side, side)], -1
    ).reshape(-1, side * side, 2)
    cell = (places[:, 0, 1] - places[:, 0, 0]).double().square()
    found = {"horizontal": _array(places[:, 0]), "vertical": _array(places[:, 1])}
    z = window.transpose(0, 1)
    for name, log in (("posterior", model.log_joint(theta, z)), ("guide", guide.log_prob(z))):
        found[name] = _array((log.double().softmax(0) / cell).T.reshape(-1, side, side))
    return found


def code(model: LatentModel, parameters: Parameters, generator: torch.Generator) -> Arrays:
    """The bound as a lossy code, means over data points in nats: ``rates (layers,)``, ``distortion (1,)``, and the rate of
    each latent, ``unit_rates (D,)``, where these are apart (:func:`~benchmarks.evaluation.coding.lossy_code`).

    Raises:
        TypeError: for a model that does not give its prior and its likelihood apart.
    """
    found = lossy_code(model, parameters, 20, generator)
    arrays = {
        "rates": _array(torch.stack([rate.mean() for rate in found.rates])),
        "distortion": _array(found.distortion.mean()[None]),
    }
    return arrays if found.units is None else arrays | {"unit_rates": _array(found.units)}


def store(path: Path, arrays: Arrays) -> None:
    """Keep arrays in one safetensors file, float32."""
    write_bytes(path, safetensors.numpy.save(arrays))


def album(
    family: Family, parameters: Parameters, x: Tensor, seed: int = 0, *, count: int = 20, side: int = 15
) -> Arrays:
    """All of these that the model has: traversal and posteriors only where the latent is two numbers, codes of priors apart.

    Arguments:
        x: binary images ``(points, pixels)``, of which ``count`` are reconstructed, four have posteriors drawn, and the
            first hundred are coded.
    """
    generator = torch.Generator(x.device).manual_seed(seed)
    found = reconstructions(family, parameters, x[:count], generator)
    found |= samples(family, parameters, count, generator)
    with suppress(TypeError):
        found |= traversal(family, parameters, side, generator)
        found |= posteriors(family.model_of(x[:4]), parameters)
    with suppress(TypeError):
        found |= code(family.model_of(x[:100]), parameters, generator)
    return found


def _two_latents(z: Latent) -> Tensor:
    if not isinstance(z, Tensor) or z.shape[-1] != 2:
        raise TypeError("a plane needs a model of exactly two latents in one layer")
    return z


def _array(values: Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.detach().cpu().float().numpy())
