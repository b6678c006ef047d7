"""`NormalizingFlow`: energies with known normalisers, restarts, draws given, records, and what is refused."""

from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from benchmarks.papers import energies
from pushforward.infer.diagnostics.psis import psis, weighted_moments
from pushforward.infer.train import Trainer
from pushforward.infer.variational.estimators import FastPath, FixedDraws, StickingTheLanding, split
from pushforward.infer.variational.flows.bijection import Chain, Invert, Stack
from pushforward.infer.variational.flows.families import Shape, build
from pushforward.infer.variational.flows.findings import _ended, limits, pinned_shares, solver_share
from pushforward.infer.variational.flows.flow import Flow
from pushforward.infer.variational.flows.judge import best_flow, seen_gap
from pushforward.infer.variational.flows.linear import Whitening
from pushforward.infer.variational.flows.state import FlowState
from pushforward.infer.variational.objectives import ELBO, IWAE

QUICK = {"num_layers": 2, "hidden": (8,), "num_steps": 300}


@cache
def ring() -> pf.Posterior:
    """U1 with the shipped default, but of fewer steps."""
    return pf.fit(energies.target("U1"), pf.NormalizingFlow(num_steps=1500), key=1, num_samples=4000, progress=False)


def quadrature(name: str, half: float = 6.0, n: int = 1201) -> tuple[float, np.ndarray, np.ndarray]:
    """log Z, mean and variance on a grid."""
    with jax.enable_x64(True):
        axis = jnp.linspace(-half, half, n)
        grid = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
        log_p = np.asarray(jax.jit(jax.vmap(energies.target(name).log_density))(grid))
        grid, cell = np.asarray(grid), float(axis[1] - axis[0]) ** 2
    weights = np.exp(log_p - log_p.max())
    mean = weights @ grid / weights.sum()
    return np.log(weights.sum() * cell) + log_p.max(), mean, weights @ (grid - mean) ** 2 / weights.sum()


@pytest.mark.parametrize("name", list(energies.LOG_Z))
def test_the_energies_have_the_normalisers_of_the_table(name: str) -> None:
    log_z, mean, variance = quadrature(name)
    assert log_z == pytest.approx(energies.LOG_Z[name], abs=6e-5)
    if name == "U1":  # the box hardly touches it: the moments are those on the whole plane
        np.testing.assert_allclose(mean, 0, atol=1e-6)
        np.testing.assert_allclose(variance, (3.303502, 1.395278), atol=1e-3)


@pytest.mark.slow
def test_two_modes_on_a_ring() -> None:
    posterior = ring()
    elbo, error = posterior.elbo()
    assert elbo < energies.LOG_Z["U1"] + 4 * error
    assert energies.LOG_Z["U1"] - elbo < 0.1
    evidence = posterior.evidence()
    assert evidence.log_evidence == pytest.approx(energies.LOG_Z["U1"], abs=4 * evidence.se + 1e-3)
    smoothed = psis(posterior.log_weights())
    assert smoothed.k_hat < 0.7
    weights = np.exp(smoothed.log_weights)
    assert 1 / np.sum(weights**2) > 0.8 * weights.size
    x = posterior.draws()["x"][0]
    values = np.stack([*x.T, *(x**2).T])
    moments = weighted_moments(values, smoothed.log_weights)
    z = (moments.mean - [0, 0, 3.303502, 1.395278]) / moments.mean_error
    assert np.all(np.abs(z) < 4), z


def test_what_a_run_records() -> None:
    posterior = ring()
    trace = posterior.iterations
    steps = trace["elbo"].shape[1]
    assert steps <= 1500
    assert trace["temperature"][0, 0] == pytest.approx(0.05)
    assert trace["temperature"][0, 400] == 1.0
    np.testing.assert_allclose(trace["num_evaluations"], 64)
    assert np.all(trace["elbo_error"] > 0)
    for name in ("location", "scale", "layers"):
        noise = trace[f"variance_{name}"][0]
        assert np.all(noise >= 0)
        assert np.median(noise[-100:]) < np.median(noise[400:500]), "path gradients lose their noise as q nears π"
    assert posterior.approximation.training.iterate in ("last", "average", "best")
    assert "Training ended" in str(posterior.diagnose())


def two_far_modes(u):
    return jnp.logaddexp(-0.5 * jnp.sum((u - 12) ** 2), -0.5 * jnp.sum((u + 12) ** 2))


