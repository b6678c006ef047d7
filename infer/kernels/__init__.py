"""Kernels of particle methods and discrepancies, and their sums over pairs of points, streamed in tiles."""
