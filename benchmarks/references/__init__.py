"""Exact truth against which estimators are measured: closed forms and quadrature in float64.

What is imported here needs numpy and scipy alone:

`linear_gaussian`  closed forms of the linear Gaussian model: bounds, gradients, one-sample variances.
`gaussian_iwae`    a 1-D Gaussian posterior: IWAE-K bounds and the moments of its gradient estimators, for any K.
`rainforth`        the isotropic Gaussian toy of Rainforth et al. 2018: exact signal-to-noise ratios, for any K.
"""

from .gaussian_iwae import GaussianIWAE, Moment
from .linear_gaussian import LinearGaussian
from .rainforth import Block, Rainforth
from .self_normalized import Exact, QuadratureError

__all__ = ["Block", "Exact", "GaussianIWAE", "LinearGaussian", "Moment", "QuadratureError", "Rainforth"]
