"""Fits: chains against exact laws, invariants, proximal steps, what is refused and what is warned of."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.distributed.mesh import data_mesh
from pushforward.infer.target.shards import ShardedTarget
from pushforward.infer.target.spread import spread_rows
from pushforward.samplers.agents import law, prox
from pushforward.samplers.agents.findings import PATIENCE, unsolved
from pushforward.samplers.agents.graph import as_graph
from pushforward.samplers.agents.law import QuadraticShares
from pushforward.samplers.agents.prox import prox_chord, prox_newton
from pushforward.samplers.agents.tuning import Curvature, laplace

from .regression import linear_target, posterior


def logistic(agents: int = 4, rows: int = 25, scale: float = 1.0) -> pf.Target:
    """A logistic regression in three dimensions, in equal shards."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(agents * rows, 3)) * scale
    y = rng.random(agents * rows) < 1 / (1 + np.exp(-x @ np.array([1.0, -0.5, 0.3])))
    target = pf.Target.from_factors(
        lambda b: -0.05 * jnp.sum(b**2),
        lambda b, datum: datum["y"] * (datum["x"] @ b) - jnp.logaddexp(0.0, datum["x"] @ b),
        {"x": x, "y": y.astype(float)},
        np.zeros(3),
    )
    return target.sharded(agents)


