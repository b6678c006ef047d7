"""Kernel Stein discrepancies, plain and mirrored: closed forms by quadrature, definitions by autodiff, refusals."""

import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

import pushforward as pf
from pushforward.infer.diagnostics.discrepancies import ksd, mksd
from pushforward.infer.geometry import (
    BoltzmannShannon,
    EllipsoidBarrier,
    Euclidean,
    FermiDirac,
    Product,
    SimplexEntropy,
)
from pushforward.infer.kernels.pairs import pair_sums
from tests.diagnostics.quadrature import hermite

RNG = np.random.default_rng(2)
VALUES = {"rbf": lambda r2, h: jnp.exp(-r2 / h), "imq": lambda r2, h: (1 + r2 / h) ** -0.5}


def stein_kernel(kernel, score, at=lambda y: y):
    """k₀(y, y') by autodiff, for the kernel k(at(y), at(y'))."""

    def k(a, b):
        return kernel(jnp.sum((at(a) - at(b)) ** 2))

    def k0(a, b):
        mixed = jax.jacfwd(jax.grad(k, argnums=0), argnums=1)(a, b)
        sa, sb = score(a), score(b)
        return (
            sa @ sb * k(a, b) + sa @ jax.grad(k, argnums=1)(a, b) + sb @ jax.grad(k, argnums=0)(a, b) + jnp.trace(mixed)
        )

    return k0


def statistics(k0, points):
    with jax.enable_x64(True):
        values = np.asarray(jax.jit(jax.vmap(jax.vmap(k0, (None, 0)), (0, None)))(points, points))
    n = len(values)
    return values.mean(), (values.sum() - np.trace(values)) / (n * (n - 1))


# -- plain ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "sd", "dim", "h", "nodes", "truth"),
    [
        ([1, 0], 1.0, 2, 2.0, 30, 1 / 3),
        (0, 1.5, 3, 6.0, 16, 0.158114),
        (0, 0.5, 1, 1.0, 60, 0.397748),
        (0, 1, 2, 2.0, 30, 0),
    ],
)
def test_ksd_of_normals(mean, sd, dim, h, nodes, truth):
    """Target N(0, I): ‖μ‖² (1 + 4/h)^(−d/2) of a shift; (σ⁻² − 1)² ½ d σ² a^(d/2) (1 − a) of a scale."""
    x, w = hermite(mean, sd, dim, nodes)
    assert ksd(x, lambda x: -x, kernel="rbf", bandwidth=h, weights=w).squared == pytest.approx(truth, abs=6e-7)


def test_ksd_of_one_point():
    found = ksd(np.zeros(1), lambda x: -x, bandwidth=1.0)
    assert found.squared == 1.0
    assert found.floor == 1.0
    assert np.isnan(found.unbiased)


@pytest.mark.parametrize(("kernel", "dim"), [("rbf", 3), ("imq", 20)])
def test_ksd_is_its_definition(kernel, dim):
    x = 2 + RNG.normal(size=(45, dim))

    def score(x):
        return -(x**3) / dim - jnp.roll(x, 1)

    found = ksd(x, score, kernel=kernel, bandwidth=1.7 * dim)
    k0 = stein_kernel(lambda r2: VALUES[kernel](r2, 1.7 * dim), score)
    assert (found.squared, found.unbiased) == pytest.approx(statistics(k0, x), rel=1e-9)


def test_ksd_in_tiles_and_by_copies():
    """More points than a tile, none a multiple of it; integer weights are copies."""
    x = RNG.normal(size=(333, 2))
    counts = RNG.integers(1, 4, size=333)
    weighted, copied = (
        ksd(x, -x, bandwidth=1.0, weights=counts),
        ksd(np.repeat(x, counts, 0), -np.repeat(x, counts, 0), bandwidth=1.0),
    )
    assert weighted.squared == pytest.approx(copied.squared, rel=1e-10)


