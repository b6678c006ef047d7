"""NumPyro models run row by row: the rows' log likelihoods against closed forms and against the whole; refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

from pushforward.infer.errors import InvalidArgument, UnsupportedTarget
from pushforward.infer.run.fit import HINTS
from pushforward.infer.target import Target
from pushforward.infer.target.rows import Rows, find_rows

N, P = 7, 3
RNG = np.random.default_rng(0)
X, Y, SEEN, GROUP = RNG.normal(size=(N, P)), RNG.normal(size=N), RNG.normal(size=(N, 2)), np.arange(N) % 3
BINARY = (Y > 0).astype(int)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def _latents():
    b = numpyro.sample("b", dist.Normal(0, 1).expand([P]).to_event(1))
    s = numpyro.sample("s", dist.HalfNormal(2.0))
    return b, s


def plain(x, y):
    b, s = _latents()
    numpyro.sample("y", dist.Normal(x @ b, s), obs=y)


def one_event(x, y):
    b, s = _latents()
    numpyro.sample("y", dist.Normal(x @ b, s).to_event(1), obs=y)


def plate(data, num):
    b, s = _latents()
    with numpyro.plate("rows", num):
        numpyro.sample("y", dist.Normal(data["x"] @ b, s), obs=data["nested"]["y"])


def columns(x, y):
    """Rows on the last axis of the covariates, and a plate with its own dim."""
    b, s = _latents()
    with numpyro.plate("outcome", 2, dim=-1), numpyro.plate("rows", y.shape[0], dim=-2):
        numpyro.sample("y", dist.Normal((b @ x)[:, None], s), obs=y)


def across(x, y):
    """Rows on the last axis of the observations."""
    b, s = _latents()
    with numpyro.plate("outcome", 2, dim=-2), numpyro.plate("rows", y.shape[-1], dim=-1):
        numpyro.sample("y", dist.Normal(x @ b, s), obs=y)


def two_plates(x, y, z):
    b, s = _latents()
    with numpyro.plate("first", y.shape[0]):
        numpyro.sample("y", dist.Normal(x @ b, s), obs=y)
    with numpyro.plate("second", z.shape[0]):
        numpyro.sample("z", dist.Bernoulli(logits=x @ b), obs=z)


def with_factor(x, y):
    b, s = _latents()
    with numpyro.plate("rows", y.shape[0]):
        numpyro.factor("y", dist.Normal(x @ b, s).log_prob(y))


def table(group, y, scale):
    """An array of the parameters of 3 groups, not of rows, and a group's latent."""
    with numpyro.plate("group", 3):
        a = numpyro.sample("a", dist.Normal(0, scale))
    s = numpyro.sample("s", dist.HalfNormal(2.0))
    with numpyro.plate("rows", y.shape[0]):
        numpyro.sample("y", dist.Normal(a[group], s), obs=y)


def mixture(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    m = numpyro.sample("m", dist.Normal(0, 2).expand([2]).to_event(1))
    with numpyro.plate("rows", y.shape[0]):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(m[z], 1.0), obs=y)


def _normal(values, x, y):
    return stats.norm.logpdf(y, x @ np.asarray(values["b"]), float(values["s"]))


