"""Networks with a Bayesian last layer: heads, the target `LastLayer`, and their closed forms."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "approximation": ["LastLayerApproximation", "Uncertainty"],
        "discriminative": ["SoftmaxHead"],
        "generative": ["GenerativeHead"],
        "model": ["LastLayer"],
        "regression": ["HeteroscedasticHead", "NormalHead", "StudentTHead"],
        "student": ["StudentTSoftmaxHead"],
    },
)
