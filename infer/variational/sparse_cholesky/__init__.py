"""Gaussians whose precision has a sparse Cholesky factor: ordering, pattern, factors and solves."""
