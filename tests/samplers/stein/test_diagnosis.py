"""What diagnosis tells of clouds, from states made for it: no run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import pushforward as pf


def normal(d: int) -> pf.Target:
    return pf.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), np.zeros(d))


def found(method, target, y, bits=64, **changes) -> dict:
    """Findings by name for particles at y."""
    with jax.enable_x64(bits == 64):
        method = dataclasses.replace(method, num_particles=len(y))
        state = method.init(jax.random.key(0), target, jnp.zeros(target.dim))
        changes = {"bandwidth": 1.0} | changes
        state = jax.tree.map(lambda a: a[None], dataclasses.replace(state, y=jnp.asarray(y, float)))
        state = dataclasses.replace(state, **{k: jnp.full((1,), v) for k, v in changes.items()})
        return {entry["name"]: entry for entry in method.remarks(state, target, None)}


def test_the_discrepancy_stands_beside_that_of_independent_draws():
    draws = np.random.default_rng(0).standard_normal((300, 2))
    entry = found(pf.SVGD(), normal(2), draws)["discrepancy"]
    h = pf.discrepancies.median_bandwidth(draws)
    exact = pf.discrepancies.ksd(draws, -draws, bandwidth=h)
    assert entry["value"] == pytest.approx(exact.squared, rel=0.1)  # the median counts the distances to oneself, too
    assert entry["threshold"] == pytest.approx(exact.floor, rel=0.02)
    assert found(pf.SVGD(), normal(2), draws + 1.0)["discrepancy"]["level"] == "note"


def test_width_of_kernels():
    x = np.random.default_rng(1).standard_normal((20, 1))
    wide = found(pf.SVGD(kernel="rbf", bandwidth=100.0), normal(1), x, bandwidth=100.0)["bandwidth"]
    assert "particles of so wide an RBF may merge" in wide["message"]
    assert "bandwidth" not in found(pf.SVGD(kernel="imq", bandwidth=100.0), normal(1), x, bandwidth=100.0)
    assert "bandwidth" not in found(pf.SVGD(kernel="rbf", bandwidth=2.0), normal(1), x, bandwidth=2.0)
    x[:18] = 0.5
    assert "most of them are in one point" in found(pf.SVGD(), normal(1), x)["bandwidth"]["message"]


def test_one_particle_is_a_mode():
    assert found(pf.SVGD(), normal(1), np.zeros((1, 1)))["one particle"]["level"] == "warning"


def dirichlet():
    numpyro.sample("p", dist.Dirichlet(jnp.array([3.0, 2.0, 4.0])))


def test_a_truncated_spectrum_tells_the_velocity_of_all_equations():
    """Zero at a fixed point of all of them; 1 and 0.02–0.2 elsewhere."""
    target = pf.Target.from_numpyro(dirichlet)
    y = 0.5 * np.random.default_rng(2).standard_normal((8, 2))
    entry = found(pf.SVMD(spectrum=0.9), target, y)["truncated spectrum"]
    assert entry["value"] > 0.01
    assert "spectrum=0.9 keeps " in entry["message"]
    assert "truncated spectrum" not in found(pf.SVMD(), target, y)


def test_32_bits_on_a_simplex_and_particles_at_the_floor():
    target = pf.Target.from_numpyro(dirichlet)
    y = 0.5 * np.random.default_rng(2).standard_normal((8, 2))
    assert "32 bits" not in found(pf.MirroredSVGD(), target, y)
    assert (
        "'p' are held in 32 bits, which end at 1e-38" in found(pf.MirroredSVGD(), target, y, 32)["32 bits"]["message"]
    )
    y[:2, 0] = -80.0
    assert found(pf.MirroredSVGD(), target, y, 32)["floor"]["value"] == pytest.approx(0.25)
