"""A Pyro model as its user wrote it; the suite changes nothing in it.

gradest check dreg -p 'pyro[model=examples/eight_schools.py:model,q=AutoNormal,args=examples/eight_schools.py:data]'
"""

import pyro
import pyro.distributions as dist
import torch

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def data():
    """The arguments of model and guide."""
    return EFFECTS, ERRORS


def model(effects, errors):
    """Coaching effects in eight schools (Rubin, 1981)."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.LogNormal(1.0, 0.5))
    with pyro.plate("schools", len(effects)):
        effect = pyro.sample("effect", dist.Normal(mean, spread))
        pyro.sample("observed", dist.Normal(effect, errors), obs=effects)
