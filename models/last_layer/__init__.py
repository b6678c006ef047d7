"""Networks with a Bayesian last layer: heads, the target `LastLayer`, and their closed forms."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "acquisition": ["log_expected_improvement"],
        "approximation": ["LastLayerApproximation", "Paths", "Uncertainty"],
        "bodies": ["RandomFeatures", "SpectralMLP"],
        "calibration": ["Calibration"],
        "discriminative": ["SoftmaxHead"],
        "generative": ["GenerativeHead"],
        "heteroscedastic": ["HeteroscedasticHead", "HeteroscedasticSoftmaxHead"],
        "model": ["LastLayer"],
        "regression": ["NormalHead", "StudentTHead"],
        "student": ["StudentTSoftmaxHead"],
        "variational_features": ["VariationalFeatures"],
    },
)