def test_ksd_in_32_bits_far_from_the_origin():
    x = RNG.normal(size=(700, 20))
    shifted = (1000 + x).astype(np.float32)
    exact = ksd(shifted.astype(float), -x, bandwidth=40.0)
    found = ksd(shifted, -x, bandwidth=40.0)
    assert found.squared == pytest.approx(exact.squared, rel=1e-4)
    assert found.unbiased == pytest.approx(exact.unbiased, abs=1e-5 * exact.floor * 700)


def test_standard_error_is_the_spread_of_replicates():
    rng = np.random.default_rng(8)
    found = [ksd(rng.normal(size=(100, 2)) + 0.7, lambda x: -x, bandwidth=2.0) for _ in range(200)]
    unbiased = np.array([one.unbiased for one in found])
    assert np.mean([one.standard_error for one in found]) == pytest.approx(unbiased.std(ddof=1), rel=0.15)


def test_ksd_of_a_target_and_its_posterior():
    """Γ(3) by its log, whose score is 3 − e^u: from u, from draws by site, from the posterior."""

    def model():
        numpyro.sample("a", dist.Gamma(3.0, 1.0))

    target = pf.Target.from_numpyro(model)
    a = RNG.gamma(3.0, size=(2, 150))
    u = np.log(a).reshape(-1, 1)
    truth = ksd(u, 3 - np.exp(u), bandwidth=1.0)
    posterior = pf.Posterior.from_draws({"a": a}, target=target)
    for points in (u, {"a": a}, posterior):
        assert ksd(points, target, bandwidth=1.0).squared == pytest.approx(truth.squared, rel=1e-9)


# -- mirrored ---------------------------------------------------------------------------------------------------------


def dirichlet_score(alpha):
    def score(x):
        return (alpha[:-1] - 1) / x - (alpha[-1] - 1) / (1 - jnp.sum(x))

    return score


ALPHA = np.array([0.3, 2.0, 4.0, 1.5])
CASES = {
    "simplex": (SimplexEntropy(), RNG.dirichlet([2.0, 2, 2, 2], 24)[:, :-1], dirichlet_score(ALPHA)),
    "positive": (BoltzmannShannon(), RNG.gamma(3.0, size=(24, 2)), lambda x: 2 / x - 1),
    "unit interval": (FermiDirac(), RNG.beta(2.0, 3.0, size=(24, 3)), lambda x: 1 / x - 2 / (1 - x)),
    "ball": (
        EllipsoidBarrier(np.array([[2.0, 0.3], [0.3, 1.0]])),
        0.4 * RNG.uniform(-1, 1, size=(24, 2)),
        lambda x: -3 * x,
    ),
    "product": (
        Product((SimplexEntropy(), BoltzmannShannon()), (3, 1)),
        np.c_[RNG.dirichlet([2.0, 2, 2, 2], 24)[:, :-1], RNG.gamma(3.0, size=24)],
        lambda x: jnp.concatenate([dirichlet_score(ALPHA)(x[:3]), 2 / x[3:] - 1]),
    ),
}


@pytest.mark.parametrize("space", ["dual", "primal"])
@pytest.mark.parametrize("case", CASES)
def test_mksd_is_the_ksd_of_the_dual_density(case, space):
    """With the score by autodiff of log p(∇φ*(y)) + log det ∇²φ*(y) replaced by its parts, and k through ∇φ*."""
    mirror, x, score = CASES[case]
    with jax.enable_x64(True):
        y = np.asarray(jax.vmap(lambda x: mirror.at(x).y)(jnp.asarray(x)))

        def dual_score(y):
            point = mirror.from_dual(y)
            jacobian = jax.jacfwd(lambda y: mirror.from_dual(y).x)(y)
            log_det = jax.grad(lambda y: jnp.linalg.slogdet(jax.jacfwd(lambda y: mirror.from_dual(y).x)(y))[1])(y)
            return jacobian.T @ score(point.x) + log_det

        at = (lambda y: mirror.from_dual(y).x) if space == "primal" else (lambda y: y)
        truth = statistics(stein_kernel(lambda r2: VALUES["imq"](r2, 0.8), dual_score, at), y)
    found = mksd(x, score, mirror, bandwidth=0.8, space=space)
    assert (found.squared, found.unbiased) == pytest.approx(truth, rel=1e-9)


