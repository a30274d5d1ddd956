"""Relatives of the doubly reparameterised gradient: one that is renormalised, and one with learnt control variates.

Notation as in :mod:`estimators.multisample`; Z_{-k} is the sum of the weights of all samples but the k-th.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from .contract import Block, LatentModel, Parameters, Target, Weights
from .multisample import ImportanceWeighted
from .subsets import logsumexp_of_others

CONTRASTS = 4
RIDGE = 1e-6
"""Of the least squares, in units of each contrast: one may be a multiple of another."""


@dataclass(frozen=True)
class DReGNorm(ImportanceWeighted):
    """Doubly reparameterised gradient with its squared weights normalised (DReG-norm).

    .. math:: \\frac{\\sum_k \\tilde w_k^2 P_k}{\\sum_k \\tilde w_k^2} \\quad (\\phi), \\qquad
              \\sum_k \\tilde w_k t_k \\quad (\\theta)

    Warning:
        Biased for L_K: the weights of phi sum to one where ``dreg``'s sum to about 1/K, so it is of K times the length, and
        of another direction too, since the divisor is random and depends on the samples.

    References:
        Tucker, Lawson, Gu & Maddison (2019), in their published code.

    Example:
        >>> DReGNorm(num_samples=2).weights(torch.tensor([0.0, 0.0])).path
        tensor([0.5000, 0.5000])
    """

    name = "dreg-norm"
    citations = ("tucker2019",)

    @property
    def targets(self) -> dict[str, Target | None]:
        K = self.num_samples
        return {"theta": Target("iwae", K), "phi": Target("iwae", K, unbiased=K == 1)}

    def weights(self, log_w: Tensor) -> Weights:
        return Weights(path=(2 * log_w).softmax(0), score=None, model=log_w.softmax(0))


@dataclass(frozen=True)
class DReGControlVariate(ImportanceWeighted):
    """Doubly reparameterised gradient less the best multiples of four contrasts of mean zero (DReG-CV).

    .. math:: \\sum_k \\tilde w_k^2 P_k + \\sum_{i=1}^{4} c_i f_i, \\qquad
              f_1 = \\sum_k (\\log Z - \\log Z_{-k}) h_k - \\tilde w_k P_k, \\quad
              f_2 = \\sum_k (\\tilde w_k - \\tilde w_k^2) P_k - \\tilde w_k h_k, \\quad
              f_3 = \\sum_k \\log Z_{-k} \\, h_k, \\quad
              f_4 = K^{-1} \\sum_k h_k

    c = 0 is ``dreg``, (0, 1, 0, 0) ``iwae``, (1, 1, 0, 0) ``ovis``, and all between is as unbiased. The c of least variance
    solves the least squares of dreg's noise on the contrasts', summed over phi; it is learnt from earlier draws, as a ratio
    of averages, and the same for all coordinates.

    Arguments:
        num_samples: K >= 2.

    Warning:
        With c from the same draw the estimate is biased. The published code steps down the squared norm in four coefficients
        that enter as products; here the same family is parameterised linearly, and so is solved and not searched.

    References:
        Tucker, Lawson, Gu & Maddison (2019), in their published code.

    Example:
        >>> DReGControlVariate().weights(torch.tensor([0.0, 0.0])).path
        tensor([0.2500, 0.2500])
    """

    num_samples: int = 2

    name = "dreg-cv"
    citations = ("tucker2019",)
    min_num_samples = 2
    warm_up = 100
    snr_slopes = {"theta": 0.5}

    def weights(self, log_w: Tensor) -> Weights:
        w = log_w.softmax(0)
        if self.state is None:
            return Weights(path=w.square(), score=None, model=w)
        c = self.state["coefficients"].to(log_w)
        others = logsumexp_of_others(log_w)  # log Z_-k
        path = w.square() - c[0] * w + c[1] * (w - w.square())
        score = c[0] * (log_w.logsumexp(0) - others) - c[1] * w + c[2] * others + c[3] / self.num_samples
        return Weights(path=path, score=score, model=w)

    def adapted(self, model: LatentModel, parameters: Parameters, noise: Any) -> DReGControlVariate:
        like = next(iter(parameters["phi"].values()))
        # The estimate is affine in c: its value at zero and at each axis gives dreg and the contrasts.
        corners = torch.cat([like.new_zeros(1, CONTRASTS), torch.eye(CONTRASTS).to(like)])

        def at(coefficients: Tensor) -> Block:
            return replace(self, state={"coefficients": coefficients}).gradient(model, parameters, noise).phi

        rows = torch.cat([leaf.reshape(len(corners), -1) for leaf in vmap(at)(corners).values()], 1)
        terms = torch.cat([rows[:1], rows[1:] - rows[:1]])
        moments = terms @ terms.T  # sums over phi of the products of dreg and the contrasts
        if self.state is not None:
            moments = moments + self.state["moments"]
        return replace(self, state={"coefficients": _least_squares(moments), "moments": moments})


def _least_squares(moments: Tensor) -> Tensor:
    """The c of least expected square of term 0 plus c times the others, from their summed products ``(5, 5)``."""
    among, along = moments[1:, 1:], moments[1:, 0]
    unit = among.diagonal().clamp_min(torch.finfo(moments.dtype).tiny).sqrt()
    alike = among / (unit[:, None] * unit) + RIDGE * torch.eye(CONTRASTS).to(among)
    return -torch.linalg.solve(alike, along / unit) / unit
