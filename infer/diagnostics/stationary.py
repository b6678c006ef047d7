"""The stationary law of a Markov kernel without Monte Carlo: what an approximate sampler samples exactly.

A kernel whose proposal is normal in some coordinate w (the position, or a mirror's dual) becomes a matrix on a grid of
w; its left eigenvector of eigenvalue one is the stationary law. No Monte Carlo is involved, so that a sampler's bias
is known to four digits, which tells a right kernel from one with a wrong noise, a lost log-determinant or a stale
gradient.

In any dimension a kernel that is affine in its state, z⁺ = A z + B ξ, has the stationary covariance Σ = A Σ Aᵀ + B Bᵀ:
on Gaussian targets that of every Langevin scheme, its metric, its splitting and its dual variables included.

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
    kernel = _proposal(mean, sd, grid)
    if log_ratio is None:
        kernel /= kernel.sum(1, keepdims=True)
    else:
        kernel *= _accepted(log_ratio)
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


def stationary_acceptance(mean: np.ndarray, sd: np.ndarray, grid: np.ndarray, log_ratio: np.ndarray) -> float:
    """Mean acceptance probability under the stationary law; arguments as of `stationary_law`."""
    law = stationary_law(mean, sd, grid, log_ratio)
    mean, sd, grid = (np.asarray(x, float) for x in (mean, sd, grid))
    return float(law @ np.sum(_proposal(mean, sd, grid) * _accepted(log_ratio), axis=1))


def stationary_covariance(transition: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Covariance Σ = A Σ Aᵀ + B Bᵀ of z⁺ = A z + B ξ, ξ ~ N(0, I).

    Parameters
    ----------
    transition
        A, shape (n, n).
    noise
        B, shape (n, m).

    Raises
    ------
    InvalidArgument
        A has an eigenvalue of size ≥ 1: the kernel has no stationary law.
    """
    from scipy.linalg import solve_discrete_lyapunov

    transition, noise = np.asarray(transition, float), np.asarray(noise, float)
    radius = np.abs(np.linalg.eigvals(transition)).max()
    if radius >= 1:
        raise InvalidArgument(f"transition has an eigenvalue of size {radius:.4g}; a stationary law needs all below 1.")
    return solve_discrete_lyapunov(transition, noise @ noise.T)


def _proposal(mean: np.ndarray, sd: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Probabilities of the proposal from point i to cell j."""
    spacing = grid[1] - grid[0]
    return np.exp(-0.5 * ((grid[None] - mean[:, None]) / sd[:, None]) ** 2) * (
        spacing / (sd[:, None] * np.sqrt(2 * np.pi))
    )


def _accepted(log_ratio: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(np.nan_to_num(log_ratio, nan=-np.inf), 0.0))
