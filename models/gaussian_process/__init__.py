"""Latent Gaussian processes: kernels, likelihoods, the target, and the method that fits only it."""
