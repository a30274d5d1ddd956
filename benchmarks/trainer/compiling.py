"""The gradient of a training step through ``torch.compile``, where that works; said, and done without, where not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from estimators import Gradient, LatentModel, Parameters, Refusal

from ..problems.family import Family
from .pairing import Pair
from .settings import Settings


def compiled(
    family: Family, pair: Pair, settings: Settings, parameters: Parameters, x: Tensor
) -> tuple[Callable[..., Gradient], str]:
    """The compiled gradient, called as ``Pair.gradient``, and a line on what became of it (empty: as asked).

    Pairs that learn, draw random numbers of samples, or are trained on a tempered model are not compiled: every step would
    be another program.

    Arguments:
        x: a minibatch to compile for.
    """
    objective = settings.objective
    changing = pair.learns or pair.theta.random_cost or pair.phi.random_cost
    if changing or objective.another_target:
        return Pair.gradient, "not compiled: a step of this objective is not the same program every time"

    def gradient(x: Tensor, parameters: Parameters, noise: dict[str, Any]) -> Gradient:
        return pair.gradient(family.model_of(x), parameters, noise)

    quick = torch.compile(gradient, dynamic=False)

    def called(_: Pair, model: LatentModel, parameters: Parameters, noise: dict[str, Any]) -> Gradient:
        return quick(model.data, parameters, noise)  # type: ignore[no-any-return]

    try:
        model = family.model_of(x)
        with torch.no_grad():
            guide = model.guide(parameters["phi"])
        streams = {name: torch.Generator(x.device).manual_seed(0) for name in ("theta", "phi")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of dynamo, about caches that hold no numbers
            called(pair, model, parameters, pair.draw(guide, streams))
    except Refusal:
        raise
    except Exception as problem:  # whatever the compiler may raise: it is an optimisation, and not needed
        first = (str(problem).splitlines() or [""])[0][:200]
        return Pair.gradient, f"not compiled, torch.compile failed: {type(problem).__name__}: {first}"
    return called, ""
