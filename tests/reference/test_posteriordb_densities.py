"""The 21 reference models against densities written from the mathematics with NumPy and SciPy only.

Every independent density is the full log joint in constrained coordinates, all constants included; the models may leave
constants out (flat priors, restrictions), so that the *difference* must be the same at every draw. A wrong scale
convention, a forgotten term or a shifted index changes from draw to draw.
"""

from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import integrate, stats

from pushforward.models import posteriordb

DATABASE = Path(__file__).resolve().parents[2].parent / "shared" / "posteriordb"
pytestmark = pytest.mark.skipif(not DATABASE.is_dir(), reason="needs a posteriordb beside the repository")

HALF = np.log(2.0)  # a symmetric density on its positive half is twice as high


def normal(x, mean, sd):
    return float(np.sum(stats.norm.logpdf(x, mean, sd)))


def half_cauchy(x, scale):
    return stats.cauchy.logpdf(x, 0, scale) + HALF


def regression(y, sd, *terms):
    """Log density of y around a sum of coefficient times covariate, one observation after the other."""
    total = 0.0
    for i in range(len(y)):
        mean = sum(c * (x if np.ndim(x) == 0 else x[i]) for c, x in terms)
        total += stats.norm.logpdf(y[i], mean, sd)
    return float(total)


def eight_schools_centered(d, p):
    prior = half_cauchy(p["tau"], 5) + normal(p["mu"], 0, 5) + normal(p["theta"], p["mu"], p["tau"])
    return prior + normal(d["y"], p["theta"], d["sigma"])


def eight_schools_noncentered(d, p):
    z = (p["theta"] - p["mu"]) / p["tau"]
    prior = half_cauchy(p["tau"], 5) + normal(p["mu"], 0, 5) + normal(z, 0, 1)
    return prior + normal(d["y"], p["theta"], d["sigma"])


def kidscore(*covariates):
    def density(d, p):
        terms = [(p["beta"][0], 1.0)] + [(b, d[name]) for b, name in zip(p["beta"][1:], covariates, strict=True)]
        return half_cauchy(p["sigma"], 2.5) + regression(d["kid_score"], p["sigma"], *terms)

    return density


def logearn(interaction, *covariates):
    def density(d, p):
        terms = [(b, x) for b, x in zip(p["beta"], [1.0] + [d[name] for name in covariates], strict=False)]
        if interaction:
            terms.append((p["beta"][3], d["height"] * d["male"]))
        assert len(terms) == len(p["beta"])
        return regression(np.log(d["earn"]), p["sigma"], *terms)

    return density


def logmesquite(d, p):
    logs = [np.log(d[name]) for name in ("diam1", "diam2", "canopy_height", "total_height", "density")]
    terms = list(zip(p["beta"], [1.0, *logs, d["group"]], strict=True))
    return regression(np.log(d["weight"]), p["sigma"], *terms)


def logmesquite_logvolume(d, p):
    volume = d["diam1"] * d["diam2"] * d["canopy_height"]
    return regression(np.log(d["weight"]), p["sigma"], (p["beta"][0], 1.0), (p["beta"][1], np.log(volume)))


def nes(d, p):
    b, total = p["beta"], 0.0
    for i in range(int(d["N"])):
        mean = b[0] + b[1] * d["real_ideo"][i] + b[2] * d["race_adj"][i]
        mean += {1: 0.0, 2: b[3], 3: b[4], 4: b[5]}[int(d["age_discrete"][i])]
        mean += b[6] * d["educ1"][i] + b[7] * d["gender"][i] + b[8] * d["income"][i]
        total += stats.norm.logpdf(d["partyid7"][i], mean, p["sigma"])
    return total


def blr(d, p):
    prior = normal(p["beta"], 0, 10) + stats.halfnorm.logpdf(p["sigma"], 0, 10)
    return prior + regression(d["y"], p["sigma"], *zip(p["beta"], d["X"].T, strict=True))


def kilpisjarvi(d, p):
    prior = normal(p["alpha"], d["pmualpha"], d["psalpha"]) + normal(p["beta"], d["pmubeta"], d["psbeta"])
    return prior + regression(d["y"], p["sigma"], (p["alpha"], 1.0), (p["beta"], d["x"]))


def diamonds(d, p):
    prior = (
        normal(p["b"], 0, 1) + stats.t.logpdf(p["Intercept"], 3, 8, 10) + stats.t.logpdf(p["sigma"], 3, 0, 10) + HALF
    )
    intercept = p["Intercept"] - sum(b * d["X"][:, k + 1].mean() for k, b in enumerate(p["b"]))  # uncentred
    mean = np.array([intercept + row[1:] @ p["b"] for row in d["X"]])
    return prior + normal(d["Y"], mean, p["sigma"])


