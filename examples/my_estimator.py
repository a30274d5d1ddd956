"""Estimators of one's own, as ``gradest check`` takes them: right, wrong, and as a bare function.

gradest check examples/my_estimator.py:Mine
gradest check examples/my_estimator.py:Mistaken
gradest check examples/my_estimator.py:squared --target iwae
"""

from estimators import Estimator, Target, Weights


class Mine(Estimator):
    """Half the total derivative of IWAE, half the doubly reparameterised gradient.

    Both are unbiased for the gradient of the bound of K samples, so any fixed mixture of them is.
    """

    needs = frozenset({"reparameterizable"})

    @property
    def targets(self):
        target = Target("iwae", self.num_samples)
        return {"theta": target, "phi": target}

    def weights(self, log_w):
        w = log_w.softmax(0)
        return Weights(path=(w + w**2) / 2, score=-w / 2, model=w)


class Mistaken(Mine):
    """The same, with the squared weights given to theta as well: biased, a mistake found in published code."""

    def weights(self, log_w):
        w = log_w.softmax(0)
        return Weights(path=(w + w**2) / 2, score=-w / 2, model=w**2)


def squared(log_w):
    """The doubly reparameterised gradient as a bare rule: weights of path, score and model."""
    w = log_w.softmax(0)
    return w**2, None, w
