"""Targets of the diffusion tests, with their scores in closed form."""

import numpy as np

from pushforward.samplers.diffusion.scores import GaussianScore, MixtureScore

FOUR_WEIGHTS = np.array([0.1, 0.2, 0.3, 0.4])
FOUR_MEANS = np.array([[0.0, 0.0], [0.0, 11.0], [9.0, 9.0], [11.0, 0.0]])
FOUR_COVARIANCES = np.array(
    [[[1, 0.5], [0.5, 1]], [[0.3, -0.2], [-0.2, 0.3]], [[1, 0.3], [0.3, 1]], [[1.2, -1], [-1, 1.2]]]
)


def four_modes():
    """The four modes of He, Rojas & Tao (2024), whitened by their exact moments, and the map back: loc, scale."""
    loc = FOUR_WEIGHTS @ FOUR_MEANS
    centred = FOUR_MEANS - loc
    covariance = np.einsum("k,kij->ij", FOUR_WEIGHTS, FOUR_COVARIANCES + centred[:, :, None] * centred[:, None, :])
    scale = np.linalg.cholesky(covariance)
    inverse = np.linalg.inv(scale)
    means = centred @ inverse.T
    covariances = inverse @ FOUR_COVARIANCES @ inverse.T
    covariances = 0.5 * (covariances + covariances.transpose(0, 2, 1))
    return MixtureScore.from_moments(FOUR_WEIGHTS, means, covariances), loc, scale


def two_modes(weights=(0.3, 0.7), stretch=1.0, widen=1.0):
    """Two modes in four dimensions, of mean 0 and about unit variances with the default weights; or wrong ones."""
    means = stretch * np.array([[-1.4, -1.0, 0.3, 0.0], [0.6, 3 / 7, -0.9 / 7, 0.0]])
    covariances = widen * np.array([np.diag([0.15, 0.5, 0.9, 1.0]), np.diag([0.25, 0.6, 1.0, 0.9])])
    covariances[1, 2, 3] = covariances[1, 3, 2] = widen * 0.3
    return MixtureScore.from_moments(weights, means, covariances)


def line():
    """.3 N(−2, .5²) + .7 N(1, .8²)."""
    return MixtureScore.from_moments([0.3, 0.7], [[-2.0], [1.0]], [[0.25], [0.64]])


def narrow():
    """N(.5, .4²)."""
    return GaussianScore.from_moments([0.5], [0.16])