@pytest.mark.slow
def test_restarts_that_disagree_are_reported() -> None:
    target = pf.Target.from_log_density(two_far_modes, np.zeros(2))
    method = pf.NormalizingFlow("realnvp", whiten=None, anneal=0, **QUICK | {"num_steps": 100})
    start = np.array([[12.0, 12.0], [-12.0, -12.0]])
    posterior = pf.fit(target, method, num_chains=2, start=start, progress=False)
    training = posterior.approximation.training
    np.testing.assert_allclose(np.asarray(training.means), start, atol=0.5)
    assert int(training.chosen) == np.argmax(np.asarray(training.values))
    said = str(posterior.diagnose())
    assert "1 of them ended elsewhere than the best" in said.replace("\n          ", " ")


def test_draws_given_get_a_density_and_an_evidence() -> None:
    rng = np.random.default_rng(0)
    covariance = np.array([[1.0, 0.8], [0.8, 1.5]])
    draws = rng.multivariate_normal([1.0, -2.0], covariance, 2000)
    precision = np.linalg.inv(covariance)

    def log_density(u):
        away = u - jnp.array([1.0, -2.0])
        return 0.7 - 0.5 * away @ jnp.asarray(precision) @ away

    log_z = 0.7 + np.log(2 * np.pi) + 0.5 * np.linalg.slogdet(covariance)[1]
    target = pf.Target.from_log_density(log_density, np.zeros(2))
    method = pf.NormalizingFlow("realnvp", draws=draws, **QUICK)
    posterior = pf.fit(target, method, num_samples=2000, progress=False)
    evidence = posterior.evidence()
    assert evidence.log_evidence == pytest.approx(log_z, abs=4 * evidence.se + 1e-3)
    assert psis(posterior.log_weights()).k_hat < 0.7


# -- bad input --------------------------------------------------------------------------------------------------------


def normal(dim: int = 2) -> pf.Target:
    return pf.Target.from_log_density(lambda u: -0.5 * jnp.sum(u**2), np.zeros(dim))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"family": "glow"}, "family must be one of .*got 'glow'"),
        ({"num_bins": 1}, "num_bins must be a whole number >= 2, got 1"),
        ({"bound": 0.0}, "bound must be a finite number > 0, got 0.0"),
        ({"hidden": (0,)}, "hidden must be a whole number >= 1, got 0"),
        ({"mixing": "rotate"}, "mixing must be one of 'permutation', 'lu', got 'rotate'"),
        ({"activation": "sine"}, "activation must be one of"),
        ({"num_draws": 1}, "num_draws must be a whole number >= 2, got 1"),
        ({"anneal": 1.5}, "anneal must be a finite number strictly between 0 and 1, got 1.5"),
        ({"whiten": "pca"}, "whiten must be one of 'pathfinder', 'laplace', got 'pca'"),
        ({"learning_rate": -1.0}, "learning_rate must be a finite number > 0, got -1.0"),
        ({"estimator": "stl"}, "estimator must be one of infer.variational.estimators, got 'stl'"),
        ({"objective": IWAE(8), "estimator": FastPath()}, "FastPath with IWAE of K = 8 is biased"),
        ({"objective": ELBO(), "estimator": FixedDraws()}, "leaves out how the draws move"),
        ({"bijection": 3}, "bijection must have shape and transform_and_log_det .*got 3"),
        ({"draws": np.zeros((3, 2))}, r"draws must be a Posterior or an array of shape \(n, d\) with n >= 20"),
        ({"draws": np.full((30, 2), np.nan)}, "draws has 60 values that are not finite"),
        ({"draws": np.zeros((30, 2)), "objective": ELBO()}, "draws are for the forward KL"),
        ({"draws": np.zeros((30, 2)), "family": "bnaf"}, "family='bnaf' has no inverse, so that no density"),
    ],
)
def test_settings_out_of_range(options: dict, said: str) -> None:
    with pytest.raises(pf.InvalidArgument, match=said):
        pf.NormalizingFlow(**options)


@pytest.mark.parametrize("family", ["spline-coupling", "realnvp", "iaf", "maf"])
def test_one_dimension_needs_the_elementwise_family(family: str) -> None:
    with pytest.raises(pf.InvalidArgument, match=r"needs two coordinates or more.*use family='spline'"):
        pf.fit(normal(1), pf.NormalizingFlow(family, **QUICK), progress=False)