def test_scores_of_all_probabilities_are_reduced():
    """s_i − s_last, of a Dirichlet by hand."""
    mirror, x, _ = CASES["simplex"]
    full = np.c_[x, 1 - x.sum(1)]
    found = mksd(x, (ALPHA - 1) / full, mirror, bandwidth=1.0)
    reduced = (ALPHA[:-1] - 1) / x - (ALPHA[-1] - 1) / full[:, -1:]
    assert found == pytest.approx(mksd(x, reduced, mirror, bandwidth=1.0), rel=1e-12)
    with pytest.raises(pf.InvalidArgument, match=r"Of a simplex all probabilities but the last are given"):
        mksd(full, (ALPHA - 1) / full, mirror, bandwidth=1.0)


def test_mksd_of_the_euclidean_mirror_is_the_ksd():
    x = RNG.normal(size=(50, 3))
    for space in ("dual", "primal"):
        assert mksd(x, -x, Euclidean(), bandwidth=2.0, space=space) == pytest.approx(ksd(x, -x, bandwidth=2.0))


def test_mksd_of_lognormals():
    """log x ~ N(0, I) as the target, log x ~ N(e₁, I) as the sample: 1/3, as of the normals."""
    y, w = hermite([1, 0], 1.0, 2, 30)
    found = mksd(np.exp(y), lambda x: -(jnp.log(x) + 1) / x, BoltzmannShannon(), kernel="rbf", bandwidth=2.0, weights=w)
    assert found.squared == pytest.approx(1 / 3, abs=1e-9)


def test_mksd_sees_what_the_ksd_of_an_unbounded_density_does_not():
    """Draws of a sparse Dirichlet are at the floor, those of another law are not."""
    rng = np.random.default_rng(11)
    alpha = np.array([0.5, 0.7, 0.4])

    def score(x):
        return dirichlet_score(alpha)(x)

    right = mksd(rng.dirichlet(alpha, 800)[:, :-1], score, SimplexEntropy(), bandwidth=20.0)
    wrong = mksd(rng.dirichlet(alpha + 1, 800)[:, :-1], score, SimplexEntropy(), bandwidth=20.0)
    assert abs(right.unbiased) < 4 * right.standard_error
    assert wrong.unbiased > 10 * wrong.standard_error


def test_mksd_of_a_target_has_the_mirror_of_its_supports():
    def model():
        numpyro.sample("p", dist.Dirichlet(jnp.array([2.0, 3.0, 4.0])))
        numpyro.sample("s", dist.Gamma(3.0, 1.0))
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    target = pf.Target.from_numpyro(model)
    p, s, z = RNG.dirichlet([2.0, 3, 4], (2, 60)), RNG.gamma(3.0, size=(2, 60)), RNG.normal(size=(2, 60))
    parts = {"p": p.reshape(-1, 3)[:, :2], "s": s.reshape(-1, 1), "z": z.reshape(-1, 1)}
    order = [site.name for site in target.sites if site.kind == "latent"]
    x = np.concatenate([parts[name] for name in order], axis=1)
    mirrors = {"p": SimplexEntropy(), "s": BoltzmannShannon(), "z": Euclidean()}
    scores = {
        "p": np.array([1.0, 2.0]) / parts["p"] - 3 / (1 - parts["p"].sum(1, keepdims=True)),
        "s": 2 / parts["s"] - 1,
        "z": -parts["z"],
    }
    mirror = Product(tuple(mirrors[name] for name in order), tuple(parts[name].shape[1] for name in order))
    truth = mksd(x, np.concatenate([scores[name] for name in order], axis=1), mirror, bandwidth=3.0)
    posterior = pf.Posterior.from_draws({"p": p, "s": s, "z": z}, target=target)
    for points in (x, {"p": p, "s": s, "z": z}, posterior):
        assert mksd(points, target, bandwidth=3.0).squared == pytest.approx(truth.squared, rel=1e-9)


# -- sums over pairs --------------------------------------------------------------------------------------------------


