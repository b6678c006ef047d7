"""Bad input ends in one clear sentence; what is refused where a target or a store is made is tested there."""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import pushforward as pf
from tests.run.models import SIGMA, Y, eight_schools, gaussian, schools


def run(target=None, method=None, **options):
    defaults = {"num_samples": 5, "num_warmup": 5, "num_chains": 2, "progress": False}
    return pf.fit(gaussian() if target is None else target, method, **defaults | options)


def refused(error, message, make, *args, **options):
    with pytest.raises(error, match=message) as caught:
        make(*args, **options)
    said = str(caught.value)
    assert isinstance(caught.value, pf.PushforwardError)
    assert said.endswith(".")
    assert "\n" not in said


# -- the model and its data -------------------------------------------------------------------------------------------


def test_nan_in_observed_data():
    y = np.array(Y)
    y[[2, 5]] = np.nan
    refused(pf.NonFinite, r"observed site 'y' has 2 NaN among its 8 values", lambda: run(schools(y)))


def test_shapes_that_do_not_match():
    refused(
        pf.InvalidArgument, r"'y' got data of shape \(7,\).*plate school of size 8",
        lambda: pf.Target.from_numpyro(eight_schools, SIGMA, y=Y[:7]),
    )  # fmt: skip


def test_a_model_without_latents():
    def model(y):
        numpyro.sample("y", dist.Normal(0, 1), obs=y)

    refused(pf.InvalidArgument, "no continuous latent site", lambda: pf.Target.from_numpyro(model, 1.0))


def test_nothing_to_infer():
    target = pf.Target.from_log_density(lambda x: x.sum(), np.zeros(0))
    refused(pf.InvalidArgument, "target has 0 coordinates", run, target)


def test_a_model_that_branches_on_a_latent():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu if mu > 0 else -mu, 1), obs=y)

    refused(pf.InvalidArgument, r"TracerBool.*write it with jnp\.where", lambda: pf.Target.from_numpyro(model, 1.0))


def test_a_discrete_latent_without_funsor(monkeypatch):
    from importlib import util

    def model(y):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu + z, 1), obs=y)

    found = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *a: None if name == "funsor" else found(name, *a))
    refused(pf.UnsupportedTarget, "'z' is discrete .*needs funsor", lambda: pf.Target.from_numpyro(model, 1.0))


def test_structure_that_the_target_lacks():
    message = "SMC needs a target with proper_prior; .*Target.from_numpyro"
    refused(pf.UnsupportedTarget, message, run, gaussian(), pf.SMC())

    def flat(y):
        mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    refused(pf.UnsupportedTarget, "SMC needs .*proper", run, pf.Target.from_numpyro(flat, np.array([0.3])), pf.SMC())


# -- no valid start ---------------------------------------------------------------------------------------------------


def below(y):
    """The scale of y is never a number."""
    a = numpyro.sample("a", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(jnp.log(-1 - a**2), 1), obs=y)


def never(y):
    """The factor forbids every value of a."""
    a = numpyro.sample("a", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(a, 1), obs=y)
    numpyro.factor("gate", jnp.where(a**2 < 0, 0.0, -jnp.inf))


METHODS = [
    lambda: None,
    lambda: pf.HMC(num_leapfrog=2),
    pf.MCLMC,
    pf.Pathfinder,
    lambda: pf.AutoGuide("AutoNormal", num_steps=5),
]


@pytest.mark.parametrize("make", METHODS)
@pytest.mark.parametrize(("model", "site", "value"), [(below, "y", "nan"), (never, "gate", "-inf")])
def test_log_density_at_every_start(make, model, site, value):
    target = pf.Target.from_numpyro(model, np.array([2.0, 3.0]))
    refused(
        pf.NonFinite, rf"Chain 0 .* is {value} at each of the 100 random starts .*site '{site}', .* is {value}\.",
        run, target, make(),
    )  # fmt: skip


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_plain_log_density_without_a_number(value):
    target = pf.Target.from_log_density(lambda x: value + 0 * x.sum(), np.zeros(2))
    refused(pf.NonFinite, f"the log density is {value} at each", run, target)


def test_a_gradient_without_a_number():
    target = pf.Target.from_log_density(lambda x: jnp.sqrt(0 * x.sum()), np.zeros(2))
    refused(pf.NonFinite, r"is 0 but its gradient is not finite .*\(x=\[", run, target)


