"""One small run per method: what the laws run over. A method without an entry here fails the suite."""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import pushforward as pf
from pushforward.infer.geometry import L1
from pushforward.infer.method import AbstractMethod
from pushforward.models import LastLayer, LatentGP
from pushforward.models.gaussian_process.kernels import Kernel
from pushforward.models.gaussian_process.likelihoods import Gaussian
from pushforward.models.gaussian_process.markov import Markov
from pushforward.models.last_layer import NormalHead

TRACES = {"gaussian": 0}
LEAST = 0.1  # below the eigenvalues of the posterior precision
DESIGN = np.array([[1.0, 0.9, 0.2], [0.3, 1.0, -0.5], [-0.8, 0.4, 1.2], [0.6, 0.7, 0.1]])
NOISE, SCALE = 0.8, np.array([2.0, 1.0, 0.5])


def model(x, y):
    """Linear regression with known noise: its posterior is a correlated normal."""
    TRACES["gaussian"] += 1
    b = numpyro.sample("b", dist.Normal(jnp.zeros(3), jnp.asarray(SCALE)).to_event(1))
    numpyro.sample("y", dist.Normal(x @ b, NOISE), obs=y)


@cache
def gaussian(seed: int = 0) -> pf.Target:
    """The target of a data set; all data sets have one shape."""
    return pf.Target.from_numpyro(model, DESIGN, np.random.default_rng(seed).normal(size=4))


@cache
def composite(seed: int = 0) -> pf.Target:
    """The same with a nonsmooth part, which is 0."""
    return pf.Target.composite(gaussian(seed), L1(0.0))


@cache
def shares(seed: int = 0) -> pf.Target:
    """The same as two agents' shares."""
    y = np.random.default_rng(seed).normal(size=4)
    target = pf.Target.from_factors(
        lambda p: -0.5 * jnp.sum((p["b"] / SCALE) ** 2),
        lambda p, datum: -0.5 * ((datum["y"] - datum["x"] @ p["b"]) / NOISE) ** 2,
        {"x": DESIGN, "y": y},
        {"b": np.zeros(3)},
    )
    return target.sharded(2)


def counted_features(x):
    """The rows themselves; each trace is counted."""
    TRACES["gaussian"] += 1
    return x


@cache
def last_layer(seed: int = 0) -> pf.Target:
    """The same as a network without parameters."""
    y = np.random.default_rng(seed).normal(size=4)
    head = NormalHead(prior_scale=SCALE**2, noise=NOISE)
    return LastLayer(counted_features, head, DESIGN, y, validation=None, standardise=False, name="b")


class Table(Kernel):
    """Covariances of the inputs 0, 1, 2, under which b, with noise of variance 1 / LEAST, has `gaussian`'s law."""

    nugget = 0.0

    def matrix(self, x, other):
        """Entries of (Σ⁻¹ − LEAST I)⁻¹; each trace is counted."""
        TRACES["gaussian"] += 1
        table = np.linalg.inv(np.linalg.inv(moments()[1]) - LEAST * np.eye(3))
        return jnp.asarray(table)[x[:, 0].astype(int)][:, other[:, 0].astype(int)]

    def diagonal(self, x):
        """Of the table."""
        return jnp.diagonal(self.matrix(x, x))

    def scales(self, num_inputs):
        """1."""
        return jnp.ones(num_inputs)

    def markov(self, t):
        """Three states that do not move, of which each time reads one."""
        table, unit = self.matrix(np.arange(3.0)[:, None], np.arange(3.0)[:, None]), jnp.eye(3)
        return Markov(table, jnp.broadcast_to(unit, (len(t), 3, 3)), unit[t.astype(int)])

    def check(self, num_inputs, where="kernel"):
        """It has no parameters."""


@cache
def process(seed: int = 0) -> pf.Target:
    """The same as a latent process at three inputs, seen through what its sites would have observed."""
    mean, covariance = moments(seed)
    y = np.linalg.solve(covariance, mean) / LEAST
    return LatentGP(Table(), Gaussian(1 / LEAST), np.arange(3.0), y, site="b")


