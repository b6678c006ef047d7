"""Latent Gaussian processes: kernels, likelihoods, means, the targets `LatentGP` and `FullGP`, and methods."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["kernels", "likelihoods", "means", "scores"],
    submod_attrs={
        "full_bayes": ["FullGP"],
        "latent": ["LatentGP"],
        "method": ["DoubleKL", "VecchiaLaplace"],
        "posterior": ["LatentPosterior", "Prediction"],
        "site_methods": ["SVGP", "DenseGP", "StateSpaceGP"],
        "sites_posterior": ["SitesPosterior"],
        "stochastic": ["StochasticDoubleKL"],
        "sparse_posterior": ["SparsePosterior"],
    },
)