def error_in_sd(fit: pf.Posterior, mean: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    draws = np.asarray(fit.draws()["x"]).reshape(-1, len(mean))
    sd = np.sqrt(np.diag(covariance))
    return (draws.mean(0) - mean) / sd, draws.std(0) / sd


@pytest.fixture(scope="module")
def regression_fit() -> pf.Posterior:
    """Twenty agents on a ring, everything by default."""
    return pf.fit(
        linear_target(20, 10),
        pf.DistributedADMM(),
        num_chains=64,
        num_samples=1000,
        num_warmup=200,
        thin=2,
        progress=False,
    )


def test_a_fit_by_default_is_right(regression_fit):
    mean, covariance = posterior(20, 10)
    off, ratio = error_in_sd(regression_fit, mean, covariance)
    # 64 chains of 2,000 iterations that mix in 26: 2,500 independent draws.
    assert np.all(np.abs(off) < 0.07)
    assert np.all(np.abs(ratio - 0.99) < 0.05)
    names = {finding.name: finding.level for finding in regression_fit.diagnose().findings}
    assert names["disagreement"] == "ok"
    assert names["predicted bias"] == "note"


def test_what_was_predicted_is_what_happens():
    """One agent's iterates with noise of its own, against the exact law."""
    target = linear_target(5, 50)
    method = pf.DistributedADMM("ring", rho=5.0, noise="langevin", keep=0)
    fit = pf.fit(target, method, num_chains=400, num_samples=40, num_warmup=150, thin=10, progress=False)
    mean, covariance = posterior(5, 50)
    off, ratio = error_in_sd(fit, mean, covariance)
    with jax.enable_x64(True):
        made = method.tune(jax.random.key(0), target, jnp.zeros(2)).fix(target)
        step = law.affine(made, target)
        end = law.stationary(step, law.start(made, target)).of(step.iterates[0])
    assert np.all(np.abs(off) < 0.07)
    np.testing.assert_allclose(ratio**2, np.diag(end[1]) / np.diag(covariance), rtol=0.06)
    assert ratio.min() ** 2 > 2
    assert method.predict(target).agent_variance > 1
    assert method.predict(target).variance < 0.1
    names = {finding.name: finding for finding in fit.diagnose().findings}
    assert names["disagreement"].level == "warning"
    assert "average is what to use, not agent 0" in names["disagreement"].message


@pytest.fixture(scope="module")
def exact() -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the logistic regression, by NUTS."""
    fit = pf.fit(logistic(), pf.NUTS(), num_samples=2000, progress=False)
    draws = np.asarray(fit.draws()["x"]).reshape(-1, 3)
    return draws.mean(0), np.cov(draws.T)


@pytest.mark.parametrize(
    ("given", "mean", "sd"),
    [
        (pf.DistributedADMM("star"), 0.08, 0.05),
        pytest.param(pf.SplitGibbs(), 0.12, 0.08, marks=pytest.mark.slow),
        pytest.param(pf.FALD(), 0.12, 0.08, marks=pytest.mark.slow),
        # Noise of the agents' own, in shares that are not quadratic, moves the mean.
        (pf.DSGHMC(tolerance=0.05), 0.2, 0.08),
        pytest.param(pf.DistributedADMM("complete"), 0.08, 0.05, marks=pytest.mark.slow),
        pytest.param(pf.DSGLD(tolerance=0.05), 0.2, 0.08, marks=pytest.mark.slow),
        pytest.param(pf.DULA(tolerance=0.05), 0.2, 0.08, marks=pytest.mark.slow),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, float) else "",
)
def test_shares_that_are_not_quadratic_against_nuts(given, mean, sd, exact):
    fit = pf.fit(logistic(), given, num_chains=64, num_samples=250, num_warmup=300, thin=5, progress=False)
    off, ratio = error_in_sd(fit, *exact)
    assert np.all(np.abs(off) < mean), off
    assert np.all(np.abs(ratio - 1) < sd), ratio


def test_duals_sum_to_zero_and_the_noiseless_run_ends_at_the_mode():
    target = linear_target(5, 50)
    method = pf.DistributedADMM("star", rho=5.0, noise="none", plan=False, scatter=1.0)
    with jax.enable_x64(True):
        method = method.prepare(jax.random.key(0), target, [jnp.zeros(2)]).settle(target)
        state = method.init(jax.random.key(1), target, jnp.zeros(2))
        step = jax.jit(lambda state, t: method.step(jax.random.key(2), state, target, t)[0])
        for t in range(400):
            state = step(state, t)
            if t % 50 == 0:
                assert np.abs(np.sum(state.memory[0], axis=0)).max() < 1e-10
    np.testing.assert_allclose(state.x, np.tile(posterior(5, 50)[0], (5, 1)), atol=1e-6)


def test_relabelled_agents_make_the_same_run_relabelled():
    """Graph, data and draws permuted: an index that reads the wrong agent cannot pass."""
    order = np.array([2, 0, 3, 1, 4])
    matrix = as_graph("star", 5).adjacency()
    target = linear_target(5, 50)
    other = ShardedTarget(target.target, {k: v[order] for k, v in target.rows.items()}, target.mask[order])
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)))
        xi = jnp.asarray(np.random.default_rng(1).normal(size=(5, 2)))
        results = []
        for graph, shares, permuted in ((matrix, target, slice(None)), (matrix[np.ix_(order, order)], other, order)):
            made = pf.DistributedADMM(graph, rho=0.3, noise="langevin", plan=False).fix(shares)
            new = made.advance(
                x[permuted], made.first_memory(jax.random.key(0), x[permuted]), (xi[permuted], None), shares, 0
            )
            new = made.advance(new.x, new.memory, (xi[permuted], None), shares, 1)
            results.append((np.asarray(new.x), np.asarray(new.memory[0])))
    np.testing.assert_allclose(results[0][0][order], results[1][0], rtol=1e-12)
    np.testing.assert_allclose(results[0][1][order], results[1][1], rtol=1e-10, atol=1e-12)


def test_shards_of_different_sizes_are_one_posterior():
    """The prior counts once, padding not at all; λ is small, so that n priors would move the mode."""
    rng = np.random.default_rng(3)
    y = rng.normal(size=17) + 2
    agent = np.repeat([0, 1, 2], [3, 10, 4])
    target = pf.Target.from_factors(
        lambda p: -(p**2) / (2 * 0.1), lambda p, datum: -0.5 * (datum - p) ** 2, y, np.zeros(())
    ).sharded(agent)
    assert target.sizes.tolist() == [3, 10, 4]
    mean, variance = y.sum() / (17 + 10), 1 / (17 + 10)
    fit = pf.fit(
        target, pf.DistributedADMM("path"), num_chains=100, num_samples=100, num_warmup=200, thin=10, progress=False
    )
    draws = np.asarray(fit.draws()["x"])
    assert draws.mean() == pytest.approx(mean, abs=0.06 * variance**0.5)
    assert draws.std() == pytest.approx(variance**0.5, rel=0.04)
    with jax.enable_x64(True):
        for u in (-1.0, 0.5):
            total = sum(
                target.share(jnp.asarray([u]), jax.tree.map(lambda x, i=i: x[i], target.shards)) for i in range(3)
            )
            assert float(total) == pytest.approx(-(u**2) / 0.2 - 0.5 * np.sum((y - u) ** 2), rel=1e-12)


@pytest.mark.parametrize("dense", [True, False])
def test_the_proximal_step_solves_its_equation(dense, monkeypatch):
    """Logistic loss far out in its flat tail, where undamped Newton steps run away."""
    monkeypatch.setattr(prox, "DENSE_DIM", 64 if dense else 0)
    x = np.random.default_rng(0).normal(size=(30, 3)) * 5
    f = lambda b: jnp.sum(jnp.logaddexp(0.0, x @ b))  # noqa: E731
    with jax.enable_x64(True):
        v, start, kappa = jnp.array([3.0, -2.0, 1.0]), jnp.array([20.0, 30.0, -25.0]), jnp.asarray(0.05)
        solved = jax.jit(lambda: prox_newton(f, start, v, kappa, jnp.asarray(1e-8)))()
        gradient = jax.grad(f)(solved.x) + kappa * (solved.x - v)
        assert float(jnp.linalg.norm(gradient)) < 1e-8
        # With the curvature of another point, from which a few steps are enough, or none: Newton goes on.
        for where, most in ((solved.x + 0.01, 12), (start, 1000)):
            inverse = jnp.linalg.inv(jax.hessian(f)(where) + kappa * jnp.eye(3))
            again = jax.jit(lambda given: prox_chord(f, given, solved.x + 0.02, v, kappa, jnp.asarray(1e-8)))(inverse)
            np.testing.assert_allclose(again.x, solved.x, atol=1e-6)
            assert int(again.num_evaluations) < most
    assert not solved.indefinite


def test_an_indefinite_share_ends_the_run_with_the_agent_named():
    def log_likelihood(p, datum):
        return -0.5 * datum["w"] * p**2 + 4.0 * datum["k"] * p**2

    data = {"w": np.full(6, 2.0), "k": np.array([0, 0, 0, 0, 0, 1.0])}
    target = pf.Target.from_factors(lambda p: -0.5 * p**2, log_likelihood, data, np.zeros(())).sharded(3)
    with pytest.raises(pf.NonFinite, match=r"share of agent 2 is not convex .* raise rho"):
        pf.fit(target, pf.DistributedADMM(rho=0.01, plan=False), num_samples=20, num_warmup=0, progress=False)


def test_settings_that_are_wrong_are_refused():
    target = linear_target(5, 50)
    cases = [
        (lambda: pf.DistributedADMM(rho=0.0), "rho must be a finite number > 0, got 0.0"),
        (lambda: pf.DistributedADMM(rho="big"), "'big'"),
        (lambda: pf.DistributedADMM(noise="loud"), "'loud'"),
        (lambda: pf.DistributedADMM(noise=1.5), "1.5"),
        (lambda: pf.DistributedADMM(noise=None), "noise must be a rule or a share τ .* got None"),
        (lambda: target.sharded(2), "in 5 shards already"),
        (lambda: pf.DistributedADMM(plan=False), "plan=False needs a number for rho"),
        (lambda: pf.DistributedADMM(precondition="star"), "precondition must be one of 'auto', got 'star'"),
        (lambda: pf.FALD(communication=0.0), "communication"),
        (lambda: pf.fit(target, pf.DistributedADMM(np.ones((4, 4)) - np.eye(4))), "4 agents, and the target has 5"),
        (lambda: pf.fit(target.target, pf.DistributedADMM("ring")), "must know the number of agents"),
        (lambda: pf.fit(target, pf.DistributedADMM(keep=5)), "keep=5 is no agent"),
        (lambda: pf.fit(target, pf.DistributedADMM(rho=0.01, prox="linearised")), "is unstable"),
        (lambda: pf.fit(target, pf.DSGLD(step_size=3.0)), "DSGLD with step_size=3 is unstable"),
        (lambda: pf.fit(target, pf.DULA(step_size=0.001, coupling=0.9)), "coupling=0.9 is unstable"),
        (lambda: target.target.sharded(251), "251 shards of 250 observations"),
        (lambda: target.target.sharded(np.zeros(3, int)), "agent .* of each of the 250"),
        (lambda: target.target.sharded(np.repeat([0, 2], 125)), "agent 1 has 0 observations"),
    ]
    for call, message in cases:
        with pytest.raises(pf.InvalidArgument, match=message):
            call()


@pytest.mark.parametrize("graph", ["star", "complete"])
def test_planning_is_in_64_bits_whatever_the_run_is_in(graph):
    """In 32 bits invariants are 1e-7 off 1, and would look like modes that grow; settings are those of 64 bits."""
    target, method = linear_target(20, 10), pf.DistributedADMM(graph)
    with jax.enable_x64(False):
        made = method.tune(jax.random.key(0), target, jnp.zeros(2))
        kept = jax.tree.leaves(made.tuned())
    assert {x.dtype for x in kept} == {np.dtype(np.float32)}
    told = method.predict(target)
    assert float(made.rho) == pytest.approx(told.settings["rho"], rel=1e-4)
    assert made.forecast.variance == pytest.approx(told.variance, rel=1e-3)
    assert made.forecast.mixing_time == pytest.approx(told.mixing_time, rel=1e-3)


def test_a_temperature_is_no_bias_that_rho_could_mend():
    """With equal degrees the paper's noise is Langevin's times a number, and ρ the same."""
    target = linear_target(20, 10)
    told = {noise: pf.DistributedADMM(noise=noise).predict(target) for noise in ("shared", "langevin", "paper", "none")}
    rho = {noise: found.settings["rho"] for noise, found in told.items()}
    assert rho["paper"] == rho["langevin"]
    assert rho["none"] == rho["shared"]
    assert told["paper"].temperature == pytest.approx(1 / rho["paper"], rel=1e-6)  # d/(2ρ)
    assert told["none"].temperature == 0
    assert told["paper"].variance > 0.5  # the temperature is part of what is told
    assert told["none"].mixing_time == pytest.approx(told["shared"].mixing_time)


def test_warnings_before_the_run():
    target = linear_target(5, 50)
    short = {"num_samples": 20, "num_warmup": 0, "num_chains": 1, "progress": False}
    with (
        pytest.warns(UserWarning, match="temperature 0.02: .* raised to 1/0.02"),
        pytest.warns(UserWarning, match="predicted to mix in .* iterations, and the run has 20"),
    ):
        pf.fit(target, pf.DistributedADMM(rho=50.0, noise="paper"), **short)
    with (
        pytest.warns(UserWarning, match="ends at the mode"),
        pytest.warns(UserWarning, match="predicted to mix in .* iterations, and the run has 20"),
    ):
        pf.fit(target, pf.DistributedADMM(rho=50.0, noise="none"), **short)
    with pytest.warns(UserWarning, match="off by .* in a variance of the average"):
        pf.fit(target, pf.DistributedADMM(rho=0.3), **(short | {"num_samples": 100}))
    with pytest.warns(UserWarning, match="predicted to mix in .* iterations, and the run has 20"):
        pf.fit(target, pf.DistributedADMM(), **short)


DEVICES = """
import sys
import jax, numpy as np
import pushforward as pf
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
from tests.samplers.agents.regression import linear_target
from tests.samplers.agents.test_fit import logistic
for target in (linear_target(8, 10), logistic(6, 12)):
    fit = pf.fit(target, pf.DistributedADMM(rho=2.0, plan=False, noise=0.5), num_chains=4, num_samples=30,
                 num_warmup=0, chains_per_program=4, progress=False)
    print(np.asarray(fit.draws()["x"]).tobytes().hex())
"""


@pytest.mark.slow
def test_one_device_and_eight_give_the_same_draws():
    runs = {}
    for count in (1, 8):
        out = subprocess.run([sys.executable, "-c", DEVICES, str(count)], capture_output=True, text=True, check=True)
        runs[count] = [np.frombuffer(bytes.fromhex(line)) for line in out.stdout.split()]
    for one, eight in zip(runs[1], runs[8], strict=True):
        np.testing.assert_allclose(one, eight, rtol=1e-10, atol=1e-12)


def test_proximal_steps_that_are_never_solved_end_the_run():
    residual, slowest = np.zeros((2, 60)), np.full((2, 60), 3)
    residual[1, 10 : 10 + PATIENCE - 1] = 7.0
    assert unsolved("DistributedADMM", residual, slowest) is None
    residual[1, 10 : 10 + PATIENCE] = 7.0
    said = unsolved("DistributedADMM", residual, slowest)
    assert "agent 3 was not solved in 20 iterations on end (residual 7 times what is tolerated); raise rho" in said


def test_an_iterate_that_runs_away_is_named_by_its_agent():
    """Agent 2 alone has data that make the step unstable."""
    x = np.where(np.arange(12) // 4 == 2, 30.0, 0.1)
    target = pf.Target.from_factors(lambda b: -0.5 * b**2, lambda b, x: -0.5 * (x * b - 1) ** 2, x, np.zeros(()))
    with pytest.raises(pf.NonFinite, match=r"DSGLD: the iterate of agent 2 became infinite or NaN in chain 0;"):
        pf.fit(
            target.sharded(3), pf.DSGLD("path", step_size=0.9, plan=False), num_samples=300, num_warmup=0, num_chains=1,
            progress=False,
        )  # fmt: skip


@pytest.mark.filterwarnings("ignore:DistributedADMM.* is predicted to mix")
def test_chains_begin_around_the_mode_where_it_is_looked_for():
    """A covariate of a hundred units: random starts lie hundreds of standard deviations out, in flat tails."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, 2)) * np.array([1.0, 100.0])
    y = rng.random(300) < 1 / (1 + np.exp(-x @ np.array([1.0, 0.005])))
    target = pf.Target.from_factors(
        lambda b: -0.05 * jnp.sum(b**2),
        lambda b, datum: datum["y"] * (datum["x"] @ b) - jnp.logaddexp(0.0, datum["x"] @ b),
        {"x": x, "y": y.astype(float)},
        np.zeros(2),
    ).sharded(5)
    posterior = pf.fit(target, pf.DistributedADMM("ring"), num_chains=16, num_samples=2, num_warmup=0, progress=False)
    with jax.enable_x64(True):
        found, _ = laplace(target, jnp.zeros(2))
        z = jax.vmap(found.pull)(jnp.asarray(posterior.draws()["x"])[:, 0])
    assert 1.2 < np.sqrt(np.mean(np.asarray(z) ** 2)) < 3.2  # twice as wide as the posterior, before they have mixed


def test_what_samplers_on_agents_cannot_run_on_is_refused():
    shared = spread_rows(logistic().target, data_mesh(jax.devices()[:1]))
    with pytest.raises(pf.UnsupportedTarget, match=r"DistributedADMM shares its agents out .*got a SpreadTarget"):
        pf.DistributedADMM("ring").prepare(jax.random.key(0), shared, jnp.zeros((1, 3)))
    rows, zeros = np.ones(4), np.zeros(3200)
    wide = pf.Target.from_factors(lambda b: -0.5 * b @ b, lambda b, y: -0.5 * (y - b[0]) ** 2, rows, zeros)
    with pytest.raises(pf.UnsupportedTarget, match="2 of them in dimension 3200 are more than 20,000,000 numbers"):
        pf.SplitGibbs(rho=1.0, plan=False).fix(wide.sharded(2))


def sharp(agents):
    """Of these agents one has 200 times the curvature of the others, of which the average says little."""
    x = np.ones((agents, 1))
    x[0] = np.sqrt(200.0)
    return pf.Target.from_factors(
        lambda b: -0.5 * b @ b, lambda b, row: -0.5 * (row[1] - row[0] @ b) ** 2, (x, np.ones(agents)), np.zeros(1)
    ).sharded(agents)


def test_one_sharp_share_bounds_the_step_of_federated_langevin():
    target = sharp(80)
    with pytest.raises(pf.InvalidArgument, match=r"FALD with step_size=0.2 is unstable: .*lower step_size"):
        pf.FALD(step_size=0.2, precondition=None).predict(target)
    fitted = pf.fit(target, pf.FALD(), key=0, num_chains=2, num_samples=800, num_warmup=400, progress=False)
    assert np.abs(fitted.draws()["x"]).max() < 2  # 0.3 ± 0.06


@pytest.mark.parametrize("graph", ["ring", "complete"])
def test_one_sharp_share_bounds_the_steps_of_decentralised_samplers(graph):
    """Up to the largest step the law's eigenvalues are below 1, far above they are not; a step that is given stays."""
    n, h = 60, np.ones((60, 1, 1)) / 260
    h[7] *= 200
    found = Curvature(h, np.zeros((n, 1)), True)
    with jax.enable_x64(True):
        shares = QuadraticShares(jnp.asarray(h), jnp.zeros((n, 1)))
        for given in (pf.DSGLD(graph), pf.DULA(graph), pf.DSGHMC(graph)):
            made = given.placed(n)._aimed(found, True)
            assert np.isfinite(made.forecast.mixing_time)
            largest = made.largest_step(h.max(), n)
            assert made.step_size <= made.largest_step(2 * h.max(), n) < largest
            radius = [
                np.abs(
                    np.linalg.eigvals(
                        law.affine(dataclasses.replace(made, step_size=step).fix(shares), shares).transition
                    )
                )
                for step in (0.99 * largest, 4 * largest)
            ]
            assert radius[0].max() < 1 < radius[1].max()
        held = dataclasses.replace(pf.DULA(graph), step_size=1e-3).placed(n)._aimed(found, True)
    assert held.step_size == 1e-3
