"""Exact laws, read off the samplers' own updates, against hand calculations, closed forms and exact moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.samplers.agents import law
from pushforward.samplers.agents.law import Law, QuadraticShares
from pushforward.samplers.agents.planned import AbstractPlanned
from pushforward.samplers.agents.tuning import Curvature

from .regression import LAMBDA, linear_target, posterior, regression, wasserstein

# W2 of agent 0 and of the average to the posterior after k iterations from N(0, I), by k; 0 stands for k → ∞.
GOLD = {
    ("ring", 5, 50, "paper"): {
        5: (2.6205, 2.6026), 20: (0.3837, 0.4179), 49: (0.1234, 0.2159), 99: (0.1231, 0.2158), 0: (0.1231, 0.2158),
    },
    ("ring", 5, 50, "langevin"): {
        5: (2.6349, 2.6037), 20: (0.4143, 0.3617), 49: (0.1954, 0.0146), 99: (0.1953, 0.0122), 0: (0.1953, 0.0122),
    },
    ("ring", 5, 50, "shared"): {49: (0.0161, 0.0147), 99: (0.0140, 0.0122), 0: (0.0140, 0.0122)},
    ("ring", 5, 50, "none"): {
        5: (2.6192, 2.6030), 20: (0.4937, 0.4916), 49: (0.3795, 0.3795), 99: (0.3805, 0.3805), 0: (0.3805, 0.3805),
    },
    ("ring", 5, 50, "dsgld"): {
        5: (4.3918, 4.4151), 20: (2.9943, 3.0078), 49: (1.4323, 1.4334), 99: (0.4095, 0.4004), 0: (0.0527, 0.0029),
    },
    ("ring", 5, 50, "dsghmc"): {
        5: (4.1191, 4.1535), 20: (2.2117, 2.2244), 49: (0.6750, 0.6667), 99: (0.1149, 0.0845), 0: (0.0613, 0.0031),
    },
    ("complete", 5, 50, "shared"): {49: (0.1810, 0.1809), 99: (0.0090, 0.0089), 0: (0.0066, 0.0064)},
    ("ring", 20, 10, "langevin"): {
        5: (4.0722, 4.0657), 20: (2.6995, 2.6565), 49: (1.2246, 1.1746), 99: (0.5131, 0.2964), 0: (0.4202, 0.0026),
    },
}  # fmt: skip
MORE = {
    ("complete", 5, 50, "paper"): {
        5: (3.5795, 3.5718), 20: (1.2916, 1.2938), 49: (0.1938, 0.2304), 99: (0.0706, 0.1440), 0: (0.0704, 0.1439),
    },
    ("complete", 5, 50, "langevin"): {
        5: (3.5841, 3.5732), 20: (1.2975, 1.2902), 49: (0.2119, 0.1809), 99: (0.1101, 0.0089), 0: (0.1099, 0.0064),
    },
    ("ring", 20, 10, "paper"): {
        5: (4.0594, 4.0670), 20: (2.6684, 2.6625), 49: (1.1549, 1.1953), 99: (0.2981, 0.3761), 0: (0.0436, 0.2322),
    },
    ("ring", 20, 10, "shared"): {49: (1.1542, 1.1746), 99: (0.2951, 0.2964), 0: (0.0027, 0.0027)},
    ("complete", 20, 50, "paper"): {
        5: (4.4805, 4.4760), 20: (3.5439, 3.5402), 49: (2.2558, 2.2505), 99: (1.0434, 1.0325), 0: (0.1639, 0.0682),
    },
    ("complete", 20, 50, "shared"): {49: (2.2492, 2.2492), 99: (1.0301, 1.0301), 0: (0.0007, 0.0007)},
}  # fmt: skip
# The average alone: D-SGLD, D-SGHMC, D-ULA with the constants of the released code.
AVERAGES = {
    ("ring", 20, 10): {49: (3.632, 3.139, 3.298), 99: (2.807, 2.089, 2.321)},
    ("complete", 20, 50): {49: (1.272, 0.560, 0.762), 99: (0.327, 0.061, 0.118)},
}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def method(graph: str, rule: str) -> AbstractPlanned:
    """A sampler with the settings of the paper's experiments."""
    if rule == "dsgld":
        return pf.DSGLD(graph, step_size=0.009, plan=False)
    if rule == "dsghmc":
        return pf.DSGHMC(graph, step_size=0.1, friction=7.0, plan=False)
    if rule == "dula":
        decay = 0.55 if graph == "complete" else 0.05
        step, coupling = 0.00082 / 230**0.05, 0.48 / 230**decay
        return pf.DULA(graph, step, coupling=coupling, step_decay=0.05, coupling_decay=decay, plan=False)
    return pf.DistributedADMM(graph, rho=5.0, noise=rule, plan=False)