def test_dimensions_that_do_not_fit() -> None:
    method = pf.NormalizingFlow(draws=np.random.default_rng(0).normal(size=(30, 2)), **QUICK)
    with pytest.raises(pf.InvalidArgument, match=r"draws have shape \(30, 2\), and the target has dimension 3"):
        pf.fit(normal(3), method, progress=False)
    from flowjax.bijections import Affine

    with pytest.raises(pf.InvalidArgument, match=r"bijection has shape \(2,\), and the target has dimension 3"):
        pf.fit(normal(3), pf.NormalizingFlow(bijection=Affine(jnp.zeros(2)), **QUICK), progress=False)


def test_a_log_density_of_flipped_sign() -> None:
    flipped = pf.Target.from_log_density(lambda u: 0.5 * jnp.sum(u**2), np.zeros(2))
    with pytest.raises(pf.InvalidArgument, match="is its sign flipped"):
        pf.fit(flipped, pf.NormalizingFlow(**QUICK), progress=False)


def test_steps_with_draws_where_the_density_is_not_finite_are_skipped_and_counted() -> None:
    holes = pf.Target.from_log_density(
        lambda u: jnp.where(u[0] > 3.0, jnp.nan, -0.5 * jnp.sum(u**2)), np.zeros(2)
    )  # once in 750 draws
    method = pf.NormalizingFlow("realnvp", whiten=None, num_layers=2, hidden=(8,), num_steps=300, plateau=None)
    posterior = pf.fit(holes, method, start=np.zeros(2), num_samples=200, progress=False)
    skipped = int(posterior.approximation.training.skipped[0])
    assert 0 < skipped < 200
    assert skipped == posterior.iterations["skipped"].sum()
    assert np.isfinite(posterior.iterations["loss"]).all()
    assert f"{skipped} steps were skipped" in str(posterior.diagnose())


def test_an_improper_posterior_is_reported() -> None:
    x, sign = np.array([-2.0, -1.0, 1.0, 2.0]), np.array([-1.0, -1.0, 1.0, 1.0])  # separable, and no prior
    separable = pf.Target.from_log_density(
        lambda b: jnp.sum(jax.nn.log_sigmoid(jnp.asarray(sign) * (b[0] + b[1] * jnp.asarray(x)))), np.zeros(2)
    )
    method = pf.NormalizingFlow("realnvp", num_layers=2, hidden=(8,), num_steps=1000)
    said = str(pf.fit(separable, method, progress=False).diagnose()).replace("\n          ", " ")
    assert "the target may be improper" in said
    assert "Give it a proper prior" in said


def test_sticking_the_landing_by_an_inverse_that_is_not_there() -> None:
    method = pf.NormalizingFlow("planar", estimator=StickingTheLanding(), num_steps=5)
    with pytest.raises(pf.NotAvailable, match="Planar has no inverse"):
        pf.fit(normal(), method, progress=False)


def test_sticking_the_landing_by_a_sequential_inverse_is_computed_without_it() -> None:
    given = StickingTheLanding()
    assert isinstance(pf.NormalizingFlow("iaf", estimator=given)._estimator(), FastPath)
    assert pf.NormalizingFlow("realnvp", estimator=given)._estimator() is given


def test_a_log_density_that_is_not_finite_at_many_draws_is_shown_at_one() -> None:
    half = pf.Target.from_log_density(lambda u: jnp.where(u[0] > 0.5, jnp.nan, -0.5 * jnp.sum(u**2)), np.zeros(2))
    with jax.enable_x64(True):
        q = Flow(Chain((*build(jax.random.key(0), "realnvp", 2, Shape(num_layers=2)).bijections, unit_whitening())))
        state = jax.tree.map(lambda x: x[None], FlowState(Trainer().init(split(q)[0]), split(q)[1]))
        with pytest.raises(
            pf.NonFinite, match=r"Of 2,000 draws, \d+ have no finite log density; one is u = \["
        ) as found:
            best_flow(state, half, None)
    assert "give the support of the constrained parameters to the target" in str(found.value)
    counted = int(str(found.value).split("draws, ")[1].split()[0])
    assert counted == pytest.approx(2000 * 0.3085, abs=5 * np.sqrt(2000 * 0.3085 * 0.6915))  # 1 − Φ(0.5)


def test_a_support_that_was_not_given_is_asked_for_with_a_draw_outside() -> None:
    gamma = pf.Target.from_log_density(
        lambda x: jnp.where(jnp.all(x > 0), jnp.sum(jnp.log(jnp.abs(x)) - x), -jnp.inf), np.ones(2)
    )
    method = pf.NormalizingFlow("nice", whiten=None, num_layers=2, hidden=(4,), num_steps=60)
    said = (
        r"NormalizingFlow became inf .* Of 2,000 draws, \d+ have no finite log density; one is u = \[.*-\d.*support of"
    )
    with pytest.raises(pf.NonFinite, match=said):
        pf.fit(gamma, method, start=np.ones(2), progress=False)


