"""Latent Gaussian processes: kernels, likelihoods, means, the targets `LatentGP` and `FullGP`, and `DoubleKL`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["kernels", "likelihoods", "means"],
    submod_attrs={
        "full_bayes": ["FullGP"],
        "latent": ["LatentGP"],
        "method": ["DoubleKL"],
        "posterior": ["LatentPosterior", "Prediction"],
    },
)