def moments(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Exact mean and covariance of `gaussian`."""
    y = np.random.default_rng(seed).normal(size=4)
    covariance = np.linalg.inv(DESIGN.T @ DESIGN / NOISE**2 + np.diag(1 / SCALE**2))
    return covariance @ DESIGN.T @ y / NOISE**2, covariance


class Entry(NamedTuple):
    """How the laws run a method.

    Parameters
    ----------
    make
        The method, small; called once.
    nudge
        Another value of a hyper-parameter that decides no shape: it must not compile anew. None if there is none.
    bias
        Documented bias of means and of second moments, in units of standard deviations; 0 for exact methods.
    owns_density
        The method closes over the target's log density, so that other data cannot reach it.
    target
        The same law, in a form that has the structure which the method needs.
    """

    make: Callable[[], AbstractMethod]
    nudge: Callable[[Any], AbstractMethod] | None
    bias: float = 0.0
    owns_density: bool = False
    target: Callable[[int], pf.Target] = gaussian


def _set(**values: Any) -> Callable[[Any], AbstractMethod]:
    return lambda method: dataclasses.replace(method, **values)


def _kernel() -> AbstractMethod:
    import blackjax

    return pf.Kernel(blackjax.nuts(gaussian().log_density, step_size=0.5, inverse_mass_matrix=SCALE**2))


METHODS: dict[str, Entry] = {
    "NUTS": Entry(lambda: pf.NUTS(max_tree_depth=6), _set(target_acceptance=0.85)),
    "HMC": Entry(lambda: pf.HMC(num_leapfrog=2), _set(target_acceptance=0.85)),
    "MALA": Entry(pf.MALA, _set(target_acceptance=0.6)),
    "MCLMC": Entry(pf.MCLMC, _set(desired_energy_variance=1e-4), bias=0.1),
    "Kernel": Entry(_kernel, None, owns_density=True),
    "SMC": Entry(lambda: pf.SMC(num_particles=1000), _set(target_ess=0.6, num_leapfrog=8), bias=0.1),
    "Pathfinder": Entry(lambda: pf.Pathfinder(max_iterations=40), None, bias=0.1),
    "AutoGuide": Entry(
        lambda: pf.AutoGuide("AutoMultivariateNormal", num_steps=1500),
        _set(learning_rate=0.01, num_steps=1700),
        bias=0.1,
    ),
    "NormalizingFlow": Entry(
        lambda: pf.NormalizingFlow("realnvp", num_layers=2, hidden=(8,), num_steps=400, learning_rate=0.01),
        _set(num_steps=300, anneal=0.1),
        bias=0.1,
    ),
    "FBGVI": Entry(lambda: pf.FBGVI(num_steps=300, num_draws=4), _set(step_size=0.02, coefficient=0.9), bias=0.1),
    "SVRGVI": Entry(lambda: pf.SVRGVI(num_steps=400, schedule="decay"), _set(coefficient=0.8), bias=0.2),
    "BWSGD": Entry(lambda: pf.BWSGD(num_steps=400, control="mean"), _set(coefficient=0.9), bias=0.1),
    "NGVI": Entry(lambda: pf.NGVI(num_steps=200, num_draws=4), _set(coefficient=0.9), bias=0.1),
    "SqrtNGVI": Entry(lambda: pf.SqrtNGVI(num_steps=200, num_draws=4), _set(coefficient=0.9), bias=0.1),
    "ADVI": Entry(lambda: pf.ADVI(num_steps=1000), _set(coefficient=0.9), bias=0.1),
    "MixFlow": Entry(
        lambda: pf.MixFlow(num_leapfrog=5, step_size=0.5, max_length=60, num_trajectories=16, reference_steps=300),
        _set(step_size=0.4, tolerance=0.02),
        bias=0.15,
    ),
    "ProbabilityFlow": Entry(
        lambda: pf.ProbabilityFlow(num_draws=250, hidden=(16, 16), num_steps=300, solver_steps=12),
        _set(learning_rate=3e-3, patience=1500),
        bias=0.1,
    ),
    "BregmanProximalLangevin": Entry(
        lambda: pf.BregmanProximalLangevin(smoothing=0.1, target_acceptance=0.6),
        _set(smoothing=0.2, target_acceptance=0.5),
        target=composite,
    ),
    "MirrorLangevin": Entry(
        lambda: pf.MirrorLangevin(mirror="hyperbolic", target_acceptance=0.6), _set(target_acceptance=0.5)
    ),
    "MAPLA": Entry(lambda: pf.MAPLA(target_acceptance=0.6), _set(target_acceptance=0.5)),
    "ProximalLangevin": Entry(
        lambda: pf.ProximalLangevin(step_size=0.02), _set(step_size=0.03), 0.15, target=composite
    ),
    "PrimalDualLangevin": Entry(
        lambda: pf.PrimalDualLangevin(step_size=0.02), _set(step_size=0.03), 0.15, target=composite
    ),
    "SVGD": Entry(lambda: pf.SVGD(num_particles=160, num_steps=150), _set(learning_rate=0.08, num_steps=160), bias=0.1),
    "MirroredSVGD": Entry(
        lambda: pf.MirroredSVGD(num_particles=160, num_steps=150), _set(learning_rate=0.08, num_steps=160), bias=0.1
    ),
    "SVMD": Entry(lambda: pf.SVMD(num_particles=160, num_steps=120), _set(learning_rate=0.08, jitter=1e-5), bias=0.1),
    "SVNG": Entry(lambda: pf.SVNG(num_particles=250, num_steps=60), _set(learning_rate=0.4, damping=1e-2), bias=0.1),
    "DistributedADMM": Entry(lambda: pf.DistributedADMM(tolerance=0.15), _set(tolerance=0.12), bias=0.2, target=shares),
    "DSGLD": Entry(lambda: pf.DSGLD(tolerance=0.15), _set(tolerance=0.12), bias=0.2, target=shares),
    "DSGHMC": Entry(lambda: pf.DSGHMC(tolerance=0.1), _set(tolerance=0.08), bias=0.15, target=shares),
    "DULA": Entry(lambda: pf.DULA(tolerance=0.15), _set(tolerance=0.12), bias=0.2, target=shares),
    "SplitGibbs": Entry(lambda: pf.SplitGibbs(tolerance=0.15), _set(tolerance=0.12), bias=0.2, target=shares),
    "FALD": Entry(
        lambda: pf.FALD(tolerance=0.15, communication=0.5), _set(communication=0.6, refresh=0.1), 0.25, target=shares
    ),
    "SGLD": Entry(lambda: pf.SGLD(batch_size=4), _set(step_size=0.05), bias=0.1),
    "SGHMC": Entry(lambda: pf.SGHMC(batch_size=4), _set(step_size=0.1, friction=0.2), bias=0.1),
    "VBLL": Entry(
        lambda: pf.VBLL(num_steps=1500, learning_rate=0.02),
        _set(learning_rate=0.03, num_steps=1600),
        bias=0.1,
        target=last_layer,
    ),
    "DoubleKL": Entry(lambda: pf.DoubleKL(neighbors=2, learn=False), _set(tolerance=1e-5, gain=0.01), target=process),
    "VecchiaLaplace": Entry(
        lambda: pf.VecchiaLaplace(neighbors=2, learn=False), _set(tolerance=1e-5, gain=0.01), target=process
    ),
    "StochasticDoubleKL": Entry(
        lambda: pf.StochasticDoubleKL(neighbors=2, learn=False, num_steps=30), _set(learning_rate=0.02), target=process
    ),
    "DenseGP": Entry(lambda: pf.DenseGP(learn=False), _set(tolerance=1e-5, gain=0.02), target=process),
    "StateSpaceGP": Entry(lambda: pf.StateSpaceGP(learn=False), _set(tolerance=1e-5, gain=0.02), target=process),
    "SVGP": Entry(lambda: pf.SVGP(3, learn=False), _set(tolerance=1e-5, gain=0.02), target=process),
    "Laplace": Entry(lambda: pf.Laplace(max_iterations=40), None),
}


def target_of(name: str, seed: int = 0) -> pf.Target:
    """The target that the laws run a method on."""
    return METHODS[name].target(seed)


@cache
def method_of(name: str) -> AbstractMethod:
    """The entry's method; one object, since a user's kernel is told from others by identity."""
    return METHODS[name].make()


def run(name: str, *, seed: int = 0, method: AbstractMethod | None = None, **options: Any) -> pf.Posterior:
    """A short fit of a method, 2 chains of 1,000 draws after 200."""
    defaults = {"key": 0, "num_samples": 1000, "num_warmup": 200, "num_chains": 2, "progress": False}
    return pf.fit(target_of(name, seed), method_of(name) if method is None else method, **defaults | options)


@cache
def first_run(name: str) -> pf.Posterior:
    """The run that compiles; the laws compare with it."""
    return run(name)


def concrete_methods() -> set[str]:
    """Names of all concrete methods of the package."""
    len(pf.methods())  # imports every module that the face knows
    found, waiting = set(), [AbstractMethod]
    while waiting:
        for cls in waiting.pop().__subclasses__():
            waiting.append(cls)
            if cls.__module__.startswith("pushforward.") and not cls.__name__.startswith(("Abstract", "_")):
                found.add(cls.__name__)
    return found