def ark(d, p):
    total = normal(p["alpha"], 0, 10) + normal(p["beta"], 0, 10) + half_cauchy(p["sigma"], 2.5)
    order, y = int(d["K"]), d["y"]
    for t in range(order, int(d["T"])):
        mean = p["alpha"]
        for k in range(1, order + 1):
            mean = mean + p["beta"][k - 1] * y[t - k]
        total += stats.norm.logpdf(y[t], mean, p["sigma"])
    return total


def arma11(d, p):
    total = normal(p["mu"], 0, 10) + normal([p["phi"], p["theta"]], 0, 2) + half_cauchy(p["sigma"], 2.5)
    y, error = d["y"], None
    for t in range(int(d["T"])):
        expected = p["mu"] + p["phi"] * (p["mu"] if t == 0 else y[t - 1])
        if t > 0:
            expected = expected + p["theta"] * error
        error = y[t] - expected
        total += stats.norm.logpdf(error, 0, p["sigma"])
    return total


def gp_prior(p):
    return stats.gamma.logpdf(p["rho"], 25, scale=1 / 4) + stats.halfnorm.logpdf(p["alpha"], 0, 2)


def gp_kernel(x, p):
    n = len(x)
    k = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            k[i, j] = p["alpha"] ** 2 * np.exp(-((x[i] - x[j]) ** 2) / (2 * p["rho"] ** 2))
    return k


def gp_regr(d, p):
    covariance = gp_kernel(d["x"], p) + p["sigma"] * np.eye(int(d["N"]))
    prior = gp_prior(p) + stats.halfnorm.logpdf(p["sigma"], 0, 1)
    return prior + stats.multivariate_normal.logpdf(d["y"], np.zeros(int(d["N"])), covariance)


def gp_pois_regr(d, p):
    return gp_prior(p) + normal(p["z"], 0, 1) + float(np.sum(stats.poisson.logpmf(d["k"], np.exp(p["f"]))))


def lotka_volterra(d, p):
    a, b, c, e = p["theta"]

    def prior(x, mean, sd):
        return stats.truncnorm.logpdf(x, -mean / sd, np.inf, mean, sd)

    total = prior(a, 1, 0.5) + prior(c, 1, 0.5) + prior(b, 0.05, 0.05) + prior(e, 0.05, 0.05)
    total += np.sum(stats.lognorm.logpdf(p["sigma"], 1, scale=np.exp(-1)))
    total += np.sum(stats.lognorm.logpdf(p["z_init"], 1, scale=10))
    solution = integrate.solve_ivp(
        lambda t, z: [(a - b * z[1]) * z[0], (-c + e * z[0]) * z[1]],
        (0.0, float(d["ts"][-1])),
        p["z_init"],
        method="DOP853",
        t_eval=d["ts"],
        rtol=1e-12,
        atol=1e-12,
    )
    for k in range(2):
        total += stats.lognorm.logpdf(d["y_init"][k], p["sigma"][k], scale=p["z_init"][k])
        total += np.sum(stats.lognorm.logpdf(d["y"][:, k], p["sigma"][k], scale=solution.y[k]))
    return total


def low_dim_gauss_mix(d, p):
    total = (
        normal(p["mu"], 0, 2) + np.sum(stats.halfnorm.logpdf(p["sigma"], 0, 2)) + stats.beta.logpdf(p["theta"], 5, 5)
    )
    first = p["theta"] * stats.norm.pdf(d["y"], p["mu"][0], p["sigma"][0])
    second = (1 - p["theta"]) * stats.norm.pdf(d["y"], p["mu"][1], p["sigma"][1])
    return total + float(np.sum(np.log(first + second)))


def hmm_drive_0(d, p):
    transition = np.stack([p["theta1"], p["theta2"]])
    # the last component is one minus the others: the printed digits of a row sum to 1 to about 1e-15
    total = sum(stats.dirichlet.logpdf(row / row.sum(), a) for row, a in zip(transition, d["alpha"], strict=True))
    for rates in (p["phi"], p["lambda"]):
        total += stats.norm.logpdf(rates[0], 0, 1) + stats.norm.logpdf(rates[1], 3, 1)
    # forward algorithm with probabilities, rescaled to sum to one at every step
    forward = None
    for u, v in zip(d["u"], d["v"], strict=True):
        seen = [
            stats.expon.pdf(u, scale=1 / p["phi"][k]) * stats.expon.pdf(v, scale=1 / p["lambda"][k]) for k in (0, 1)
        ]
        arrive = [1.0, 1.0] if forward is None else [sum(forward[j] * transition[j, k] for j in (0, 1)) for k in (0, 1)]
        forward = np.array(arrive) * np.array(seen)
        total += np.log(forward.sum())
        forward = forward / forward.sum()
    return total


