"""Proper scores of predictions of one number (Gneiting & Raftery 2007, JASA 102); smaller is better."""

from typing import Any

import numpy as np
from scipy.special import ndtr

from ...infer.errors import InvalidArgument


def crps_normal(mean: Any, sd: Any, y: Any) -> np.ndarray:
    """Continuous ranked probability score of N(mean, sd²): s (z (2 Φ(z) − 1) + 2 φ(z) − 1 / √π), z = (y − m) / s."""
    sd = np.asarray(sd, float)
    z = (np.asarray(y, float) - mean) / sd
    return sd * (z * (2 * ndtr(z) - 1) + np.sqrt(2 / np.pi) * np.exp(-0.5 * z**2) - 1 / np.sqrt(np.pi))


def crps_draws(draws: Any, y: Any) -> np.ndarray:
    """The same of draws, shape (s, k), at y, (k,): E |x − y| − ½ E |x − x'|, without bias over pairs of draws."""
    x = np.sort(np.asarray(draws, float), axis=0)
    s = len(x)
    if s < 2:
        raise InvalidArgument(f"draws has {s} rows; give at least 2.")
    weight = (2 * np.arange(1, s + 1) - s - 1)[:, None]  # Σ_{i<j} (x_(j) − x_(i)) in one pass
    return np.abs(x - y).mean(0) - (weight * x).sum(0) / (s * (s - 1))


def interval_score(low: Any, high: Any, y: Any, level: float = 0.95) -> np.ndarray:
    """Of a central interval of this probability: its width, and 2 / (1 − level) times how far y is outside."""
    if not 0 < level < 1:
        raise InvalidArgument(f"level must be between 0 and 1, got {level!r}.")
    low, high, y = (np.asarray(part, float) for part in (low, high, y))
    return high - low + 2 / (1 - level) * (np.maximum(low - y, 0.0) + np.maximum(y - high, 0.0))
