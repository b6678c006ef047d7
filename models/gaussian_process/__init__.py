"""Latent Gaussian processes: kernels, likelihoods, means, the target `LatentGP`, and what `DoubleKL` makes of it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["kernels", "likelihoods", "means"],
    submod_attrs={
        "latent": ["LatentGP"],
        "method": ["DoubleKL"],
        "posterior": ["LatentPosterior", "Prediction"],
    },
)