CASES = {
    "plain": (plain, (X, Y), lambda v: _normal(v, X, Y)),
    "one event": (one_event, (X, Y), lambda v: _normal(v, X, Y)),
    "plate, a dict, a number of rows": (plate, ({"x": X, "nested": {"y": Y}}, N), lambda v: _normal(v, X, Y)),
    "NumPy's number": (plate, ({"x": X, "nested": {"y": Y}}, np.int64(N)), lambda v: _normal(v, X, Y)),
    "columns": (columns, (X.T, SEEN), lambda v: _normal(v, X, SEEN[:, 0]) + _normal(v, X, SEEN[:, 1])),
    "across": (across, (X, SEEN.T), lambda v: _normal(v, X, SEEN[:, 0]) + _normal(v, X, SEEN[:, 1])),
    "two plates": (
        two_plates,
        (X, Y, BINARY),
        lambda v: _normal(v, X, Y) + stats.bernoulli.logpmf(BINARY, 1 / (1 + np.exp(-X @ np.asarray(v["b"])))),
    ),
    "factor": (with_factor, (X, Y), lambda v: _normal(v, X, Y)),
    "table": (
        table,
        (GROUP, Y, np.ones(3)),
        lambda v: stats.norm.logpdf(Y, np.asarray(v["a"])[GROUP], float(v["s"])),
    ),
    "mixture": (
        mixture,
        (Y,),
        lambda v: np.log(stats.norm.pdf(Y[:, None], np.asarray(v["m"]), 1.0) @ np.asarray(v["w"])),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_have_their_log_likelihoods(name):
    model, args, closed_form = CASES[name]
    if model is mixture:
        pytest.importorskip("funsor")
    target = Target.from_numpyro(model, *args)
    assert "factors" in target.structure()
    assert target.num_factors == N
    assert all(leaf.shape[0] == N for leaf in target.rows)
    u = target.initial(jax.random.key(3))
    values = target.constrain(u)
    expected = closed_form(values)
    np.testing.assert_allclose(target.factor(u, jnp.arange(N)), expected, rtol=1e-10)
    batch = jnp.array([5, 0, 5, 2])
    np.testing.assert_allclose(target.factor(u, batch), expected[np.asarray(batch)], rtol=1e-10)
    np.testing.assert_allclose(target.log_prior(u) + expected.sum(), target.log_density(u), rtol=1e-10)
    everything = jnp.arange(N)
    np.testing.assert_allclose(target.log_density_minibatch(u, everything), target.log_density(u), rtol=1e-10)
    at = target.log_density_at_minibatch(values, everything)
    np.testing.assert_allclose(at, target.log_density_at(values), rtol=1e-10)


def test_shards_of_a_model_sum_to_it():
    target = Target.from_numpyro(plain, X, Y)
    dealt = target.sharded([0, 1, 1, 0, 2, 2, 2])
    u = target.initial(jax.random.key(3))
    np.testing.assert_allclose(dealt.log_density(u), target.log_density(u), rtol=1e-10)
    expected = _normal(target.constrain(u), X, Y)
    one = dealt.shard_log_likelihood(u, jax.tree.map(lambda x: x[0], dealt.shards))
    np.testing.assert_allclose(one, expected[[0, 3]].sum(), rtol=1e-10)


def test_other_data_of_the_same_shape_run_nothing():
    runs = []

    def counted(x, y):
        runs.append(None)
        plain(x, y)

    target = Target.from_numpyro(counted, X, Y)
    before = len(runs)
    assert not target.has("shards")
    assert len(runs) == before, "a target is made without looking for rows"
    assert target.has("factors")
    u = target.initial(jax.random.key(0))
    target.factor(u, jnp.arange(2))
    seen = len(runs)
    for seed in range(3):
        other = Target.from_numpyro(counted, X + seed, Y)
        made = len(runs)
        assert other.has("factors")
        other.factor(u, jnp.arange(2))
        assert len(runs) == made, "each mini-batch ran the model"
    assert len(runs) > seen


# -- refused ----------------------------------------------------------------------------------------------------------


def local(y):
    m = numpyro.sample("m", dist.Normal(0, 1))
    with numpyro.plate("rows", y.shape[0]):
        theta = numpyro.sample("theta", dist.Normal(m, 1))
        numpyro.sample("y", dist.Normal(theta, 1), obs=y)


def series(y):
    rho = numpyro.sample("rho", dist.Uniform(-1, 1))
    numpyro.sample("y", dist.Normal(rho * jnp.concatenate([jnp.zeros(1), y[:-1]]), 1.0), obs=y)


def standardised(x, y):
    b, s = _latents()
    numpyro.sample("y", dist.Normal(((x - x.mean(0)) / (1 + x.std(0))) @ b, s), obs=y)


def fixed(x, y):
    b, s = _latents()
    with numpyro.plate("rows", N):
        numpyro.sample("y", dist.Normal(x @ b, s), obs=y)


def beside(x, y, total):
    b, s = _latents()
    numpyro.sample("y", dist.Normal(x @ b, s), obs=y)
    numpyro.sample("total", dist.Normal(b.sum(), 1.0), obs=total)


def lengths(y, z):
    m = numpyro.sample("m", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(m, 1), obs=y)
    numpyro.sample("z", dist.Normal(m, 1), obs=z)


def constant(x):
    b, s = _latents()
    numpyro.sample("y", dist.Normal(x @ b, s), obs=jnp.asarray(Y))


def joint(y):
    m = numpyro.sample("m", dist.Normal(0, 1))
    covariance = jnp.eye(N) + 0.5
    numpyro.sample("y", dist.MultivariateNormal(m * jnp.ones(N), covariance), obs=y)


@pytest.mark.parametrize(
    ("model", "args", "reason"),
    [
        (local, (Y,), r"the latent site 'theta' has a value of its own for each row \(shape \(7,\), and \(1,\)"),
        (series, (Y,), r"of the site 'y' is .* rows, taken one by one, sum to .* rows depend on one another"),
        (standardised, (X, Y), "rows depend on one another"),
        (fixed, (X, Y), "the plate 'rows' has 7 rows whatever the data; write its size as"),
        (beside, (X, Y, 0.3), "log likelihood of the site 'total' is .* or something is observed besides them"),
        (lengths, (Y, Y[:4]), r"shared by all that is observed \(y \[7\], z \[4\]\)"),
        (constant, (X,), "rows depend on one another|does not run on one row"),
        (joint, (Y,), "does not run on one row|rows depend on one another"),
    ],
)
def test_models_without_rows_say_why(model, args, reason):
    target = Target.from_numpyro(model, *args)
    assert "factors" not in target.structure()
    with pytest.raises(UnsupportedTarget, match=f"SGLD needs a target with factors; this one has none: .*(?:{reason})"):
        target.require("SGLD", ("factors",), HINTS)
    with pytest.raises(UnsupportedTarget, match=reason):
        target.factor(jnp.zeros(target.dim), jnp.arange(2))


def test_an_array_of_parameters_as_long_as_the_data_is_found_out():
    """With as many groups as rows the search must leave the groups' scale whole."""

    def scaled(group, y, scale):
        m = numpyro.sample("m", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(m, scale[group]), obs=y)

    scale = 1.0 + np.arange(N)
    target = Target.from_numpyro(scaled, GROUP[::-1].copy(), Y, scale)
    found = find_rows(target)
    assert isinstance(found, Rows)
    assert found.axes == (0, 0, None)


def test_minibatch_size_is_checked():
    target = Target.from_numpyro(plain, X, Y)
    with pytest.raises(InvalidArgument, match="size must be a whole number >= 1, got 0"):
        target.minibatch(jax.random.key(0), 0, 0)