def ready(given, target):
    """As `fit` prepares a method."""
    return given.tune(jax.random.key(0), target, jnp.zeros(target.dim)).fix(target)


def first(made, target) -> Law:
    """N(0, I) for all agents; momenta, if any, too."""
    found = law.start(made, target)
    return Law(found.mean, np.eye(len(found.mean))) if isinstance(made, pf.DSGHMC) else found


def check(graph: str, agents: int, rows: int, rule: str, gold: dict) -> None:
    target, exact = linear_target(agents, rows), posterior(agents, rows)
    made = ready(method(graph, rule), target)
    step = law.affine(made, target)
    now = first(made, target)
    for k in range(max(gold) + 1):
        if k in gold and k > 0:
            agent, average = (wasserstein(*now.of(where), *exact) for where in (step.iterates[0], step.average))
            assert (agent, average) == pytest.approx(gold[k], abs=1.01e-4), k
        now = law.advance(now, step)
    end = law.stationary(step, first(made, target))
    agent, average = (wasserstein(*end.of(where), *exact) for where in (step.iterates[0], step.average))
    assert (agent, average) == pytest.approx(gold[0], abs=1.01e-4)


def test_the_data_are_those_of_the_paper():
    np.testing.assert_allclose(regression(5, 50)[0], [4.210846, 2.261911], atol=1e-6)
    mean, covariance = posterior(5, 50)
    np.testing.assert_allclose(mean, [4.377635, 2.441044], atol=1e-6)
    np.testing.assert_allclose(covariance.ravel(), [0.07312102, -0.00185815, -0.00185815, 0.07169400], atol=1e-8)


