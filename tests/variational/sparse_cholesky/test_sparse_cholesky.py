"""Order and pattern against brute force; factors and solves against dense algebra; the 40 points with known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pushforward.infer.errors import InvalidArgument
from pushforward.infer.variational.sparse_cholesky.factor import (
    ancestor_solve,
    backward,
    build_structure,
    conjugate_gradients,
    forward,
    incomplete_cholesky,
    precision_on_pattern,
    prior_columns,
    times,
    times_transpose,
)
from pushforward.infer.variational.sparse_cholesky.ordering import levels, maximin, nearest_pattern, radius_pattern


def brute_order(z, first):
    n, taken = len(z), np.zeros(len(z), bool)
    distance, order, scales = np.linalg.norm(z - z[first], axis=1), [first], [0.0]
    taken[first] = True
    for _ in range(n - 1):
        i = int(np.where(taken, -1, distance).argmax())
        order.append(i)
        scales.append(distance[i])
        taken[i] = True
        distance = np.minimum(distance, np.linalg.norm(z - z[i], axis=1))
    scales[0] = scales[1]
    return np.array(order), np.array(scales)


def matern32(z):
    square = jnp.sum((z[:, None] - z) ** 2, -1)
    r = np.sqrt(3) * jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return (1 + r) * jnp.exp(-r)


def dense(s, v):
    n = v.shape[0]
    out = np.zeros((n + 1, n))
    out[np.asarray(s.columns), np.arange(n)[:, None]] = np.asarray(v)
    return out[:n]


def forty():
    k = np.arange(1, 41)
    x = np.stack([(k * k * 2**0.5) % 1, (k * k * 3**0.5) % 1], 1)
    return x / 0.3, np.sin(7 * x[:, 0]) + np.cos(5 * x[:, 1])


@pytest.mark.parametrize(("n", "d", "first"), [(300, 1, 0), (400, 2, 7), (400, 5, 3)])
def test_order_equals_brute_force(n, d, first):
    z = np.random.default_rng(n + d).uniform(size=(n, d))
    order, scales = maximin(z, first)
    expected, distances = brute_order(z, first)
    assert np.array_equal(order, expected)
    np.testing.assert_allclose(scales, distances, rtol=1e-13)
    assert np.all(np.diff(scales) <= 0)


@pytest.mark.parametrize("rho", [1.0, 1.5, 2.5])
def test_radius_pattern_equals_brute_force(rho):
    z = np.random.default_rng(3).uniform(size=(250, 2))
    order, scales = maximin(z)
    z = z[order]
    pattern, ancestors = radius_pattern(z, scales, rho)
    gap = np.linalg.norm(z[:, None] - z, axis=2)
    before = np.tril(np.ones((250, 250), bool))
    near = before & (gap <= rho * scales[:, None] * (1 + 1e-9))
    reduced = before & (gap <= rho * scales * (1 + 1e-9))
    reduced[:, 0] = True
    for i in range(250):
        assert np.array_equal(pattern.of(i), np.flatnonzero(near[i]))
        assert np.array_equal(ancestors.of(i), np.flatnonzero(reduced[i]))
        assert set(pattern.of(i)) <= set(ancestors.of(i))
    if rho == 1.0:  # the nearest earlier point and the point itself
        assert np.all(pattern.widths()[1:] == 2)


@pytest.mark.parametrize("count", [1, 5, 40])
def test_nearest_pattern_equals_brute_force(count):
    z = np.random.default_rng(5).uniform(size=(200, 3))
    z = z[maximin(z)[0]]
    pattern, ancestors = nearest_pattern(z, count)
    for i in range(200):
        gap = np.linalg.norm(z[:i] - z[i], axis=1)
        assert set(pattern.of(i)) == {i, *np.argsort(gap)[:count].tolist()}
        assert set(pattern.of(i)) <= set(ancestors.of(i))


def test_levels_and_padding():
    z, _ = forty()
    order, scales = maximin(z)
    pattern, _ = radius_pattern(z[order], scales, 2.0)
    level = levels(pattern)
    for i in range(40):
        parents = pattern.of(i)[:-1]
        assert level[i] == 1 + max(level[parents], default=-1)
        row = pattern.padded()[i]
        assert np.array_equal(row[row >= 0], pattern.of(i))
        assert row[-1] == i


def test_points_that_coincide_are_refused():
    z = np.random.default_rng(0).uniform(size=(30, 2))
    z[21] = z[4]
    with pytest.raises(InvalidArgument, match="coincide: 4, 21"):
        maximin(z)


TABLE = {  # rho: |S|, |A|, sum log U_ii, KL of the prior, ELBO terms are tested with the process
    1.5: (117, 330, 32.179748, 7.873933),
    2.0: (145, 419, 35.441462, 4.612220),
    3.0: (230, 547, 37.397241, 2.656441),
}


@pytest.mark.parametrize("rho", TABLE)
def test_forty_points(rho):
    z, _ = forty()
    order, scales = maximin(z)
    assert order[:12].tolist() == [0, 37, 33, 26, 25, 38, 21, 27, 16, 31, 6, 22]
    known = [2.374381, 2.374381, 2.122042, 1.448216, 1.424959, 1.275850, 1.189717, 1.138692]
    np.testing.assert_allclose(scales[:8], known, atol=1e-6)
    pattern, ancestors = radius_pattern(z[order], scales, rho)
    with jax.enable_x64(True):
        s = build_structure(order, pattern, ancestors)
        covariance = lambda z: matern32(z) + 1e-4 * jnp.eye(len(z))  # noqa: E731
        u = prior_columns(covariance, jnp.asarray(z[order]), s.columns)
        k = np.asarray(covariance(jnp.asarray(z[order])))
        log_det = np.linalg.slogdet(k)[1]
        assert log_det == pytest.approx(-80.107363, abs=1e-5)
        log_u = float(jnp.sum(jnp.log(u[:, -1])))
        full = dense(s, u)
    expected = TABLE[rho]
    assert (len(pattern.index), len(ancestors.index)) == expected[:2]
    assert log_u == pytest.approx(expected[2], abs=1e-5)
    assert -log_u - 0.5 * log_det == pytest.approx(expected[3], abs=1e-5)
    assert np.trace(full @ full.T @ k) == pytest.approx(40, abs=1e-10)

    def kl(factor):
        return 0.5 * np.trace(factor @ factor.T @ k) - 20 - np.log(np.diag(factor)).sum() - 0.5 * log_det

    rng = np.random.default_rng(0)
    for _ in range(20):  # the optimum over the pattern: any change raises the divergence
        assert kl(full + 1e-3 * rng.normal(size=full.shape) * (full != 0)) > kl(full)


def test_full_pattern_is_exact():
    z = np.random.default_rng(1).uniform(size=(20, 2))
    order = maximin(z)[0]
    pattern, ancestors = nearest_pattern(z[order], 19)
    with jax.enable_x64(True):
        s = build_structure(order, pattern, ancestors)
        u = dense(s, prior_columns(matern32, jnp.asarray(z[order]), s.columns))
        k = np.asarray(matern32(jnp.asarray(z[order])))
    np.testing.assert_allclose(u @ u.T @ k, np.eye(20), atol=1e-9)


@pytest.fixture(scope="module")
def problem():
    """A prior and a posterior precision on the pattern of 300 points, as arrays and dense."""
    z = np.random.default_rng(2).uniform(size=(300, 2)) / 0.3
    order, scales = maximin(z)
    pattern, ancestors = radius_pattern(z[order], scales, 2.0)
    with jax.enable_x64(True):
        s = build_structure(order, pattern, ancestors, round_to=4)
        u = prior_columns(lambda z: matern32(z) + 1e-4 * jnp.eye(len(z)), jnp.asarray(z[order]), s.columns)
        weight = np.random.default_rng(3).uniform(1, 9, size=300)
        p = precision_on_pattern(s, u).at[:, -1].add(weight)
        v, shift = incomplete_cholesky(s, p)
    return s, u, v, weight, p, float(shift)


def test_incomplete_cholesky_agrees_on_the_pattern(problem):
    s, u, v, weight, p, shift = problem
    full = dense(s, u) @ dense(s, u).T + np.diag(weight)
    there = dense(s, np.where(np.asarray(s.mask), 1.0, 0.0)) > 0
    np.testing.assert_allclose(dense(s, p)[there], full[there], rtol=1e-12)
    factor = dense(s, v)
    assert shift == 0
    # The defining property of IC(0), column by column from the last: what the factor's product has on the pattern.
    np.testing.assert_allclose((factor @ factor.T)[there], full[there], atol=1e-10 * abs(full).max())


def test_incomplete_cholesky_of_an_indefinite_matrix_says_by_how_much_it_shifted(problem):
    s, u, _, _, _, _ = problem
    with jax.enable_x64(True):
        p = precision_on_pattern(s, u)
        p = p.at[:, -1].multiply(1 - 1e-3)
        v, shift = incomplete_cholesky(s, p)
    assert np.isfinite(np.asarray(v)).all()
    assert float(shift) > 0


def test_solves_equal_dense_ones(problem):
    s, u, v, weight, _, _ = problem
    factor, x = dense(s, v), np.random.default_rng(4).normal(size=300)
    with jax.enable_x64(True):
        given = jnp.asarray(x)
        np.testing.assert_allclose(forward(s, v, given), np.linalg.solve(factor.T, x), rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(backward(s, v, given), np.linalg.solve(factor, x), rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(times(s, v, given), factor @ x, rtol=1e-12, atol=1e-11)
        np.testing.assert_allclose(times_transpose(s, v, given), factor.T @ x, rtol=1e-12, atol=1e-11)
        solved, iterations = conjugate_gradients(
            lambda w: times(s, u, times_transpose(s, u, w)) + weight * w,
            lambda w: forward(s, v, backward(s, v, w)),
            given,
            jnp.zeros(300),
            tolerance=1e-12,
        )
    full = dense(s, u) @ dense(s, u).T + np.diag(weight)
    np.testing.assert_allclose(solved, np.linalg.solve(full, x), rtol=1e-7, atol=1e-9)
    assert int(iterations) < 20  # without the factor it takes hundreds


def test_solve_on_all_earlier_points_is_exact(problem):
    s, _, v, _, _, _ = problem
    inverse = np.linalg.inv(dense(s, v))
    solve = jax.jit(ancestor_solve)
    with jax.enable_x64(True):
        for i in (0, 17, 299):
            everyone = np.concatenate([np.full(304 - i, -1), np.arange(i + 1)]).astype(np.int32)
            unit = np.zeros((305, 1))
            unit[-1] = 1.0
            z = solve(s, v, jnp.asarray(everyone), jnp.asarray(unit))[:, 0]
            np.testing.assert_allclose(z[304 - i :], inverse[: i + 1, i], atol=1e-11)
            # With the reduced ancestors it is close, as the published measurements say.
            a = s.ancestors[i]
            short = solve(s, v, a, jnp.zeros((a.shape[0], 1)).at[-1].set(1.0))
            assert float(jnp.sum(short**2)) == pytest.approx(float((inverse[:, i] ** 2).sum()), rel=0.03)


def test_gradient_through_padded_columns():
    z, _ = forty()
    order, scales = maximin(z)
    pattern, ancestors = radius_pattern(z[order], scales, 1.5)
    with jax.enable_x64(True):
        s = build_structure(order, pattern, ancestors, round_to=8)
        assert not bool(s.mask.all())

        def log_u(log_scale):
            covariance = lambda z: matern32(z / jnp.exp(log_scale)) + 1e-4 * jnp.eye(len(z))  # noqa: E731
            return jnp.sum(jnp.log(prior_columns(covariance, jnp.asarray(z[order]), s.columns)[:, -1]))

        gradient = float(jax.grad(log_u)(0.1))
        difference = float((log_u(0.1 + 1e-5) - log_u(0.1 - 1e-5)) / 2e-5)
    assert gradient == pytest.approx(difference, rel=1e-6)


def test_draws_have_the_covariance_of_the_factor(problem):
    s, _, v, _, _, _ = problem
    with jax.enable_x64(True):
        noise = jax.random.normal(jax.random.key(0), (20_000, 300))
        draws = np.asarray(jax.vmap(lambda e: forward(s, v, e))(noise))
    exact = np.linalg.inv(dense(s, v) @ dense(s, v).T)
    rows = np.asarray(s.columns)[299]
    rows = rows[rows < 300]
    found = np.cov(draws[:, rows].T)
    error = np.sqrt(
        (exact[np.ix_(rows, rows)] ** 2 + np.outer(exact.diagonal()[rows], exact.diagonal()[rows])) / 20_000
    )
    assert np.all(abs(found - exact[np.ix_(rows, rows)]) < 5 * error)
