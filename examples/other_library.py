"""Another library's gradient estimators in the suite, through one class: how to compare Storchastic, or one's own.

    gradest check examples/other_library.py:Theirs
    gradest check 'examples/other_library.py:Theirs[include_itself=true]'
    gradest run --plugin examples/other_library.py -p 'sigmoid-belief-net[dim=2]' -e Theirs -e leave-one-out --num-samples 4

The "library" below stands for any that draws its own samples and leaves gradients in ``.grad``, in steps that nobody can
vectorise. It offers the score function with the batch's mean as baseline, in two ways of which one is wrong.
"""

from dataclasses import dataclass

import torch
from torch.distributions import Bernoulli

from benchmarks.references.loop import LoopEstimator
from estimators import Gradient, Target


class Library:
    """Someone else's code: a surrogate loss for minimisation, summed over data points."""

    @staticmethod
    def surrogate(cost, log_prob, include_itself):
        """``cost`` (K, points) is minus log w; each sample's baseline is the mean of the others, or of all."""
        K = len(cost)
        baseline = cost.mean(0) if include_itself else (cost.sum(0) - cost) / (K - 1)
        return (cost + (cost - baseline).detach() * log_prob - log_prob).mean(0).sum()


@dataclass(frozen=True)
class Theirs(LoopEstimator):
    """The other library's score function with a baseline, on guides that are products of Bernoulli variables.

    Arguments:
        num_samples: K.
        include_itself: whether a sample's own cost is in its baseline, which leaves (K - 1)/K of the gradient: an adaptive
            optimiser hides that.
    """

    include_itself: bool = False

    library = "other"
    family = "elbo"
    counterpart = "leave-one-out"  # of this suite, shown beside it in the report
    needs = frozenset({"bernoulli"})
    min_num_samples = 2

    @property
    def targets(self):
        return {"theta": Target("elbo"), "phi": Target("elbo")}

    def estimates(self, problem, parameters):
        """Without end: gradients uphill, of the mean over data points, from torch's global generator."""
        leaves = {
            block: {name: leaf.detach().clone().requires_grad_() for name, leaf in of.items()}
            for block, of in parameters.items()
        }
        points = len(problem.data)
        while True:
            for leaf in (*leaves["theta"].values(), *leaves["phi"].values()):
                leaf.grad = None
            guide = problem.guide(leaves["phi"])
            with torch.no_grad():
                z = Bernoulli(logits=leaves["phi"]["logits"]).sample((self.num_samples,))
            log_prob = guide.log_prob(z)
            cost = log_prob - problem.log_joint(leaves["theta"], z)
            Library.surrogate(cost, log_prob, self.include_itself).backward()
            theta, phi = ({name: -leaf.grad / points for name, leaf in leaves[b].items()} for b in ("theta", "phi"))
            yield Gradient(-cost.detach().mean(), theta, phi)

    def evaluations(self, problem, parameters):
        return self.num_samples * len(problem.data)
