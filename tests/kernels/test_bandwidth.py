"""Bandwidths against sorted distances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pushforward.infer.kernels.bandwidth import choose_bandwidth, mean_squared_distance, median_squared_distance


def distances(x):
    return np.sum((x[:, None] - x) ** 2, axis=-1)


@pytest.mark.parametrize(("n", "tile"), [(1, None), (2, None), (7, None), (64, 16), (101, 16)])
def test_the_median_is_the_order_statistic(n, tile):
    x = np.random.default_rng(n).normal(size=(n, 3)) + 5
    ordered = np.sort(distances(x), axis=None)
    with jax.enable_x64(True):
        found = float(median_squared_distance(jnp.asarray(x), tile))
    # n = 1: the index n² − ⌊n²/2⌋ = 1 is beyond the only distance, 0.
    expected = ordered[n * n - n * n // 2] if n > 1 else 0.0
    assert found == pytest.approx(expected, rel=1e-12)


def test_rules():
    x = np.random.default_rng(0).normal(size=(3000, 10))
    with jax.enable_x64(True):
        key, x = jax.random.key(0), jnp.asarray(x)
        subset, exact, mean = (float(choose_bandwidth(rule, key, x)) for rule in ("median", "exact_median", "mean"))
        assert exact == pytest.approx(np.median(distances(np.asarray(x)[:1500])), rel=0.02)
        assert subset == pytest.approx(exact, rel=0.05)
        pairs = distances(np.asarray(x)[:200])
        assert float(mean_squared_distance(x[:200])) == pytest.approx(pairs.sum() / (200 * 199), rel=1e-12)
        assert mean == pytest.approx(exact, rel=0.1), "mean and median differ little in ten dimensions"


@pytest.mark.parametrize("rule", ["median", "mean", "exact_median"])
def test_equal_particles_have_bandwidth_1(rule):
    x = jnp.full((50, 2), 1.7)
    assert float(choose_bandwidth(rule, jax.random.key(0), x)) == 1.0
