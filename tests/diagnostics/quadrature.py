"""Expectations under normals as sums over few weighted points."""

import itertools

import numpy as np


def hermite(mean, sd, dim, size):
    """Nodes and weights of a product Gauss–Hermite rule for N(mean, sd² I)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(size)
    points = np.array(list(itertools.product(nodes, repeat=dim))) * sd + np.asarray(mean, float)
    return points, np.prod(list(itertools.product(weights / weights.sum(), repeat=dim)), axis=1)