DENSITIES = {
    "arK": ark,
    "arma11": arma11,
    "blr": blr,
    "diamonds": diamonds,
    "eight_schools_centered": eight_schools_centered,
    "eight_schools_noncentered": eight_schools_noncentered,
    "gp_pois_regr": gp_pois_regr,
    "gp_regr": gp_regr,
    "hmm_drive_0": hmm_drive_0,
    "kidscore_momhs": kidscore("mom_hs"),
    "kidscore_momhsiq": kidscore("mom_hs", "mom_iq"),
    "kidscore_momiq": kidscore("mom_iq"),
    "kilpisjarvi": kilpisjarvi,
    "logearn_height": logearn(False, "height"),
    "logearn_height_male": logearn(False, "height", "male"),
    "logearn_interaction": logearn(True, "height", "male"),
    "logmesquite": logmesquite,
    "logmesquite_logvolume": logmesquite_logvolume,
    "lotka_volterra": lotka_volterra,
    "low_dim_gauss_mix": low_dim_gauss_mix,
    "nes": nes,
}
# The model's ODE solver makes a relative error of about 1e-7 in the populations, which is 1.3e-6 in the log density; an
# error of 1e-4 in any one coefficient of its splitting makes one above 2e-5 (tried for each).
TOLERANCE = {"lotka_volterra": 2e-6}
NUM_DRAWS = 20


def points(reference, count=NUM_DRAWS):
    """Reference draws spread over chains and draws, with the latent z where the model is non-centred."""
    rng = np.random.default_rng(8)
    chains, draws = next(iter(reference.draws.values())).shape[:2]
    for chain, draw in zip(rng.integers(chains, size=count), rng.integers(draws, size=count), strict=True):
        point = {name: value[chain, draw] for name, value in reference.draws.items()}
        if reference.model_name == "eight_schools_noncentered":
            point["z"] = (point["theta"] - point["mu"]) / point["tau"]
        if reference.model_name == "gp_pois_regr":  # f = L z is nearly singular: take z anew, and f from it
            point["z"] = rng.standard_normal(point["f"].shape)
            root = np.linalg.cholesky(gp_kernel(reference.data["x"], point) + 1e-10 * np.eye(len(point["z"])))
            point["f"] = root @ point["z"]
        yield point


@pytest.mark.parametrize("name", posteriordb.names())
def test_log_joint_equals_the_independent_density_up_to_a_constant(name):
    from numpyro.infer.util import log_density

    reference = posteriordb.load(name, DATABASE)
    independent = DENSITIES[reference.model_name]
    with jax.enable_x64(True):
        # jax.jit traces the model once; its arguments stay constants here
        joint = jax.jit(lambda values: log_density(reference.model, (), reference.kwargs, values)[0])
        pairs = [(float(joint(point)), independent(reference.data, point)) for point in points(reference)]
    ours, theirs = np.array(pairs).T
    difference = ours - theirs
    tolerance = TOLERANCE.get(reference.model_name, 1e-8 * max(1.0, np.abs(theirs).max() / 100))
    assert np.ptp(difference) < tolerance, difference
    assert np.ptp(theirs) > 1.0  # the draws differ enough for a wrong term to be seen


def test_every_name_has_an_independent_density():
    assert {posteriordb.load(name, DATABASE).model_name for name in posteriordb.names()} == set(DENSITIES)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("gp_pois_regr-gp_regr", lambda p: {**p, "sigma": p["sigma"] ** 2}),  # sigma taken for a standard deviation
        ("kidiq-kidscore_momiq", lambda p: {**p, "sigma": np.sqrt(p["sigma"])}),  # for a variance
        ("hudson_lynx_hare-lotka_volterra", lambda p: {**p, "theta": p["theta"] * [1, 1, 1, 1.0001]}),
    ],
)
def test_a_wrong_scale_is_seen(name, wrong):
    """The check above has the power to notice a wrong convention: the difference varies a thousand times more."""
    reference = posteriordb.load(name, DATABASE)
    independent = DENSITIES[reference.model_name]
    some = list(points(reference))
    difference = [independent(reference.data, wrong(p)) - independent(reference.data, p) for p in some]
    assert np.ptp(difference) > 1e3 * 2e-6


def test_lotka_volterra_states_against_a_tight_solver():
    from pushforward.models.posteriordb.dynamics import lotka_volterra_log_states

    reference = posteriordb.load("hudson_lynx_hare-lotka_volterra", DATABASE)
    worst = {2: 0.0, 3: 0.0, 4: 0.0}
    for point in points(reference, 40):
        a, b, c, e = point["theta"]
        solution = integrate.solve_ivp(
            lambda t, z, a=a, b=b, c=c, e=e: [(a - b * z[1]) * z[0], (-c + e * z[0]) * z[1]],
            (0.0, 20.0),
            point["z_init"],
            method="DOP853",
            t_eval=reference.data["ts"],
            rtol=1e-13,
            atol=1e-13,
        )
        for substeps in worst:
            with jax.enable_x64(True):
                states = lotka_volterra_log_states(point["theta"], point["z_init"], reference.data["ts"], substeps)
                error = np.abs(np.exp(np.asarray(states)) / solution.y.T - 1).max()
            worst[substeps] = max(worst[substeps], error)
    assert worst[3] < 3e-7
    assert np.log2(worst[2] / worst[4]) > 5.0  # order 6, not the 4 that one wrong coefficient leaves (or 2)
