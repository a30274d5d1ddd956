"""Several weights rules on the same draws: noise, forward pass and per-sample gradients are made once for all of them.

    sum_k  a_k P_k + b_k h_k  (phi)      sum_k  c_k t_k  (theta)

P_k and h_k do not depend on the rule. They are kept with respect to the *guide's* own tensors (a location, a scale), which
are few, and not with respect to phi: from there to phi it is one linear map, the same for every sample and every rule.
What a rule costs beside that is its weights, two sums over samples, and that map.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

from .contract import BLOCKS, Block, Estimator, Guide, LatentModel, Parameters, Refusal
from .guides import DiagonalGaussian
from .replicates import vectorised
from .surrogate import ruled
from .trees import tree_leaves, tree_map

VERSION = "2"
"""Of the arithmetic here: who stores numbers made by it says so."""
LARGEST_MAP = 2**20
"""Numbers in the linear map from the guide's tensors to phi that are kept; where it has more, it is applied by autograd."""


def is_rule(estimator: Estimator) -> bool:
    """Whether an estimator is its weights and nothing else, so that it can share draws with others of its kind."""
    kind = type(estimator)
    return kind.gradient is Estimator.gradient and kind.draws is Estimator.draws


def stacked_together(
    estimators: Sequence[Estimator],
    model: LatentModel,
    parameters: Parameters,
    replicates: int,
    generator: torch.Generator,
) -> list[Tensor]:
    """What :func:`estimators.replicates.stacked` gives for each estimator alone, up to rounding, from the same draws.

    Which estimators are asked for together changes no digit of any.

    Raises:
        Refusal: for an estimator that is no weights rule, or numbers of samples that differ.

    Example:
        >>> from estimators import DReG, IWAE
        >>> from benchmarks.problems import Rainforth
        >>> problem, generator = Rainforth(dim=2, points=1), torch.Generator().manual_seed(0)
        >>> [rows.shape for rows in stacked_together([IWAE(5), DReG(5)], problem, problem.parameters, 7, generator)]
        [torch.Size([7, 9]), torch.Size([7, 9])]
    """
    for estimator in estimators:
        if not is_rule(estimator):
            raise Refusal(f"{estimator.label()} is no weights rule: it cannot share draws with others")
    sizes = {estimator.num_samples for estimator in estimators}
    if len(sizes) != 1:
        raise Refusal(f"estimators that share draws take the same number of samples, not {sorted(sizes)}")
    with torch.no_grad():
        noise = model.guide(parameters["phi"]).noise((replicates, sizes.pop()), generator)
    shared = Shared(model, parameters, noise)
    return [shared.rows(estimator) for estimator in estimators]


