"""Pyro's losses for the one-sample bound, as estimators of this suite (:mod:`.pyro_loss`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from estimators import Draw, Guide, LatentModel, Parameters, Refusal, Target

from ..problems.problem import Problem
from ..randomness import own_randomness
from .pyro_loss import PyroLoss, latents, sites_of, traces

if TYPE_CHECKING:
    from pyro.infer import ELBO

Enumeration = Literal["parallel", "sequential", "none"]
AVERAGE = "__baseline_avg_downstream_cost_"
"""What Pyro calls the decaying averages in its store, before the name of the site."""


@dataclass(frozen=True)
class OneSample(PyroLoss):
    """Abstract: both blocks claim the ELBO."""

    family = "elbo"
    snr_slopes = {"theta": 0.5, "phi": 0.5}

    @property
    def targets(self) -> dict[str, Target | None]:
        return {"theta": Target("elbo"), "phi": Target("elbo")}


@dataclass(frozen=True)
class PyroTraceELBO(OneSample):
    """Pyro's `Trace_ELBO`: the reparameterised total derivative, and the score function where a site has none.

    .. math:: \\nabla K^{-1} \\sum_k \\log w(T_\\phi(\\epsilon_k)) \\quad \\text{or} \\quad
              K^{-1} \\sum_k \\log w_k \\, h_k

    References:
        Bingham et al. (2019); Kingma & Welling (2014); Ranganath, Gerrish & Blei (2014).
    """

    name = "pyro-trace-elbo"
    counterpart = "reparameterization"
    citations = ("bingham2019", "kingma2014", "ranganath2014")

    def beside(self, problem: Problem) -> str:
        return self.counterpart if "reparameterizable" in problem.offers else "score-function"

    def loss(self, **particles: Any) -> ELBO:
        from pyro.infer import Trace_ELBO

        return Trace_ELBO(**particles)


@dataclass(frozen=True)
class PyroTraceGraphELBO(OneSample):
    """Pyro's `TraceGraph_ELBO`: each discrete site's score meets only what lies downstream of it, less a baseline.

    .. math:: K^{-1} \\sum_k \\sum_i (\\log w_k^{(i)} - b_i) \\, h_k^{(i)}

    with log w^(i) the terms that depend on site i. Reparameterised sites take their total derivative. What a guide's sites
    say of baselines themselves is heeded.

    Arguments:
        num_samples: K.
        baseline: ``average`` asks every site for the decaying average of its downstream cost, one for each particle and
            data point, which starts as it stands after 64 draws and moves on with every estimate; ``none`` asks for
            nothing.
        decay: of that average.

    References:
        Bingham et al. (2019); Schulman, Heess, Weber & Abbeel (2015); Mnih & Gregor (2014).
    """

    baseline: str = "none"
    decay: float = 0.9

    name = "pyro-trace-graph-elbo"
    citations = ("bingham2019", "schulman2015", "mnih2014")
    WARM = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.baseline not in ("none", "average"):
            raise Refusal(f"{self.label()} takes baseline=none|average, not {self.baseline!r}")
        if not 0 <= self.decay < 1:
            raise Refusal(f"{self.label()} takes decay from 0 to below 1, not {self.decay}")

    @property
    def counterpart(self) -> str:  # type: ignore[override]
        return "moving-average-baseline" if self.baseline == "average" else "score-function"

    @property
    def warm_up(self) -> int:  # type: ignore[override]
        return 1 if self.baseline == "average" else 0

    def beside(self, problem: Problem) -> str:
        return "reparameterization" if "reparameterizable" in problem.offers else self.counterpart

    def loss(self, **particles: Any) -> ELBO:
        from pyro.infer import TraceGraph_ELBO

        return TraceGraph_ELBO(**particles)

    def programs(self, model: Any, guide: Any) -> tuple[Any, Any]:
        if self.baseline == "none":
            return model, guide
        import pyro

        asked = {"use_decaying_avg_baseline": True, "baseline_beta": self.decay}
        return model, pyro.poutine.infer_config(
            guide, lambda site: {"baseline": asked, **site["infer"]} if site["type"] == "sample" else {}
        )

    def prepared(self, problem: Problem, leaves: Parameters) -> None:
        import pyro

        for name, average in (self.state or {}).items():
            pyro.get_param_store()[AVERAGE + name] = average.clone()

    def draws(self, guide: Guide, replicates: int, generator: torch.Generator) -> list[Draw]:
        """Seeds, for :meth:`adapted` alone."""
        seeds = torch.randint(2**62, (replicates, 1), generator=generator, device=generator.device)
        return [Draw(torch.arange(replicates), seeds)]

    def adapted(self, model: LatentModel, parameters: Parameters, noise: Any) -> PyroTraceGraphELBO:
        import pyro

        assert isinstance(model, Problem)
        with own_randomness(int(noise), model.data.device):
            for _, _ in zip(range(self.WARM), estimates := self.estimates(model, parameters), strict=False):
                store = pyro.get_param_store()
                averages = {
                    name.removeprefix(AVERAGE): store[name].detach().clone()
                    for name in store.keys()  # noqa: SIM118 (it is no dict)
                    if name.startswith(AVERAGE)
                }
            estimates.close()
        return replace(self, state=averages)


@dataclass(frozen=True)
class PyroTraceMeanFieldELBO(OneSample):
    """Pyro's `TraceMeanField_ELBO`: reparameterised likelihood, closed-form KL to the prior where there is one.

    .. math:: \\nabla \\{ K^{-1} \\sum_k \\log p_\\theta(x | T_\\phi(\\epsilon_k)) - KL(q_\\phi \\| p_\\theta(z)) \\}

    Warning:
        The same KL is computed once for every particle. Pyro warns, and no more, where a guide's sites are not in the
        model's order: the KL of one site given another is then taken in the wrong direction. Such problems are refused.

    References:
        Bingham et al. (2019); Kingma & Welling (2014), appendix B.
    """

    name = "pyro-trace-mean-field-elbo"
    counterpart = "reparameterization-analytic-kl"
    citations = ("bingham2019", "kingma2014")
    needs = frozenset({"reparameterizable"})

    def beside(self, problem: Problem) -> str:
        return self.counterpart if "analytic_kl" in problem.offers else "reparameterization"

    def objection(self, problem: Problem) -> str | None:
        if len(sites_of(problem)) == 1:
            return None
        guide, model = traces(problem)
        order = [name for name in latents(model) if name in latents(guide)]
        if order == list(latents(guide)):
            return None
        return f"the guide draws {', '.join(latents(guide))} and the model {', '.join(order)}, in another order"

    def loss(self, **particles: Any) -> ELBO:
        from pyro.infer import TraceMeanField_ELBO

        return TraceMeanField_ELBO(**particles)


@dataclass(frozen=True)
class PyroTraceEnumELBO(OneSample):
    """Pyro's `TraceEnum_ELBO`: discrete sites of the guide are summed over, others as in `Trace_ELBO`.

    .. math:: \\nabla \\sum_z q_\\phi(z) \\log w(z)

    Arguments:
        num_samples: K particles, which are all alike where every site is summed over.
        enumeration: ``parallel`` or ``sequential``; with ``none`` nothing is, and the score function's surrogate keeps the
            term -h, of mean zero, that `Trace_ELBO` drops.

    References:
        Bingham et al. (2019); Foerster et al. (2018).
    """

    enumeration: str = "parallel"

    name = "pyro-trace-enum-elbo"
    citations = ("bingham2019", "foerster2018")
    snr_slopes = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.enumeration not in ("parallel", "sequential", "none"):
            raise Refusal(f"{self.label()} takes enumeration=parallel|sequential|none, not {self.enumeration!r}")

    @property
    def counterpart(self) -> str:  # type: ignore[override]
        return "score-function" if self.enumeration == "none" else "enumeration"

    def beside(self, problem: Problem) -> str:
        return "reparameterization" if "reparameterizable" in problem.offers else self.counterpart

    def loss(self, **particles: Any) -> ELBO:
        from pyro.infer import TraceEnum_ELBO

        return TraceEnum_ELBO(strict_enumeration_warning=False, **particles)

    def programs(self, model: Any, guide: Any) -> tuple[Any, Any]:
        if self.enumeration == "none":
            return model, guide
        from pyro.infer import config_enumerate

        return model, config_enumerate(guide, default=self.enumeration)
