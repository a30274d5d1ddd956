"""What a trained model is worth: held-out bounds, their reliability, active units, and where the bound is lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from estimators import DiagonalGaussian, Jackknife, LatentModel, Parameters
from estimators.trees import tree_leaves

from ..evaluation import (
    Annealing,
    active_units,
    annealed_importance_sampling,
    bidirectional,
    corrected_bounds,
    importance_sampling,
    variational_gaps,
)
from ..evaluation.annealing import upper_bound
from ..problems.family import Family
from ..specs import SpecError
from ..streams import generator

CHUNK = 100
"""Images that are evaluated at once."""
BAD_KHAT = 0.7
"""Vehtari et al. (2024)."""


@torch.no_grad()
def log_weights(model: LatentModel, parameters: Parameters, num_samples: int, stream: torch.Generator) -> Tensor:
    """``(K, *batch)``, float64."""
    guide = model.guide(parameters["phi"])
    z = guide.transform(guide.noise((num_samples,), stream))
    return (model.log_joint(parameters["theta"], z) - guide.log_prob(z)).double()


def bounds(
    family: Family, parameters: Parameters, x: Tensor, num_samples: int, stream: torch.Generator
) -> dict[str, Any]:
    """ELBO and L_K of held-out images, with the standard errors of their means over images."""
    parts = [log_weights(family.model_of(some), parameters, num_samples, stream) for some in x.split(CHUNK)]
    log_w = torch.cat(parts, 1)
    found: dict[str, Any] = {"bound_num_samples": num_samples}
    for name, values in (("elbo", log_w.mean(0)), ("bound", log_w.logsumexp(0) - math.log(num_samples))):
        found |= {f"heldout_{name}": _finite(values.mean()), f"heldout_{name}_standard_error": _error(values)}
    return found


def likelihood(family: Family, parameters: Parameters, x: Tensor, num_samples: int, seed: int) -> dict[str, Any]:
    """L_K for any K with k-hat, the ELBO, and the estimate of KL(q || posterior) that is their difference."""
    stream = generator(str(x.device), "evaluation", seed, "importance sampling")
    parts = [importance_sampling(family.model_of(some), parameters, num_samples, stream) for some in x.split(CHUNK)]
    bound, elbo, khat = (torch.cat([getattr(p, name) for p in parts]).cpu() for name in ("bound", "elbo", "khat"))
    known = khat[khat.isfinite()]
    return {
        "images": len(x),
        "num_samples": num_samples,
        "log_p_lower": _finite(bound.mean()),
        "log_p_lower_standard_error": _error(bound),
        "elbo": _finite(elbo.mean()),
        "elbo_standard_error": _error(elbo),
        "kl_posterior": _finite((bound - elbo).mean()),
        "kl_posterior_standard_error": _error(bound - elbo),
        "khat_median": float(known.median()) if len(known) else None,
        "khat_above_0.7": float((known > BAD_KHAT).double().mean()) if len(known) else None,
    }


@torch.no_grad()
def units(family: Family, parameters: Parameters, x: Tensor) -> list[int]:
    """Active latents of each stochastic layer; posterior means by 50 samples where the guide does not state them."""
    means: list[list[Tensor]] = []
    stream = generator(str(x.device), "evaluation", "units")
    for some in x.split(CHUNK):
        guide = family.model_of(some).guide(parameters["phi"])
        if isinstance(guide, DiagonalGaussian):
            means.append([guide.loc])
        else:
            z = guide.transform(guide.noise((50,), stream))
            means.append([leaf.mean(0).reshape(len(some), -1) for leaf in tree_leaves(z)])
    return [int(active_units(torch.cat(layer)).sum()) for layer in zip(*means, strict=True)]


def annealed(family: Family, parameters: Parameters, x: Tensor, settings: Annealing, seed: int) -> dict[str, Any]:
    """log p(x) by annealed importance sampling from the prior."""
    stream = generator(str(x.device), "evaluation", seed, "annealing")
    values, rates = [], []
    for some in x.split(CHUNK):
        model = family.model_of(some)
        found = annealed_importance_sampling(model, parameters, model.prior(parameters["theta"]), stream, settings)
        values.append(found.log_marginal)
        rates.append(found.acceptance)
    every = torch.cat(values)
    return {
        "images": len(x),
        "steps": settings.steps,
        "chains": settings.chains,
        "log_p": _finite(every.mean()),
        "log_p_standard_error": _error(every),
        "acceptance": float(torch.cat(rates).mean()),
    }


def both_ways(family: Family, parameters: Parameters, count: int, settings: Annealing, seed: int) -> dict[str, Any]:
    """Lower and upper bounds of log p(x) on images that the model itself draws."""
    device = str(next(iter(parameters["theta"].values())).device)
    stream = generator(device, "evaluation", seed, "bidirectional")
    z, x = family.generate(parameters["theta"], count, stream)
    if not isinstance(z, Tensor):
        raise SpecError("bidirectional bounds need latents that are one tensor, not several layers of them")
    model = family.model_of(x)
    lower, reverse = bidirectional(model, parameters, z, model.prior(parameters["theta"]), stream, settings)
    upper = upper_bound(reverse)
    gap = upper - lower.log_marginal
    return {
        "images": count,
        "lower": _finite(lower.log_marginal.mean()),
        "upper": _finite(upper.mean()),
        "gap": _finite(gap.mean()),
        "gap_standard_error": _error(gap),
    }


@torch.no_grad()
def jackknife(
    family: Family, parameters: Parameters, x: Tensor, num_samples: int, order: int, seed: int
) -> dict[str, Any]:
    """The jackknifed bound of any order, no bound itself."""
    stream = generator(str(x.device), "evaluation", seed, "jackknife")
    rule = Jackknife(num_samples=num_samples, order=order)
    values = []
    for some in x.split(10):
        log_w = log_weights(family.model_of(some), parameters, num_samples, stream)
        values.append(rule.value(log_w))
    every = torch.cat(values)
    return {
        "images": len(x), "num_samples": num_samples, "order": order,
        "log_p": _finite(every.mean()), "log_p_standard_error": _error(every),
    }  # fmt: skip


def lost(
    family: Family,
    parameters: Parameters,
    x: Tensor,
    num_samples: int,
    shapes: Sequence[str],
    corrected: int,
    max_steps: int,
    seed: int,
) -> dict[str, Any]:
    """Where the bound of each image is lost: gaps of families of densities, and of q_IW of ``corrected`` samples (0: none).

    log p(x) is the largest of the lower bounds that are known of an image: L_K of the guide, and with each best member of a
    family as proposal.
    """  # fmt: skip
    stream = generator(str(x.device), "evaluation", seed, "importance sampling")
    parts = [importance_sampling(family.model_of(some), parameters, num_samples, stream) for some in x.split(CHUNK)]
    log_p = own = torch.cat([part.bound for part in parts])
    stream = generator(str(x.device), "evaluation", seed, "gaps")
    each = {}
    for shape in shapes:
        each[shape] = variational_gaps(
            family.model_of(x), parameters, own, stream, family=shape, max_steps=max_steps, evaluation_samples=2000
        )
        log_p = torch.maximum(log_p, each[shape].bound)
    found: dict[str, Any] = {"images": len(x), "num_samples": num_samples, **_summaries(log_p=log_p, own_bound=own)}
    found["gaps"] = {
        shape: _summaries(
            elbo=gap.elbo, best=gap.best, bound=gap.bound, approximation=log_p - gap.best, amortisation=gap.amortisation
        )
        for shape, gap in each.items()
    }
    if corrected:
        stream = generator(str(x.device), "evaluation", seed, "corrected")
        halves = [corrected_bounds(family.model_of(some), parameters, corrected, stream) for some in x.split(CHUNK)]
        bound, lower, upper = (torch.cat([half[i] for half in halves]) for i in range(3))
        found["corrected"] = {"num_samples": corrected, **_summaries(
            bound=bound, lower=lower, upper=upper, approximation_most=log_p - lower, approximation_least=log_p - upper
        )}  # fmt: skip
    return found


def _summaries(**each: Tensor) -> dict[str, float | None]:
    """Means over images, each with its standard error."""
    found: dict[str, float | None] = {}
    for name, values in each.items():
        found |= {name: _finite(values.mean()), f"{name}_standard_error": _error(values)}
    return found


def _error(values: Tensor) -> float | None:
    return _finite(values.std() / math.sqrt(len(values))) if len(values) > 1 else None


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