class Shared:
    """What all rules have in common on given noise ``(rows, K, *batch, *event)``; an error of one does not touch another.

    Guides whose tensors are not one for each data point (nested ones) share the noise alone.
    """

    log_w: Tensor
    z: Any
    slope: Any

    def __init__(self, model: LatentModel, parameters: Parameters, noise: Any) -> None:
        self.model, self.parameters, self.noise = model, parameters, noise
        theta, phi = (parameters[block] for block in BLOCKS)
        with torch.no_grad():
            self.guide = model.guide(phi)

        def evaluated(one: Any) -> tuple[Any, Tensor, Any]:
            z = self.guide.transform(one)
            log_p, pull_back = vjp(lambda latent: model.log_joint(theta, latent), z)  # type: ignore[misc]
            return z, log_p - self.guide.log_prob_transformed(one), pull_back(torch.ones_like(log_p))[0]

        with torch.no_grad():
            self.z, self.log_w, self.slope = vmap(evaluated)(noise)
            self.count, self.num_samples = self.log_w.shape[:2]
            self.batch = self.log_w.shape[2:]
            self.points = self.batch.numel()
            self.names = own_tensors(self.guide, phi, model, self.batch) or []
            self._pulled: list[tuple[Tensor, Tensor]] = []
            if self.names:
                self._terms = self._of_guide()
                self._model_terms = self._of_theta()
                self._map = self._to_phi()

    def rows(self, estimator: Estimator) -> Tensor:
        """One rule's estimates ``(rows, 1 + P)``, columns as in :func:`estimators.replicates.flatten`."""
        if not self.names:
            return vectorised(estimator, self.model, self.parameters)(self.noise)
        given: list[bool] = []

        def rule(log_w: Tensor) -> tuple[Tensor, list[Tensor]]:
            _, parts = ruled(estimator, log_w)
            given[:] = [part is not None for part in parts]
            value = estimator.value(log_w)
            value = log_w.new_full((), torch.nan) if value is None else value.mean()
            return value, [part for part in parts if part is not None]

        with torch.no_grad():
            value, present = vmap(rule)(self.log_w.clone())
            left = iter(present)
            path, score, model = (next(left) if there else None for there in given)
            return torch.cat([value[:, None].to(self.log_w.dtype), self._theta(model), self._phi(path, score)], 1)

    def _of_guide(self) -> tuple[Tensor, Tensor]:
        """P_k and h_k by the guide's tensors, each ``(rows * points, K, size)``, and each by itself in memory."""
        own = {name: getattr(self.guide, name).detach() for name in self.names}
        if is_plain_gaussian(self.guide):
            return self._of_gaussian()

        def built(tensors: Block) -> Guide:
            return dataclasses.replace(self.guide, **tensors)  # type: ignore[type-var]

        def path(tensors: Block, one: Any, slope: Any) -> Tensor:
            z = built(tensors).transform(one)
            along = [(s * layer).sum() for s, layer in zip(tree_leaves(slope), tree_leaves(z), strict=True)]
            return torch.stack(along).sum() - built(own).log_prob(z).sum()

        def score(tensors: Block, held: Any) -> Tensor:
            return built(tensors).log_prob(held).sum()

        noise, slope, z = tree_map(lambda leaf: leaf.flatten(0, 1), (self.noise, self.slope, self.z))
        h = self._by_point(vmap(grad(score), (None, 0))(own, z))
        if not self.guide.reparameterizable:
            return torch.full_like(h, torch.nan), h
        return self._by_point(vmap(grad(path), (None, 0, 0))(own, noise, slope)), h

    def _of_gaussian(self) -> tuple[Tensor, Tensor]:
        """:meth:`_of_guide` written out: no graph, and fewer passes over the draws."""
        guide, noise = self.guide, self.noise
        assert isinstance(guide, DiagonalGaussian)
        scale = guide.scale
        of_loc = noise / scale
        path = self.slope + of_loc
        P = {"loc": lambda: path, "log_scale": lambda: path * (scale * noise)}
        h = {"loc": lambda: of_loc, "log_scale": lambda: noise * noise - 1}
        path_terms, scores = (self._by_point({name: term[name]() for name in self.names}) for term in (P, h))
        return path_terms, scores

    def _by_point(self, term: Block) -> Tensor:
        """``(rows * K, *batch, ...)`` of each tensor as ``(rows * points, K, size)``."""
        rows, K = self.count, self.num_samples
        flat = torch.cat([leaf.reshape(rows, K, self.points, -1) for leaf in term.values()], 3)
        return flat.transpose(1, 2).reshape(rows * self.points, K, -1)

    def _of_theta(self) -> Tensor | None:
        """t_k, ``(rows, K, size)``; ``None`` where there are several data points, or theta is larger than the draws."""
        theta = self.parameters["theta"]
        size = sum(leaf.numel() for leaf in theta.values())
        if self.points > 1 or size > max(64, self._terms[0].shape[2]):
            return None

        def model(theta: Block, z: Any) -> Tensor:
            return self.model.log_joint(theta, z).sum()

        found = vmap(grad(model), (None, 0))(theta, tree_map(lambda leaf: leaf.flatten(0, 1), self.z))
        flat = [leaf.reshape(self.count, self.num_samples, -1) for leaf in found.values()]
        return torch.cat(flat, 2) if flat else None

    def _theta(self, weights: Tensor | None) -> Tensor:
        """sum_k c_k t_k, ``(rows, size)``; where t_k are not kept, once for all rules of equal weights."""
        theta = self.parameters["theta"]
        if weights is None or not theta:
            return self.log_w.new_zeros(self.count, sum(leaf.numel() for leaf in theta.values()))
        if self._model_terms is not None:
            return (weights.reshape(self.count, 1, -1).contiguous() @ self._model_terms)[:, 0]
        for known, found in self._pulled:
            if torch.equal(known, weights):
                return found

        def weighted(theta: Block, weights: Tensor, z: Any) -> Tensor:
            return (weights * self.model.log_joint(theta, z)).sum()

        pulled = vmap(grad(weighted), (None, 0, 0))(theta, weights, self.z)
        flat = torch.cat([leaf.reshape(self.count, -1) for leaf in pulled.values()], 1)
        self._pulled.append((weights, flat))
        return flat

    def _tensors(self, phi: Block) -> Tensor:
        """The guide's tensors that move with phi, ``(points, size)``."""
        guide = self.model.guide(phi)
        return torch.cat([getattr(guide, name).reshape(self.points, -1) for name in self.names], 1)

    def _to_phi(self) -> Callable[[Tensor], Tensor]:
        """The linear map from ``(rows, points * size)`` to ``(rows, phi's size)``."""
        phi = self.parameters["phi"]
        made, pull_back = vjp(self._tensors, phi)  # type: ignore[misc]

        def pulled(rows: Tensor) -> Tensor:
            found = vmap(lambda row: pull_back(row.reshape(made.shape))[0])(rows)
            return torch.cat([leaf.reshape(len(rows), -1) for leaf in found.values()], 1)

        if made.numel() * sum(leaf.numel() for leaf in phi.values()) > LARGEST_MAP:
            return pulled
        matrix = pulled(torch.eye(made.numel(), dtype=made.dtype, device=made.device))
        return lambda rows: rows @ matrix

    def _phi(self, path: Tensor | None, score: Tensor | None) -> Tensor:
        """sum_k a_k P_k + b_k h_k, from the guide's tensors on to phi: ``(rows, size)``."""
        found: Tensor | None = None
        for weights, terms in zip((path, score), self._terms, strict=True):
            if weights is not None:
                by_point = weights.reshape(self.count, self.num_samples, -1).transpose(1, 2).reshape(len(terms), 1, -1)
                # Weights that are all the same are one number in memory, for which torch multiplies row by row.
                part = by_point.contiguous() @ terms
                found = part if found is None else found + part
        if found is None:
            return self.log_w.new_zeros(self.count, sum(leaf.numel() for leaf in self.parameters["phi"].values()))
        return self._map(found.reshape(self.count, -1))


def is_plain_gaussian(guide: Guide) -> bool:
    """Whether a guide's draws and density are those of :class:`~estimators.guides.DiagonalGaussian` itself."""
    return isinstance(guide, DiagonalGaussian) and all(
        getattr(type(guide), name) is getattr(DiagonalGaussian, name)
        for name in ("transform", "log_prob", "log_prob_transformed", "detach", "scale")
    )


def own_tensors(guide: Guide, phi: Block, model: LatentModel, batch: torch.Size) -> list[str] | None:
    """Fields of a guide that move with phi; ``None`` where it is not made of tensors ``(*batch, ...)`` alone."""
    if not dataclasses.is_dataclass(guide):
        return None
    values = {field.name: getattr(guide, field.name) for field in dataclasses.fields(guide)}
    if not all(isinstance(value, Tensor) and value.shape[: len(batch)] == batch for value in values.values()):
        return None
    with torch.enable_grad():
        alive = model.guide(tree_map(lambda leaf: leaf.detach().requires_grad_(), phi))
    names = [name for name in values if getattr(alive, name).requires_grad]
    return names or None