def test_a_start_where_the_density_is_no_number():
    refused(
        pf.NonFinite, r"the log density is nan at the start given; .*site 'mu'", run, schools(), start=[np.nan] * 10
    )


def test_a_chain_that_leaves_the_numbers():
    class State(NamedTuple):
        position: jax.Array

    class Algorithm(NamedTuple):
        init: Callable
        step: Callable

    growing = pf.Kernel(Algorithm(State, lambda key, state: (State(state.position * 1e100), ())))
    refused(
        pf.NonFinite, r"Site 'x' became inf in chain 0 at iteration 3 of stage 'sample'; .*smaller step size",
        run, gaussian(), growing, num_warmup=0, num_samples=9, start=np.ones(3), num_chains=1,
    )  # fmt: skip


# -- the arguments of fit ---------------------------------------------------------------------------------------------

COUNTS = ("num_samples", "num_warmup", "num_chains", "thin", "chunk_length", "chains_per_program", "max_evaluations")


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [-1, 0, 2.5, "3", True])
def test_counts(name, value):
    if name == "num_warmup" and value == 0:
        return
    got = f"{name} must be a whole number.*got {re.escape(repr(value))}"
    refused(pf.InvalidArgument, got, run, **{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_seconds": 0}, "max_seconds must be a finite number > 0, got 0"),
        ({"max_seconds": "3"}, "max_seconds must be a number > 0, got '3'"),
        ({"target_ess": np.nan}, "target_ess must be a finite number > 0, got nan"),
        ({"target_ess": -1}, "target_ess must be a finite number > 0, got -1"),
        ({"target_rhat": 1.0}, r"target_rhat must be > 1, got 1\.0"),
        ({"target_rhat": "3"}, "target_rhat must be a number > 0, got '3'"),
        ({"checkpoint_every": -1}, "checkpoint_every must be a finite number >= 0, got -1"),
        ({"precision": 16}, "precision must be one of 32, 64, got 16"),
        ({"precision": "64"}, "precision must be one of 32, 64, got '64'"),
        ({"key": "a"}, "key must be an int or one JAX key, got 'a'"),
        ({"key": 1.5}, r"key must be an int or one JAX key, got 1\.5"),
        ({"key": True}, "key must be an int or one JAX key, got True"),
        ({"key": 2**64}, "key must be an int of at most 64 bits, got 18446744073709551616"),
        ({"key": np.zeros(2)}, r"array of shape \(2,\) and dtype float64; the words of a key are uint32"),
        ({"key": np.zeros(3, np.uint32)}, r"array of shape \(3,\) and dtype uint32; .* of shape \(2,\)"),
        ({"sites": ["q"]}, "sites names 'q'; the target's sites are mu, tau, z, theta"),
        ({"sites": ["y"]}, "sites names 'y'; the target's sites are mu, tau, z, theta"),
        ({"sites": "mu"}, "sites must be a list of the names of the sites to keep, got 'mu'"),
        ({"sites": []}, r"sites must be a list of the names of the sites to keep, got \(\)"),
        ({"start": {"q": 0.0}}, "start names the site 'q'; the target's latent sites are mu, tau, z"),
        ({"start": {"theta": np.zeros(8)}}, "start names the site 'theta'; the target's latent sites are mu, tau, z"),
        ({"start": {"mu": np.zeros(3)}}, r"start\['mu'\] has shape \(3,\); give shape \(\) .* or \(2,\)"),
        ({"start": {"tau": -1.0}}, "'tau' outside its support or on its edge; the support is positive"),
        ({"start": {"mu": np.nan}}, "'mu' outside its support"),
        ({"start": {"mu": "a"}}, r"start\['mu'\] must hold numbers, got 'a'"),
        ({"start": np.zeros(3)}, r"start has shape \(3,\); .* must have shape \(10,\) or \(2, 10\)"),
        ({"start": np.zeros((3, 10))}, r"start has shape \(3, 10\); for 2 chains"),
        ({"start": "here"}, "start must hold numbers, got 'here'; give values by site"),
        ({"method": pf.NUTS}, r"method must be an instance, got the class NUTS; write NUTS\(\)"),
        ({"method": "NUTS"}, r"method must be one of pushforward.methods\(\), got str"),
    ],
)
def test_arguments_of_fit(options, message):
    refused(pf.InvalidArgument, message, run, schools(), **options)