def product_of_first(x, y, factor):
    return factor * x["a"][:, None] * jnp.exp(-((x["b"][:, None] - y["b"]) ** 2))


def symmetric(x, y):
    return jnp.exp(-((x[:, None] - y) ** 2))


@pytest.mark.parametrize("tile", [1, 7, 64, 500])
def test_pair_sums(tile):
    x = {"a": RNG.normal(size=33), "b": RNG.normal(size=33)}
    y = {"a": RNG.normal(size=50), "b": RNG.normal(size=50)}
    w, v = RNG.uniform(size=33), RNG.uniform(size=50)
    values = 2 * x["a"][:, None] * np.exp(-((x["b"][:, None] - y["b"]) ** 2))
    with jax.enable_x64(True):
        by_row, by_column = pair_sums(product_of_first, x, w, y, v, args=(2.0,), tile=tile)
        np.testing.assert_allclose(by_row, values @ v, rtol=1e-12)
        np.testing.assert_allclose(by_column, w @ values, rtol=1e-12, atol=1e-13)
        own, same = pair_sums(symmetric, x["a"], w, tile=tile)
        truth = np.exp(-((x["a"][:, None] - x["a"]) ** 2))
        np.fill_diagonal(truth, 0)
        np.testing.assert_allclose(own, truth @ w, rtol=1e-12)
        np.testing.assert_array_equal(own, same)


# -- refusals ---------------------------------------------------------------------------------------------------------

X = np.array([[0.2, 0.3], [0.5, 0.1], [0.1, 0.8]])


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: ksd(X, lambda x: x / (x[0] - 0.5)),
            pf.NonFinite,
            "the score must be finite; 1 of 3 rows are not, first 1",
        ),
        (lambda: ksd(X, lambda x: x[:1]), pf.InvalidArgument, r"to one of that shape, got \(1,\)"),
        (lambda: ksd(X, X[:2]), pf.InvalidArgument, r"shape \(3, 2\) of the points, got \(2, 2\)"),
        (lambda: ksd(X, "normal"), pf.InvalidArgument, "an array of scores, got str"),
        (lambda: ksd(X, X, kernel="box"), pf.InvalidArgument, "kernel must be one of"),
        (lambda: ksd(X, X, bandwidth=0.0), pf.InvalidArgument, "bandwidth must be a finite number > 0"),
        (lambda: ksd(X[:1], X[:1]), pf.InvalidArgument, "median distance of 1 points is 0; give a bandwidth"),
        (lambda: mksd(X, X), pf.InvalidArgument, "mirror must be a mirror .* got None"),
        (lambda: mksd(X, X, Euclidean(), space="x"), pf.InvalidArgument, "space must be one of"),
        (lambda: mksd(X + 0.1 * np.eye(3)[:, 2:], X, SimplexEntropy()), pf.InvalidArgument, "1 are not, first row 2"),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_ksd_of_a_target_refuses_other_coordinates():
    target = pf.Target.from_log_density(lambda x: -jnp.sum(x["x"] ** 2), {"x": np.zeros(3)}, {"x": constraints.real})
    with pytest.raises(pf.InvalidArgument, match="the 3 coordinates of the target, got 2"):
        ksd(X, target)
    with pytest.raises(pf.InvalidArgument, match="all latent sites; x not among y"):
        ksd({"y": np.zeros((1, 3, 3))}, target)


# -- memory -----------------------------------------------------------------------------------------------------------


def peak_bytes(n):
    code = (
        "import numpy as np, resource\n"
        "from pushforward.infer.diagnostics.discrepancies import energy_distance, ksd, mmd\n"
        f"x = np.random.default_rng(0).normal(size=({n}, 5)).astype(np.float32)\n"
        "ksd(x, -x), energy_distance(x, x + 1), mmd(x, x + 1)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return 1024 * int(found.stdout)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_pairs():
    """20,000 points have 1.6 GB of pairs in 32 bits; beyond what 1,000 points take, 60 MB."""
    assert resource.RLIM_INFINITY  # a platform with getrusage
    assert peak_bytes(20_000) - peak_bytes(1_000) < 60 * 2**20
