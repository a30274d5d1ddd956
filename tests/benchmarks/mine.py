"""A plug-in with estimators that are right, wrong, noisy and broken: what `gradest check` is tried on."""

import torch

from estimators import Estimator, Target, Weights


class IWAE(Estimator):
    needs = frozenset({"reparameterizable"})

    @property
    def targets(self):
        return dict.fromkeys(("theta", "phi"), Target("iwae", self.num_samples))

    def weights(self, log_w):
        w = log_w.softmax(0)
        return Weights(w, -w, w)


class DReG(IWAE):
    def weights(self, log_w):
        w = log_w.softmax(0)
        return Weights(w**2, None, w)


class DRegWithoutTheSquare(IWAE):
    def weights(self, log_w):
        w = log_w.softmax(0)
        return Weights(w, None, w)


class ThetaSquared(IWAE):
    def weights(self, log_w):
        w = log_w.softmax(0)
        return Weights(w**2, None, w**2)


class ForgottenFactor(IWAE):
    def weights(self, log_w):
        w = log_w.softmax(0) / self.num_samples
        return Weights(w, -w, w)


class TenthTooMuch(IWAE):
    def weights(self, log_w):
        w = log_w.softmax(0)
        return Weights(1.1 * w, -1.1 * w, w)


class DescendsPhi(IWAE):
    def weights(self, log_w):
        w = log_w.softmax(0)
        return Weights(-w, w, w)


class ElboInName(IWAE):
    "Right, for another target than it says."

    @property
    def targets(self):
        return dict.fromkeys(("theta", "phi"), Target("elbo"))


class Elbo(ElboInName):
    def weights(self, log_w):
        K = self.num_samples
        return Weights(1 / K, -1 / K, 1 / K)


class WrongValue(Elbo):
    def value(self, log_w):
        return log_w.mean(0) + 0.5


class DividedByK(Elbo):
    needs = frozenset()

    def weights(self, log_w):
        K = self.num_samples
        return Weights(None, (log_w - log_w.mean(0)) / K, 1 / K)


class LeaveOneOut(DividedByK):
    def weights(self, log_w):
        K = self.num_samples
        return Weights(None, (log_w - log_w.mean(0)) / (K - 1), 1 / K)


class ThetaAlone(IWAE):
    @property
    def targets(self):
        return {"theta": Target("elbo"), "phi": None}

    def weights(self, log_w):
        return Weights(None, None, 1 / self.num_samples)


class NotANumber(Elbo):
    def weights(self, log_w):
        return Weights(torch.ones_like(log_w).masked_fill(log_w > log_w.mean(0) + 1, torch.nan), None, 1.0)


class RawWeights(Elbo):
    "Normalised by nothing: Var(w) is infinite where q is much narrower than the posterior."

    def weights(self, log_w):
        w = log_w.exp()
        return Weights(w, None, w)


class Undecided(Elbo):
    "Right, and too noisy for the draws that it is given."

    def weights(self, log_w):
        return Weights(None, (log_w + 1e4) / self.num_samples, 1 / self.num_samples)


class Unsuited(Elbo):
    needs = frozenset({"bernoulli"})


class Fails(Elbo):
    def weights(self, log_w):
        raise RuntimeError("first\nsecond")


class Misshapen(Elbo):
    def weights(self, log_w):
        return Weights(torch.ones(7, dtype=log_w.dtype), None, 1.0)


def rule(log_w):
    w = log_w.softmax(0)
    return w**2, None, w


def short(log_w):
    return log_w.softmax(0), None
