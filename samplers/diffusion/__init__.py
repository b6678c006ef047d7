"""Sampling by the probability-flow ODE of a diffusion: schedules, scores, solvers, exact densities."""
