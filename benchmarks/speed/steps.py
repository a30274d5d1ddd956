"""One training step of Burda's one-layer network as others write it: by hand in torch, and in Pyro."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.images import Images
from benchmarks.problems.vae import Decoder, Encoder, initial_parameters

BATCH, HIDDEN, LATENT, PIXELS = 100, 200, 50, 784


def images() -> Images:
    grey = torch.rand(2000, PIXELS, generator=torch.Generator().manual_seed(0)) * 0.3
    return Images(grey, (grey[:100] > 0.15).float(), 28)


class ByHand:
    """What one writes for this model and this objective, without any abstraction."""

    def __init__(self, num_samples: int, **adam: bool) -> None:
        self.num_samples = num_samples
        self.images = images().train
        self.generator = torch.Generator().manual_seed(0)
        found = initial_parameters(HIDDEN, LATENT, self.images.mean(0), self.generator)
        self.blocks = {b: {k: v.requires_grad_() for k, v in leaves.items()} for b, leaves in found.items()}
        self.leaves = [leaf for block in self.blocks.values() for leaf in block.values()]
        self.adam = torch.optim.Adam(self.leaves, lr=1e-3, eps=1e-4, **adam)

    def bound(self, x: Tensor, eps: Tensor) -> Tensor:
        e, d = self.blocks["phi"], self.blocks["theta"]
        h = torch.tanh(functional.linear(x, e["first.weight"], e["first.bias"]))
        h = torch.tanh(functional.linear(h, e["second.weight"], e["second.bias"]))
        loc = functional.linear(h, e["loc.weight"], e["loc.bias"])
        log_scale = functional.linear(h, e["log_scale.weight"], e["log_scale.bias"])
        z = loc + log_scale.exp() * eps
        h = torch.tanh(functional.linear(z, d["first.weight"], d["first.bias"]))
        h = torch.tanh(functional.linear(h, d["second.weight"], d["second.bias"]))
        logits = functional.linear(h, d["logits.weight"], d["logits.bias"])
        fit = -functional.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        log_w = fit - 0.5 * z.square().sum(-1) + 0.5 * eps.square().sum(-1) + log_scale.sum(-1)
        return (log_w.logsumexp(0) - math.log(len(eps))).mean()

    def step(self) -> None:
        rows = torch.randint(len(self.images), (BATCH,), generator=self.generator)
        x = torch.bernoulli(self.images[rows], generator=self.generator)
        self.adam.zero_grad()
        (-self.bound(x, torch.randn(self.num_samples, BATCH, LATENT, generator=self.generator))).backward()
        self.adam.step()


class ByPyro:
    """The same model, guide and bound in Pyro: ``RenyiELBO(alpha=0)`` with vectorised particles, validation off."""

    def __init__(self, num_samples: int) -> None:
        self.images = images().train
        self.generator = torch.Generator().manual_seed(0)
        self.decoder, self.encoder = Decoder(LATENT, HIDDEN, PIXELS), Encoder(PIXELS, HIDDEN, LATENT)
        found = initial_parameters(HIDDEN, LATENT, self.images.mean(0), self.generator)
        self.decoder.load_state_dict(found["theta"])
        self.encoder.load_state_dict(found["phi"])
        pyro.clear_param_store()
        pyro.enable_validation(False)
        self.loss = pyro.infer.RenyiELBO(
            alpha=0, num_particles=num_samples, vectorize_particles=True, max_plate_nesting=1
        )
        adam = pyro.optim.Adam({"lr": 1e-3, "eps": 1e-4})
        self.svi = pyro.infer.SVI(self.model, self.guide, adam, self.loss)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("images", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(x)
        with pyro.plate("images", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def step(self) -> None:
        rows = torch.randint(len(self.images), (BATCH,), generator=self.generator)
        self.svi.step(torch.bernoulli(self.images[rows], generator=self.generator))