@pytest.mark.parametrize("case", list(GOLD), ids=lambda case: "-".join(map(str, case)))
def test_laws_at_every_iteration(case):
    check(*case, GOLD[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", list(MORE), ids=lambda case: "-".join(map(str, case)))
def test_laws_at_every_iteration_on_more_graphs(case):
    check(*case, MORE[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", list(AVERAGES), ids=lambda case: "-".join(map(str, case)))
def test_averages_of_the_baselines(case):
    graph, agents, rows = case
    target, exact = linear_target(agents, rows), posterior(agents, rows)
    for i, rule in enumerate(("dsgld", "dsghmc", "dula")):
        made = ready(method(graph, rule), target)
        step, now = law.affine(made, target), first(made, target)
        for k in range(100):
            if k in AVERAGES[case]:
                found = wasserstein(*now.of(step.average), *exact)
                assert found == pytest.approx(AVERAGES[case][k][i], abs=1.01e-3), (rule, k)
            if rule == "dula":
                step = law.affine(made, target, k)
            now = law.advance(now, step)


def test_one_step_by_hand():
    """f_i = x²/2 on the path 1–2–3, ρ = 1, no noise."""
    shares = QuadraticShares(jnp.ones((3, 1, 1)), jnp.zeros((3, 1)))
    for made in (pf.DistributedADMM("path", rho=1.0, noise="none", plan=False).fix(shares),):
        x = jnp.array([[3.0], [2.0], [4.0]])
        new = made.advance(
            x, made.first_memory(jax.random.key(0), x), made.normals(jax.random.key(0), x.shape, x.dtype), shares, 0
        )
        np.testing.assert_allclose(new.x[:, 0], [5 / 3, 11 / 5, 2], rtol=1e-12)
        np.testing.assert_allclose(new.memory[0][:, 0], [-8 / 15, 11 / 15, -1 / 5], rtol=1e-12)


@pytest.mark.parametrize(
    ("graph", "n", "rule", "average", "agent"),
    [
        ("ring", 5, "paper", 0.1855, 0.4850),
        ("ring", 5, "langevin", 0.9275, 2.4250),
        ("ring", 5, "shared", 0.9275, 0.9275),
        ("complete", 5, "paper", 0.3850, 0.6967),
        ("complete", 5, "langevin", 0.9624, 1.7417),
        ("complete", 5, "shared", 0.9624, 0.9624),
        ("ring", 20, "langevin", 0.9275, 9.4475),
    ],
)
def test_variances_for_equal_curvature(graph, n, rule, average, agent):
    h = 3.125
    shares = QuadraticShares(jnp.full((n, 1, 1), h), jnp.ones((n, 1)))
    made = pf.DistributedADMM(graph, rho=5.0, noise=rule, plan=False).fix(shares)
    step = law.affine(made, shares)
    end = law.stationary(step, law.start(made, shares))
    found = [float(end.of(where)[1][0, 0]) * n * h for where in (step.average, step.iterates[0])]
    assert found == pytest.approx([average, agent], abs=1e-4)
    assert float(end.of(step.iterates[0])[0][0]) == pytest.approx(1 / h, rel=1e-9)


def test_variances_of_the_linearised_step():
    shares = QuadraticShares(jnp.full((5, 1, 1), 3.125), jnp.zeros((5, 1)))
    made = pf.DistributedADMM("ring", rho=5.0, noise="langevin", prox="linearised", plan=False).fix(shares)
    step = law.affine(made, shares)
    end = law.stationary(step, law.start(made, shares))
    found = [float(end.of(where)[1][0, 0]) * 5 * 3.125 for where in (step.average, step.iterates[0])]
    assert found == pytest.approx([1.0847, 3.2344], abs=1e-4)


def test_irregular_graphs_are_weighted_by_degree():
    """A star at large ρ: the paper's noise has the temperature Σd²/(2ρΣd) = 0.03; Langevin noise has 1."""
    shares = QuadraticShares(jnp.ones((6, 1, 1)), jnp.zeros((6, 1)))
    for rule, expected in (("paper", 0.0299), ("langevin", 1 / (1 + 6 / (4 * 50 * 10))), ("shared", None)):
        made = pf.DistributedADMM("star", rho=50.0, noise=rule, plan=False).fix(shares)
        step = law.affine(made, shares)
        ratio = float(law.stationary(step, law.start(made, shares)).of(step.average)[1][0, 0]) * 6
        assert ratio == pytest.approx(expected or 1 / (1 + 6 / (4 * 50 * 10)), abs=2e-4), rule


def test_means_are_exact_whatever_the_shares():
    rng = np.random.default_rng(1)
    roots = rng.normal(size=(6, 2, 2))
    shares = QuadraticShares(
        jnp.asarray(roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(2)), jnp.asarray(rng.normal(size=(6, 2)))
    )
    exact = np.linalg.solve(np.asarray(shares.hessians).sum(0), np.asarray(shares.linear).sum(0))
    for noise in ("langevin", 0.5):
        made = pf.DistributedADMM("star", rho=0.7, noise=noise, plan=False).fix(shares)
        step = law.affine(made, shares)
        end = law.stationary(step, law.start(made, shares))
        for where in (*step.iterates, step.average):
            np.testing.assert_allclose(end.of(where)[0], exact, atol=1e-8)
    langevin = pf.DSGLD("star", step_size=0.05, plan=False).fix(shares)
    step = law.affine(langevin, shares)
    away = law.stationary(step, law.start(langevin, shares)).of(step.iterates[0])[0] - exact
    assert np.abs(away).max() > 0.05  # what the dual is for


@pytest.mark.parametrize(
    ("variance", "distance", "contraction"), [(0.01, 0.0054, 0.974), (0.1, 0.0508, 0.789), (1.0, 0.3603, 0.275)]
)
def test_split_gibbs(variance, distance, contraction):
    """θ has the precision Σ(H_i⁻¹ + ρ²I)⁻¹."""
    target, (mean, covariance) = linear_target(5, 50), posterior(5, 50)
    made = ready(pf.SplitGibbs(rho=variance**0.5, plan=False), target)
    step = law.affine(made, target)
    end = law.stationary(step, law.start(made, target)).of(step.average)
    assert wasserstein(*end, mean, covariance) == pytest.approx(distance, abs=1e-4)
    assert np.exp(-1 / law.mixing_time(step)) == pytest.approx(contraction, abs=1e-3)
    _, x, _ = regression(5, 50)
    hessians = [one.T @ one / 16 + np.eye(2) / (5 * LAMBDA) for one in x]
    precision = sum(np.linalg.inv(np.linalg.inv(h) + variance * np.eye(2)) for h in hessians)
    np.testing.assert_allclose(end[1], np.linalg.inv(precision), rtol=1e-8)


def test_closed_forms_are_those_of_the_law():
    """What stands in for large problems, against the exact law for equal shares."""
    n, h = 6, np.array([0.5, 2.0])
    shares = QuadraticShares(jnp.tile(jnp.diag(jnp.asarray(h)), (n, 1, 1)), jnp.zeros((n, 2)))
    for given in (
        pf.DistributedADMM("ring", rho=3.0, plan=False),
        pf.DSGLD("ring", step_size=0.1, plan=False),
        pf.DSGHMC("ring", step_size=0.1, friction=1.5, plan=False),
        pf.DULA("ring", step_size=0.01, coupling=0.2, plan=False),
        pf.SplitGibbs(rho=0.3, plan=False),
    ):
        made = given.fix(shares)
        step = law.affine(made, shares)
        end = law.stationary(step, law.start(made, shares)).of(step.average)[1]
        error, _ = made.closed_form(h, n)
        assert np.abs(np.diag(end) * n * h - 1).max() == pytest.approx(error, rel=1e-6), given


def test_power_iteration_finds_what_grows():
    """Against the eigenvalues, for shares of which one alone makes a step unstable; 1 where there are invariants."""
    hessians = jnp.ones((5, 1, 1)).at[3].set(30.0)
    shares = QuadraticShares(hessians, jnp.ones((5, 1)))
    for given, grows in (
        (pf.DSGLD("ring", step_size=0.08, plan=False), True),
        (pf.DSGHMC("ring", step_size=0.4, friction=1.0, plan=False), True),
        (pf.DULA("ring", step_size=0.002, coupling=0.6, plan=False), True),
        (pf.DistributedADMM("ring", rho=0.8, prox="linearised", plan=False), True),
        (pf.DistributedADMM("ring", rho=20.0, prox="linearised", plan=False), False),
        (pf.DSGLD("ring", step_size=0.01, plan=False), False),
    ):
        made = given.fix(shares)
        largest = np.abs(np.linalg.eigvals(law.affine(made, shares).transition)).max()
        found = law.growth(made, shares)
        assert (largest > 1.001) == (found > 1.001) == grows, (given, largest, found)
        if grows:
            assert found == pytest.approx(largest, rel=1e-3), given


def test_one_share_that_makes_a_step_unstable_is_found_among_many():
    """More agents times dimensions than an exact law takes, and an average curvature that says nothing."""
    n, largest = 130, 80.0
    found = Curvature(jnp.ones((n, 1, 1)).at[100].set(largest), jnp.ones((n, 1)), True)
    for given, step_in_range in (
        (pf.DSGLD(step_size=3 / largest), False),
        (pf.DSGLD(step_size=0.5 / largest), True),
        (pf.DULA(step_size=3 / largest / n, coupling=0.1), False),
        (pf.DistributedADMM(rho=largest / 12, prox="linearised"), False),
        (pf.DistributedADMM(rho=5 * largest, prox="linearised"), True),
    ):
        made = given.placed(n)
        if step_in_range:
            assert np.isfinite(made.foresee(found).mixing_time)
        else:
            with pytest.raises(pf.InvalidArgument, match=r"is unstable: the largest curvature .* is 80,"):
                made.foresee(found)


def test_federated_langevin_that_averages_every_step_is_langevin():
    """With p = 1: variance 1/(nh(1 − γh/2)) of all, the noise shared or not."""
    n, h, gamma = 6, 2.0, 0.3
    shares = QuadraticShares(jnp.full((n, 1, 1), h), jnp.ones((n, 1)))
    for common in (0.0, 0.4, 1.0):
        made = pf.FALD(gamma, communication=1.0, common=common, control_variates=False, plan=False).fix(shares)
        step = law.affine(made, shares)
        end = law.stationary(step, law.start(made, shares))
        for where in (step.average, step.iterates[2]):
            mean, variance = end.of(where)
            assert float(variance[0, 0]) == pytest.approx(1 / (n * h * (1 - gamma * h / 2)), rel=1e-6)
            assert float(mean[0]) == pytest.approx(1 / h, rel=1e-6)


def unequal(n):
    """Diagonal shares whose sum is I, of which the first holds nearly half of what is known of one coordinate."""
    h = np.tile(np.eye(2) / n, (n, 1, 1))
    h[0, 0, 0] = 0.8
    b = np.random.default_rng(0).normal(size=(n, 2))
    return Curvature(h / h.sum(0).diagonal()[None, :, None], b, True)


def test_shares_that_differ_are_seen_where_the_law_of_everything_is_too_large():
    """On a ring they make variances too large; the closed form for equal ones says too small, and by how little."""
    with jax.enable_x64(True):
        found = unequal(70)
        method = pf.DistributedADMM("ring", rho=0.1, plan=False).placed(70)
        shares = QuadraticShares(jnp.asarray(found.hessians), jnp.asarray(found.linear))
        whole, told = method._law(shares, found), method.foresee(found)
        equal, _ = method.closed_form(np.full(2, 1 / 70), 70)
        chosen = pf.DistributedADMM("ring").placed(70)._aimed(found, True)
        after = chosen._law(shares, found)
    assert equal < 0.02
    assert whole[1] > 0.15
    np.testing.assert_allclose(
        [told.mean, told.variance, told.agent_variance], [whole[0], whole[1], whole[3]], rtol=1e-6
    )
    assert after[1] < 0.024
    assert chosen.rho < 2


def chains_of(method, shares, iterations, count=64):
    """Mean and covariance of the average over iterations of some chains, of which the first tenth is left out."""

    @jax.jit
    def run(method, keys):
        def chain(key):
            x = jnp.zeros((shares.num_agents, shares.dim))

            def one(carry, t):
                normals = method.normals(jax.random.fold_in(key, t), x.shape, x.dtype)
                new = method.advance(*carry, normals, shares, t)
                return (new.x, new.memory), method.centre(new.x, new.memory)

            return jax.lax.scan(one, (x, method.first_memory(key, x)), jnp.arange(iterations))[1]

        return jax.vmap(chain)(keys)

    found = np.asarray(run(method, jax.random.split(jax.random.key(0), count)))[:, iterations // 10 :]
    return found.mean((0, 1)), np.cov(found.reshape(-1, shares.dim).T)


@pytest.mark.parametrize("control_variates", [True, False])
def test_coins_have_an_exact_law(control_variates):
    """With an average after every step it is Langevin's; with few of them agents drift, as chains do."""
    with jax.enable_x64(True):
        found = unequal(10)
        shares = QuadraticShares(jnp.asarray(found.hessians), jnp.asarray(found.linear))
        always = pf.FALD(0.5, communication=1.0, control_variates=control_variates, plan=False)
        seldom = pf.FALD(0.5, communication=0.1, common=0.7, control_variates=control_variates, plan=False)
        steady, told = always.foresee(found), seldom.foresee(found)
        mean, covariance = chains_of(seldom.fix(shares), shares, 8_000)
    assert steady.variance == pytest.approx(1 / (1 - 0.5 / 10 / 2) - 1, rel=1e-4)
    assert told.variance > 0.05
    # 64 chains of 7,200 steps that forget in some 20: an error of 0.9 % of a standard deviation, 1.3 % of a variance.
    assert np.abs(np.linalg.eigvalsh(covariance) - 1).max() == pytest.approx(told.variance, abs=0.04)
    exact = np.linalg.solve(found.hessians.sum(0), found.linear.sum(0))
    assert np.linalg.norm(mean - exact) == pytest.approx(told.mean, abs=0.025)
