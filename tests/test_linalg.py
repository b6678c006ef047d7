"""Factors of covariances against dense algebra; their pushes against S C."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pushforward.infer.linalg import Blocks, Diagonal, LowRank, Spectral, Triangular, left_singular

RNG = np.random.default_rng(0)
Q, _ = np.linalg.qr(RNG.normal(size=(5, 5)))
TRIL = np.tril(RNG.normal(size=(5, 5)), -1) + np.diag(RNG.uniform(0.5, 2, 5))
S = RNG.normal(size=(5, 5))
S = S @ S.T


def spectral_of(size):
    q, _ = np.linalg.qr(RNG.normal(size=(size, size)))
    return jnp.asarray(q), jnp.asarray(RNG.uniform(0.5, 2, size))


def blocks():
    pair = [spectral_of(2) for _ in range(2)]
    two = Spectral(jnp.stack([q for q, _ in pair]), jnp.stack([s for _, s in pair]))
    q, s = spectral_of(1)
    return Blocks((Spectral(q[None], s[None]), two), (jnp.array([[1]]), jnp.array([[4, 0], [2, 3]])))


FACTORS = {
    "spectral": lambda: Spectral(jnp.asarray(Q), jnp.linspace(0.5, 2.0, 5)),
    "triangular": lambda: Triangular(jnp.asarray(TRIL)),
    "diagonal": lambda: Diagonal(jnp.linspace(0.5, 2.0, 5)),
    "blocks": blocks,
    "low rank": lambda: LowRank(jnp.asarray(Q[:, :2]), jnp.array([2.0, 3.0]), jnp.asarray(0.7)),
}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", FACTORS)
def test_algebra(name: str) -> None:
    factor = FACTORS[name]()
    c, x = np.asarray(factor.dense()), RNG.normal(size=5)
    np.testing.assert_allclose(factor.apply(jnp.asarray(x)), c @ x, atol=1e-12)
    np.testing.assert_allclose(factor.solve(jnp.asarray(x)), np.linalg.solve(c, x), atol=1e-12)
    np.testing.assert_allclose(factor.solve_transpose(jnp.asarray(x)), np.linalg.solve(c.T, x), atol=1e-12)
    assert float(factor.log_det()) == pytest.approx(np.linalg.slogdet(c)[1])
    assert float(factor.trace()) == pytest.approx(np.trace(c @ c.T))
    np.testing.assert_allclose(factor.covariance(), c @ c.T, atol=1e-12)
    assert factor.dim == 5


def restricted(name, factor, push):
    """What a family sees of a dense push S C."""
    if name == "diagonal":
        return (np.diag(push),)
    if name == "blocks":
        return tuple(np.stack([push[np.ix_(at, at)] for at in np.asarray(index)]) for index in factor.index)
    if name == "low rank":
        u = np.asarray(factor.basis)
        p = np.eye(5) - u @ u.T
        return push @ u, np.trace(p @ push @ p) / 3
    return (push,)


@pytest.mark.parametrize("name", FACTORS)
def test_pushes(name: str) -> None:
    factor = FACTORS[name]()
    c, z = np.asarray(factor.dense()), jnp.asarray(RNG.normal(size=5))
    inverse = restricted(name, factor, np.linalg.inv(c).T)
    for found, expected in zip(jax.tree.leaves(factor.push_inverse()), inverse, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)
    g, u = jnp.asarray(RNG.normal(size=(7, 5))), jnp.asarray(RNG.normal(size=(7, 5)))
    outer = restricted(name, factor, np.asarray(g.T @ u) / 7)
    for found, expected in zip(jax.tree.leaves(factor.push_outer(g, u)), outer, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)
    image = jax.tree.leaves(factor.push_image(factor.probes(z) @ S, z))
    exact = restricted(name, factor, S @ c)
    np.testing.assert_allclose(image[0], exact[0], atol=1e-12)
    if name == "low rank":  # a trace, by a random direction
        many = jax.vmap(lambda z: factor.push_image(factor.probes(z) @ S, z)[1])(
            jnp.asarray(RNG.normal(size=(9999, 5)))
        )
        assert many.mean() == pytest.approx(exact[1], abs=5 * float(many.std()) / 100)
    else:
        for found, expected in zip(image, exact, strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("name", FACTORS)
def test_steps(name: str) -> None:
    factor = FACTORS[name]()
    same = factor.step(factor.push_inverse(), jnp.asarray(0.0), lambda s: s)
    np.testing.assert_allclose(same.covariance(), factor.covariance(), atol=1e-12)
    # C − size C⁻ᵀ on matrices, families of commuting or independent parts included; of a triangle the lower part.
    small = factor.step(factor.push_inverse(), jnp.asarray(0.1), lambda s: s)
    c = np.asarray(factor.dense())
    half = c - 0.1 * np.linalg.inv(c).T
    half = np.tril(half) if name == "triangular" else half
    np.testing.assert_allclose(small.covariance(), half @ half.T, atol=1e-12)


def test_singular_values_in_both_precisions() -> None:
    for exact in (True, False):
        u, s = left_singular(jnp.asarray(TRIL), exact=exact)
        np.testing.assert_allclose((u * s) @ (u * s).T, TRIL @ TRIL.T, atol=1e-12)
    u, s = left_singular(jnp.asarray(TRIL, jnp.float32))
    np.testing.assert_allclose((u * s) @ (u * s).T, TRIL @ TRIL.T, atol=1e-4)