def unit_whitening(scale: float = 1.0) -> Whitening:
    return Whitening.make(jnp.zeros(2), scale * jnp.eye(2))


@pytest.mark.parametrize("family", ["realnvp", "iaf", "maf"])
def test_log_scales_at_their_limit_are_reported_with_their_layer(family: str) -> None:
    with jax.enable_x64(True):
        stack, affine = build(
            jax.random.key(0), family, 2, Shape(num_layers=3, hidden=(4,), scale_limit=2.0)
        ).bijections
        calm = Flow(Chain((stack, affine, unit_whitening())))
        assert "log scales" not in {remark["name"] for remark in limits(calm)}
        where = lambda s: networks_of(s).biases[-1]  # noqa: E731
        pinned = eqx.tree_at(where, stack, where(stack).at[1, 0::2].set(50.0))  # log scale and shift alternate
        shares = pinned_shares(pinned, calm.sample_base(jax.random.key(0), 100))
        np.testing.assert_array_equal(shares, [0, 1, 0])
        said = {r["name"]: r for r in limits(Flow(Chain((pinned, affine, unit_whitening()))))}
    assert said["log scales"]["level"] == "warning"
    assert "Layer 1 of 0 to 2 has a log scale at its limit at 100% of draws" in said["log scales"]["message"]


def test_a_training_cut_off_is_a_warning_only_where_the_weights_see_something_left() -> None:
    said = [_ended(gain=2.0, gap=gap, plateau=0.01, num_steps=100, spread=1.0) for gap in (np.inf, 1.0, 0.1)]
    assert [remark["level"] for remark in said] == ["warning", "warning", "note"]
    assert "raise num_steps" in said[1]["message"]
    assert "would gain 2 nats at most, and 0.1 are left by the weights of the draws" in said[2]["message"]
    # Of N(0, 1.2² I) for N(0, I): E[log w] = −d (1.44 − 1 − log 1.44) / 2.
    with jax.enable_x64(True):
        wide = Flow(Chain((*build(jax.random.key(0), "nice", 2, Shape(num_layers=1)).bijections, unit_whitening(1.2))))
        assert seen_gap(wide, normal()) == pytest.approx(0.44 - np.log(1.44), abs=0.03)


def networks_of(stack: Stack) -> Any:
    layer = stack.layer.bijections[0]
    return (layer.bijection if isinstance(layer, Invert) else layer).network


def test_a_stiff_field_is_reported() -> None:
    with jax.enable_x64(True):
        shape = Shape(hidden=(), tolerance=1e-6)
        stack, affine = build(jax.random.key(0), "continuous", 2, shape).bijections
        field = lambda s: s.layer.network.weights[0]  # noqa: E731
        for rate, stiff in ((1.0, False), (-3000.0, True)):
            weight = jnp.zeros_like(field(stack)).at[0, 0, 0].set(rate)
            q = Flow(Chain((eqx.tree_at(field, stack, weight), affine, unit_whitening())))
            share = solver_share(q.bijection.bijections[0], q.sample_base(jax.random.key(0), 5))
            assert (share > 0.5) == stiff, share
            assert ("solver" in {remark["name"] for remark in limits(q)}) == stiff


# -- bijections of flowjax --------------------------------------------------------------------------------------------


def test_a_flow_of_flowjax_is_taken_and_ours_is_taken_by_flowjax() -> None:
    import flowjax.flows
    from flowjax.distributions import StandardNormal, Transformed

    theirs = flowjax.flows.coupling_flow(
        jax.random.key(0), base_dist=StandardNormal((2,)), flow_layers=2, nn_width=8, invert=False
    )
    method = pf.NormalizingFlow(bijection=theirs.bijection, num_steps=200, num_draws=16)
    posterior = pf.fit(normal(), method, num_samples=1000, progress=False)
    assert posterior.evidence().log_evidence == pytest.approx(np.log(2 * np.pi), abs=0.05)
    with jax.enable_x64(True):
        flow = posterior.approximation
        wrapped = Transformed(StandardNormal((2,)), ring().approximation.bijection)
        u = jnp.array([[0.1, -0.3], [2.0, 0.0]])
        np.testing.assert_allclose(wrapped.log_prob(u), jax.vmap(ring().approximation.log_prob)(u), rtol=1e-6)
        assert flow.log_prob(u[0]).dtype == np.float64
