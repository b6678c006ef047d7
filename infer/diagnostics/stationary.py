"""The stationary law of a one-dimensional Markov kernel, by quadrature: what an approximate sampler samples exactly.

A kernel whose proposal is normal in some coordinate w (the position, or a mirror's dual) becomes a matrix on a grid of
w; its left eigenvector of eigenvalue one is the stationary law. No Monte Carlo is involved, so that a sampler's bias
is known to four digits, which tells a right kernel from one with a wrong noise, a lost log-determinant or a stale
gradient.

Cost: O(n²) memory and O(n³) time for n grid points; 1,000 are enough for four digits where the standard deviation of
the proposal is ten grid spacings.
"""

from collections.abc import Callable

import numpy as np

from ..errors import InvalidArgument


def stationary_law(
    mean: np.ndarray, sd: np.ndarray, grid: np.ndarray, log_ratio: np.ndarray | None = None
) -> np.ndarray:
    """Probabilities of the grid points under the stationary law.

    Parameters
    ----------
    mean, sd
        Of the proposal from each grid point, shape (n,), in the coordinate of the grid.
    grid
        Equally spaced points, shape (n,), that cover all but a negligible part of the law and of its proposals.
    log_ratio
        Log of the Metropolis ratio from point i to point j, shape (n, n); None if every proposal is taken. What is
        proposed outside of the grid is rejected with it, and folded back by renormalisation without.

    Returns
    -------
    numpy.ndarray
        Shape (n,), summing to one.
    """
    mean, sd, grid = (np.asarray(x, float) for x in (mean, sd, grid))
    if not (mean.shape == sd.shape == grid.shape) or grid.ndim != 1:
        raise InvalidArgument(
            f"mean, sd and grid must be vectors of one length, got {mean.shape}, {sd.shape}, {grid.shape}."
        )
    spacing = grid[1] - grid[0]
    kernel = np.exp(-0.5 * ((grid[None] - mean[:, None]) / sd[:, None]) ** 2) * (
        spacing / (sd[:, None] * np.sqrt(2 * np.pi))
    )
    if log_ratio is None:
        kernel /= kernel.sum(1, keepdims=True)
    else:
        kernel *= np.exp(np.minimum(np.nan_to_num(log_ratio, nan=-np.inf), 0.0))
        np.fill_diagonal(kernel, 0.0)
        np.fill_diagonal(kernel, 1.0 - kernel.sum(1))
    # π (P − I) = 0, with one equation replaced by Σ π = 1.
    system = kernel.T - np.eye(len(grid))
    system[-1] = 1.0
    law = np.linalg.solve(system, np.eye(len(grid))[-1])
    return law / law.sum()


def stationary_moments(
    mean: np.ndarray,
    sd: np.ndarray,
    grid: np.ndarray,
    values: np.ndarray,
    functions: Callable[[np.ndarray], np.ndarray],
    log_ratio: np.ndarray | None = None,
) -> np.ndarray:
    """Expectations of ``functions(values)``, shape (…, n), under the stationary law; ``values`` are x on the grid."""
    return np.asarray(functions(np.asarray(values))) @ stationary_law(mean, sd, grid, log_ratio)