def test_several_keys_are_not_one():
    with pytest.raises(pf.InvalidArgument, match="key must be an int or one JAX key"):
        run(key=jax.random.split(jax.random.key(0)))


@pytest.mark.parametrize("target", [eight_schools, pf.Target, 3, "eight_schools"])
def test_what_is_no_target(target):
    refused(pf.InvalidArgument, r"target must be a Target, got \w+; wrap a NumPyro model with", pf.fit, target)


# -- hyper-parameters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (pf.NUTS, {"step_size": -0.1}, "step_size must be a finite number > 0, got -0.1"),
        (pf.NUTS, {"step_size": "small"}, "step_size must be a number > 0, got 'small'"),
        (pf.HMC, {"target_acceptance": 1.0}, "target_acceptance must be .* strictly between 0 and 1, got 1.0"),
        (pf.MALA, {"metric": "full"}, "metric must be one of .*'dense', .* got 'full'"),
        (pf.NUTS, {"max_tree_depth": 0}, "max_tree_depth must be a whole number >= 1, got 0"),
        (pf.NUTS, {"max_rank": -2}, "max_rank must be a whole number >= 1, got -2"),
        (pf.HMC, {"num_leapfrog": 0}, "num_leapfrog must be a whole number >= 1, got 0"),
        (pf.NUTS, {"divergence_threshold": 0}, "divergence_threshold must be a finite number > 0, got 0"),
    ],
)
def test_hyper_parameters(make, options, message):
    refused(pf.InvalidArgument, message, make, **options)


@pytest.mark.parametrize("metric", ["fisher", "low_rank", "dense", "diagonal"])
@pytest.mark.parametrize("shape", [(4,), (3, 4), (3, 3, 3), ()])
def test_a_metric_of_another_size(metric, shape):
    method = pf.NUTS(metric=metric, inverse_mass_matrix=np.ones(shape))
    message = f"inverse_mass_matrix has shape {re.escape(str(shape))}; on a target of dimension 3"
    refused(pf.InvalidArgument, message, run, gaussian(), method)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0, -2.0, 1.0], "has -2.0 among its variances"),
        ([1.0, np.inf, 1.0], "has inf among its variances"),
        (np.diag([1.0, -0.5, 1.0]), "least eigenvalue is -0.5"),
        (np.eye(3) + np.eye(3, k=1) / 2, "largest asymmetry 0.5"),
        (np.full((3, 3), np.nan), "least eigenvalue is nan"),
    ],
)
def test_a_metric_that_is_none(given, message):
    refused(pf.InvalidArgument, message, pf.NUTS, inverse_mass_matrix=given)


def test_a_matrix_for_a_diagonal_metric():
    method = pf.NUTS(metric="diagonal_welford", inverse_mass_matrix=np.eye(3))
    refused(pf.InvalidArgument, "is a matrix, but metric='diagonal_welford'; use metric='dense'", run, None, method)


@pytest.mark.parametrize("name", ["draw", "chain", "__scale", ".scale"])
def test_names_of_sites_that_no_posterior_can_hold(name):
    target = pf.Target.from_log_density(lambda p: -(p[name] ** 2), {name: np.zeros(())})
    refused(pf.InvalidArgument, f"the target has a site '{name}'.*rename the site", run, target)


def test_names_with_slashes_end_as_names_with_dots():
    target = pf.Target.from_log_density(lambda p: -(p["net/bias"] ** 2), {"net/bias": np.zeros(())})
    assert "net.bias" in run(target).data["posterior"]


@pytest.mark.parametrize(
    ("method", "goal", "gives"),
    [
        (pf.Pathfinder(), {"target_ess": 100}, "target_ess=100 .* Pathfinder gives independent draws"),
        (pf.SVGD(), {"target_rhat": 1.1}, r"target_rhat=1\.1 .* SVGD gives particles"),
    ],
    ids=["approximation", "particles"],
)
def test_goals_of_chains_without_chains(method, goal, gives):
    refused(pf.InvalidArgument, f"{gives}; leave it out", run, None, method, **goal)


def test_paths_that_are_none():
    refused(pf.InvalidArgument, "store must be a path, got 3", lambda: run(store=3))
    refused(pf.InvalidArgument, "path must be a path, got 3", pf.load, 3)
    refused(pf.InvalidArgument, "path must be a path, got None", pf.resume, None, gaussian())
