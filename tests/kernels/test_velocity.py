"""The streamed velocity against sums over pairs with autodiff of the kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pushforward.infer.kernels.metric import Dense, Diagonal, Identity, RankOne, apply
from pushforward.infer.kernels.velocity import velocity

H = 2.5


def kernel_of(name):
    def rbf(x, y):
        return jnp.exp(-jnp.sum((x - y) ** 2) / H)

    def imq(x, y):
        return (1 + jnp.sum((x - y) ** 2) / H) ** -0.5

    return {"rbf": rbf, "imq": imq}[name]


def metrics(n, rng):
    """Blocks over five coordinates; and the matrices P_j that they stand for."""
    a, left, right = (rng.uniform(0.5, 2.0, (n, 3)) for _ in range(3))
    dense = rng.normal(size=(n, 2, 2))
    return {
        "identity": None,
        "diagonal": (Diagonal(rng.uniform(0.5, 2.0, (n, 5))),),
        "blocks": (RankOne(a, left, right), Dense(dense)),
        "mixed": (Identity(1), RankOne(a, left, right), Identity(1)),
    }


def dense_velocity(name, x, drift, metric, at):
    """(1/n) Σ_j k(x_j, x_i) b_j + P_j ∇₁k(x_j, x_i), pair by pair."""
    k = kernel_of(name)

    def one(xi):
        value = jax.vmap(k, (0, None))(x, xi)
        gradient = jax.vmap(jax.grad(k), (0, None))(x, xi)
        moved = gradient if metric is None else apply(metric, gradient)
        return jnp.mean(value[:, None] * drift + moved, axis=0)

    return jax.lax.map(one, at)


FORMS = [(name, form, 64) for name in ("rbf", "imq") for form in ("identity", "diagonal", "blocks", "mixed")]


@pytest.mark.parametrize(("name", "form", "bits"), [*FORMS, ("rbf", "identity", 32), ("imq", "mixed", 32)])
def test_streamed_is_dense(name, form, bits):
    """In tiles that do not divide the particles, in one, and at other points."""
    tolerance = 1e-12 if bits == 64 else 1e-5
    n, rng = 333, np.random.default_rng(0)
    x, drift = rng.normal(size=(2, n, 5))
    at = rng.normal(size=(50, 5))
    with jax.enable_x64(True):
        metric = metrics(n, rng)[form]
        exact = dense_velocity(name, x, drift, metric, x)
        field = dense_velocity(name, x, drift, metric, at)
    with jax.enable_x64(bits == 64):
        dtype = jnp.float64 if bits == 64 else jnp.float32
        x, drift, at, metric = jax.tree.map(lambda a: jnp.asarray(a, dtype), (x, drift, at, metric))
        for tile in (64, None):
            got = velocity(name, x, drift, jnp.asarray(H, dtype), metric, tile=tile)
            assert got.dtype == dtype
            np.testing.assert_allclose(got, exact, atol=tolerance * np.abs(exact).max())
        got = velocity(name, x, drift, jnp.asarray(H, dtype), metric, at=at, tile=16)
        np.testing.assert_allclose(got, field, atol=tolerance * np.abs(field).max())


def test_blocks_apply_the_matrices_that_they_stand_for():
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        a, left, right, v = (jnp.asarray(rng.normal(size=(4, 3))) for _ in range(4))
        matrices = jax.vmap(jnp.diag)(a) - left[:, :, None] * right[:, None, :]
        np.testing.assert_allclose(RankOne(a, left, right).apply(v), Dense(matrices).apply(v), atol=1e-14)
        np.testing.assert_allclose(Diagonal(a).apply(v), a * v)


@pytest.mark.parametrize("name", ["rbf", "imq"])
def test_rounding_does_not_know_of_an_offset(name):
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(300, 20)), jnp.float32)
    drift, h = -x, jnp.float32(40.0)
    here, there = velocity(name, x, drift, h), velocity(name, x + 1000, drift, h)
    # The points themselves lose 6e-5 at an offset of 1,000; without centring the error is 0.15.
    assert np.abs(here - there).max() < 1e-4 * np.abs(here).max()


def test_permuted_particles_have_permuted_velocities():
    rng = np.random.default_rng(3)
    x, drift = jnp.asarray(rng.normal(size=(2, 100, 3)), jnp.float32)
    order = rng.permutation(100)
    moved = velocity("imq", x[order], drift[order], jnp.float32(1.0), tile=32)
    np.testing.assert_allclose(moved, velocity("imq", x, drift, jnp.float32(1.0), tile=32)[order], atol=1e-6)


@pytest.mark.parametrize("name", ["rbf", "imq"])
def test_the_field_and_the_kernelised_discrepancy_are_one(name):
    """(1/n) Σ s_i·φ(x_i) + div φ(x_i) is the V-statistic of KSD² with the same kernel: update, gradients and metric."""
    rng = np.random.default_rng(4)
    n, d = 40, 3
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(n, d)))
        score = lambda x: -x + jnp.sin(x)  # noqa: E731
        drift, h, k = jax.vmap(score)(x), jnp.asarray(H), kernel_of(name)

        def field(point):
            return velocity(name, x, drift, h, at=point[None], tile=16)[0]

        value = jax.vmap(field)(x)
        divergence = jax.vmap(lambda p: jnp.trace(jax.jacfwd(field)(p)))(x)

        def stein(a, b):
            cross = jax.jacfwd(jax.grad(k, 0), 1)(a, b)
            return (
                score(a) @ score(b) * k(a, b)
                + score(a) @ jax.grad(k, 1)(a, b)
                + score(b) @ jax.grad(k, 0)(a, b)
                + jnp.trace(cross)
            )

        ksd = jnp.mean(jax.vmap(lambda a: jax.vmap(lambda b: stein(a, b))(x))(x))
        assert float(jnp.mean(jnp.sum(drift * value, 1) + divergence)) == pytest.approx(float(ksd), rel=1e-12)


def test_memory_is_linear_in_the_particles():
    """Of a million, compiled and not run: a few tiles and a few arrays of (n, d), where n² numbers are 4 TB."""
    n, d, tile = 1_000_000, 4, 256
    shape = jax.ShapeDtypeStruct((n, d), jnp.float32)
    run = jax.jit(lambda x, b, h: velocity("imq", x, b, h, tile=tile))
    memory = run.lower(shape, shape, jax.ShapeDtypeStruct((), jnp.float32)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * (8 * tile * tile + 32 * n * d)


def test_distances_are_taken_in_full_precision():
    """On an accelerator a product of matrices keeps three digits unless it is told otherwise."""
    x = jnp.zeros((64, 3))
    program = str(jax.make_jaxpr(lambda x: velocity("rbf", x, x, jnp.asarray(1.0)))(x))
    products = [line for line in program.splitlines() if "dot_general" in line or "precision" in line]
    assert any("HIGHEST" in line for line in products)


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pallas_gives_what_xla_gives(kernel: str, others: bool, dtype: type) -> None:
    """Interpreted; for counts that no block divides, with P = I and diagonal."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, drift = (rng.standard_normal((2, 150, 5)) + 3).astype(dtype)
        metric = (Identity(3), Diagonal(rng.uniform(0.5, 1, (150, 2)).astype(dtype)))
        at = (rng.standard_normal((70, 5)) + 3).astype(dtype) if others else None
        h = dtype(2.0)
        xla, pallas = (velocity(kernel, x, drift, h, metric, at=at, backend=b) for b in ("xla", "pallas"))
        assert pallas.dtype == xla.dtype == dtype
        np.testing.assert_allclose(pallas, xla, rtol=0, atol=1e-12 if dtype is np.float64 else 3e-6)
