"""What one gradient estimate costs: evaluations of log p(x, z), FLOPs, bytes, seconds.

Evaluations, FLOPs and bytes are counted on single estimates, so they do not depend on the machine or on the chunk. What a
device measures itself is in :mod:`benchmarks.devices`.
"""

from __future__ import annotations

import statistics
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from estimators import Block, Estimator, Guide, LatentModel, Parameters

from . import devices
from .schema import Cost


class CountingModel(LatentModel):
    """A model that counts how many values of log p(x, z) were asked for, data points counted singly."""

    def __init__(self, model: LatentModel) -> None:
        self.model = model
        self.offers = model.offers
        self.evaluations = 0

    def _count(self, log_p: Tensor) -> Tensor:
        self.evaluations += log_p.numel()
        return log_p

    def log_joint(self, theta: Block, z: Tensor) -> Tensor:
        return self._count(self.model.log_joint(theta, z))

    def log_likelihood(self, theta: Block, z: Tensor) -> Tensor:
        return self._count(self.model.log_likelihood(theta, z))

    def guide(self, phi: Block) -> Guide:
        return self.model.guide(phi)

    @property
    def data(self) -> Tensor:
        return self.model.data

    def simulate(self, theta: Block, noise: Any) -> tuple[Any, LatentModel]:
        return self.model.simulate(theta, noise)

    def prior(self, theta: Block) -> Guide:
        return self.model.prior(theta)


class Meter(TorchDispatchMode):
    """Counts FLOPs, bytes read and written, and the peak of bytes alive that were made inside.

    FLOPs are torch's own counts for matrix products and the like, and one per element of each pointwise operation. Bytes
    are those of every operation's tensors, as if nothing stayed in a cache or was fused: views move none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.moved = 0
        self.alive = 0
        self.peak = 0
        self._seen: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor)]
        product = flop_registry.get(func.overloadpacket)
        if product is not None:
            self.flops += product(*args, **(kwargs or {}), out_val=out)
        elif torch.Tag.pointwise in func.tags:
            self.flops += sum(t.numel() for t in made)
        given = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        theirs = {t.untyped_storage()._cdata for t in given}
        fresh = [t for t in made if t.untyped_storage()._cdata not in theirs]  # no view, nor written in place
        for tensor in fresh:
            self._watch(tensor)
        if fresh or func._schema.is_mutable:
            self.moved += sum(min(t.nbytes, t.untyped_storage().nbytes()) for t in (*given, *made))
        return out

    def _watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen[key] = size
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.alive -= self._seen.pop(key, 0)


def count(estimator: Estimator, model: LatentModel, parameters: Parameters, generator: torch.Generator) -> Cost:
    """Exact evaluations, FLOPs and peak bytes of one estimate; the mean over 256 draws where the cost is random.

    FLOPs as :class:`Meter` counts them.
    """
    with torch.no_grad():
        guide = model.guide(parameters["phi"])
    draws = estimator.draws(guide, 1, generator)
    if estimator.random_cost:
        draws = estimator.draws(guide, 256, generator)
    rows = sum(len(draw.rows) for draw in draws)
    evaluations = flops = moved = 0.0
    peak = 0
    for draw in draws:
        counting = CountingModel(model)
        noise = torch.utils._pytree.tree_map(lambda leaf: leaf[0], draw.noise)
        meter = metered(lambda counting=counting, noise=noise: estimator.gradient(counting, parameters, noise))
        share = len(draw.rows) / rows
        evaluations += share * counting.evaluations
        flops += share * meter.flops
        moved += share * meter.moved
        peak = max(peak, meter.peak)
    return Cost(
        evaluations_per_gradient=evaluations, flops_per_gradient=flops, bytes_moved_per_gradient=moved, peak_bytes=peak
    )


def metered(work: Callable[[], Any]) -> Meter:
    """What ``work`` takes: FLOPs, bytes moved, and the peak of bytes that it keeps alive."""
    with Meter() as meter:
        work()
    return meter


def seconds(
    work: Callable[[], Any], device: str, *, least: int = 7, budget: float = 0.05
) -> tuple[float, tuple[float, float]]:
    """Median seconds of ``work``, which has run before, and a 95 % interval of that median.

    At least ``least`` runs, more until ``budget`` seconds are spent. The interval is the distribution-free one from order
    statistics; with seven runs it is their whole range.
    """
    from scipy import stats  # a second of imports, which whoever only lists things need not wait for

    taken: list[float] = []
    while len(taken) < least or (sum(taken) < budget and len(taken) < 200):
        taken.append(devices.seconds(work, device))
    taken.sort()
    n = len(taken)
    low = int(stats.binom.ppf(0.025, n, 0.5))
    return statistics.median(taken), (taken[max(low - 1, 0)], taken[min(n - low, n - 1)])
