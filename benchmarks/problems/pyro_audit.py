"""Are a Pyro program's own derivatives those of its values? Site by site and parameter by parameter, without sampling error.

Along a short line in a latent or in a parameter, a log-density changes by the integral of its derivative. Where it does not,
the derivative is cut (``detach``, ``.data``, a step), and no statistical test need see it: estimators that share the cut
agree with each other. Both sides are numbers of the program itself, so what is found is certain but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from estimators.trees import tree_leaves, tree_map

from ..specs import SpecError

if TYPE_CHECKING:
    from estimators import Block

    from .pyro_problem import PyroProblem

NODES = (6, 12)
"""Of the two Gauss-Legendre rules along a line; where they disagree nothing is concluded."""
LINES = 8
STEP = 0.3
"""Standard deviation of the step of a parameter; a line in a latent goes all the way to an independent draw."""


@dataclass(frozen=True)
class Cut:
    """A derivative that is not that of the value: ``parameter`` is empty where it is in a latent."""

    site: str
    parameter: str
    sentence: str


def cuts(problem: PyroProblem) -> list[Cut]:
    """What is found along a few lines from the problem's parameters, drawn from its own seed."""
    generator = torch.Generator(problem.like.device).manual_seed(problem.seed)
    return [*_of_latents(problem, generator), *_of_parameters(problem, generator)]


def _of_latents(problem: PyroProblem, generator: torch.Generator) -> Iterator[Cut]:
    """log p along each site that is a differentiable function of noise, with what the guide makes of it."""
    theta, phi = problem.parameters["theta"], problem.parameters["phi"]
    guide, program = problem.guide(phi), problem.program
    start, end = (vmap(problem.from_front)(guide.transform(guide.noise((LINES,), generator))) for _ in range(2))
    for name, site in program.sites.items():
        if site.subset or not site.noise or not site.smooth:
            continue

        def along(t: Tensor, one: Any, other: Any, name: str = name) -> dict[str, Tensor]:
            z = {**one, name: one[name] + t * (other[name] - one[name])}
            return program.site_densities(theta, {**z, **program.placed(phi, z)})

        for of, (change, said) in _disagreements(along, start, end).items():
            yield Cut(
                name, "",
                f"log p of site {of!r} moves by {change:+.3g} nats along guide site {name!r} where its derivative says "
                f"{said:+.3g}: the path is cut between them (detach, .data, or a step such as round or torch.where)",
            )  # fmt: skip


def _of_parameters(problem: PyroProblem, generator: torch.Generator) -> Iterator[Cut]:
    """log p along each parameter of the model, and log q along each of the guide, with the latents held."""
    program = problem.program
    guide = problem.guide(problem.parameters["phi"])
    z = vmap(problem.from_front)(guide.transform(guide.noise((LINES,), generator)))
    for block, densities in (("theta", program.site_densities), ("phi", program.guide_densities)):
        here = problem.parameters[block]
        for name, leaf in here.items():
            steps = torch.randn((LINES, *leaf.shape), generator=generator, dtype=leaf.dtype, device=leaf.device)

            def along(
                t: Tensor, z: Any, step: Tensor, *, name: str = name, block: Block = here, of: Any = densities
            ) -> Any:
                return of({**block, name: block[name] + STEP * t * step}, z)

            for site, (change, said) in _disagreements(along, z, steps).items():
                density = "log q" if block == "phi" else "log p"
                yield Cut(
                    site, f"{block}.{name}",
                    f"{density} of site {site!r} moves by {change:+.3g} nats along parameter {name!r} where its derivative "
                    f"says {said:+.3g}: the parameter is detached there, and no estimator can know its gradient",
                )  # fmt: skip


def _disagreements(along: Callable[..., dict[str, Tensor]], start: Any, end: Any) -> dict[str, tuple[float, float]]:
    """By site: the change of its density and the integral of its derivative, on the line where they differ most clearly."""
    first = tree_map(lambda leaf: leaf[0], start)
    last = tree_map(lambda leaf: leaf[0], end)
    like = next(iter(along(torch.zeros(()), first, last).values()))
    zero, one = like.new_zeros(()).detach(), like.new_ones(()).detach()
    before, after = (_over(lambda a, b, t=t: along(t, a, b), start, end) for t in (zero, one))
    whole = _integrals(lambda t, a, b: torch.stack(list(along(t, a, b).values())).sum(), start, end, like)
    total = [sum(each.values()) for each in (before, after)]
    if not bool(_apart(total[1] - total[0], *whole, total[0]).any()):
        return {}
    found = {}
    for site in before:
        parts = _integrals(lambda t, a, b, site=site: along(t, a, b)[site], start, end, like)
        change = after[site] - before[site]
        apart = _apart(change, *parts, before[site])
        if bool(apart.any()):
            clearest = int(torch.where(apart, (change - parts[1]).abs(), -1.0).argmax())
            found[site] = float(change[clearest]), float(parts[1][clearest])
    return found


def _integrals(value: Callable[..., Tensor], start: Any, end: Any, like: Tensor) -> list[Tensor]:
    """The integral of the derivative along each line by both rules, that of its absolute value, and how far kinks may reach.

    Four of ``(LINES,)``. Where a derivative jumps between two nodes, as at the kink of a ReLU, the integral is wrong by no more
    than the jump times their distance.
    """
    out = []
    for count in NODES:
        nodes, weights = (like.new_tensor(each).detach() for each in np.polynomial.legendre.leggauss(count))
        places = (nodes + 1) / 2
        along = _over(lambda a, b, places=places: _over(lambda t: grad(value)(t, a, b), places), start, end)
        slopes = along.detach()
        out.append((slopes * weights / 2).sum(-1))
    kinks = (slopes.diff().abs() * nodes.diff() / 2).sum(-1)
    return [*out, (slopes * weights / 2).abs().sum(-1), kinks]


def _over(function: Callable[..., Any], *trees: Any) -> Any:
    """``function`` of the first elements, of the second ones, ...; one after the other where a program does not vectorise so.

    Networks such as ``nn.RNN`` can be run for many latents at once, but not for many parameters.
    """
    try:
        return vmap(function)(*trees)
    except SpecError:
        count = len(tree_leaves(trees[0])[0])
        rows = [function(*(tree_map(lambda leaf, i=i: leaf[i], tree) for tree in trees)) for i in range(count)]
        if isinstance(rows[0], Tensor):
            return torch.stack(rows)
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _apart(change: Tensor, coarse: Tensor, fine: Tensor, length: Tensor, kinks: Tensor, level: Tensor) -> Tensor:
    """Where a change is not the integral: by more than rounding, kinks, 2 % of all movement, and five times the rules' difference."""
    difference = (change - fine).abs()
    rounding = 100 * torch.finfo(change.dtype).eps * (level.abs() + 1)
    sure = difference > 5 * (fine - coarse).abs()
    found: Tensor = sure & (difference > rounding + kinks + 0.02 * (length + change.abs()))
    return found.detach()
