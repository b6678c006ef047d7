"""Sequential Monte Carlo from the prior to the posterior, through temperatures chosen on the way; with evidence.

A cloud of particles follows π_λ(u) ∝ p(u) L(u)^λ from the prior (λ = 0) to the posterior (λ = 1). One iteration is one
temperature (Del Moral, Doucet & Jasra 2006, section 3; Chopin & Papaspiliopoulos 2020, algorithm 17.1):

1. weigh     w_i = L(u_i)^δ, with the δ at which their effective sample size is ``target_ess`` of the particles (Jasra
   et al. 2011), or what is left to λ = 1; the mean weight multiplies the evidence, Ẑ ← Ẑ · (1/N) Σ w_i;
2. resample  by these weights, so that the cloud is unweighted again;
3. move      each particle by a Markov kernel that leaves π_λ+δ invariant, tuned to the cloud: its covariance is the
   inverse mass matrix, its mean acceptance steers the step size (Buchholz, Chopin & Jacob 2021); see `moves`. They go
   on until the cloud has forgotten where it was: until no coordinate's correlation with its value before exceeds
   ``correlation``, or ``max_moves``. Too few moves leave the posterior's moments about right and the evidence far too
   low (seen: by 8).

Kernels, resampling and the search for δ are BlackJAX's. A temperature costs N (1 + moves × gradients per move)
evaluations and, with a dense metric, O(N d² + d³). Tuning on the cloud itself biases Ẑ by O(1/N) (Beskos et al. 2016).
"""

from functools import partial
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..infer.approximation import Particles
from ..infer.errors import NonFinite
from ..infer.method import AbstractMethod, Budget, Stage
from ..infer.target import Target
from ..infer.validate import check_choice, check_count, check_fraction, check_positive
from .moves import ACCEPTANCE, cloud_metric, hamiltonian, largest_correlation, random_walk

MOVES = ("hmc", "random_walk")
RESAMPLING = ("systematic", "stratified", "multinomial", "residual")
GAIN = 1.0


class SMCState(eqx.Module):
    """A cloud at a temperature; or the clouds of all runs, on a leading axis.

    Parameters
    ----------
    u
        Particles of equal weight, shape (n, d).
    temperature
        λ.
    log_evidence
        log Ẑ so far.
    log_step_size
        Of the moves, in units of the cloud's scales.
    """

    u: Float[Array, "*runs n d"]
    temperature: Float[Array, "*runs"]
    log_evidence: Float[Array, "*runs"]
    log_step_size: Float[Array, "*runs"]


class SMCInfo(NamedTuple):
    """sample_stats of one temperature."""

    temperature: Array
    log_evidence: Array
    ess: Array
    acceptance_rate: Array
    step_size: Array
    moves: Array
    correlation: Array
    num_evaluations: Array


class Moved(NamedTuple):
    """A cloud on its way at one temperature; acceptance and evaluations are sums over the moves."""

    u: Array
    log_step_size: Array
    correlation: Array
    moves: Array
    acceptance: Array
    evaluations: Array


class SMC(AbstractMethod):
    """Adaptive tempered sequential Monte Carlo: a cloud of particles and an estimate of the evidence.

    Finds separate modes, in their right proportions, where the prior covers them. Several chains are independent
    clouds, pooled by their evidence; they give the evidence a standard error.

    Parameters
    ----------
    num_particles
        Size of a cloud, N.
    target_ess
        Effective share of the particles after a change of temperature, in (0, 1): larger means more temperatures.
    move
        ``"hmc"`` (Hamiltonian, trajectories of random length) or ``"random_walk"`` (Metropolis, no gradients).
    correlation
        Moves end once the correlations, over the cloud, of every coordinate and of its squared deviation with their
        values before the moves are below this; it should not be less than 3/sqrt(N).
    max_moves
        Most moves per particle and temperature; reached where moves cannot cross between modes.
    num_leapfrog
        Most leapfrog steps of a Hamiltonian move; each move draws its number uniformly from 1 to this.
    metric
        ``"dense"`` (covariance of the cloud, shrunk towards its diagonal by d / (N + d)) or ``"diagonal"`` (variances;
        for many dimensions).
    step_size
        First step size, in units of the cloud's scales; default 1/2 for HMC, which draws the one of each move from
        below it, 2.38/sqrt(d) for the random walk.
    target_acceptance
        Mean acceptance that the step size is steered to; default 0.9 for HMC (whose step sizes vary), 0.234
        for the random walk.
    resampling
        ``"systematic"``, ``"stratified"``, ``"residual"`` or ``"multinomial"``.
    max_temperatures
        At most so many; a run that ends before λ = 1 (also by a stopping rule) weighs its particles by what is left.

    References
    ----------
    Del Moral, Doucet & Jasra (2006), JRSS-B 68; Jasra, Stephens, Doucet & Tsagaris (2011), Scand. J. Stat. 38;
    Buchholz, Chopin & Jacob (2021), Bayesian Analysis 16; Beskos, Jasra, Kantas & Thiery (2016), Ann. Appl. Probab. 26.
    """

    num_particles: int = eqx.field(static=True, default=1000)
    target_ess: Any = 0.7
    move: str = eqx.field(static=True, default="hmc")
    correlation: Any = 0.1
    max_moves: int = 50
    num_leapfrog: int = 10
    metric: str = eqx.field(static=True, default="dense")
    step_size: Any = None
    target_acceptance: Any = None
    resampling: str = eqx.field(static=True, default="systematic")
    max_temperatures: int = eqx.field(static=True, default=500)

    kind: ClassVar = "particles"
    requires: ClassVar[tuple[str, ...]] = ("proper_prior",)
    evidence: ClassVar[bool] = True
    default_chains: ClassVar[int] = 1
    needs_start: ClassVar[bool] = False
    takes_start: ClassVar[bool] = False
    source: ClassVar[str] = "Del Moral et al. 2006; BlackJAX"

    def __check_init__(self) -> None:
        check_count("num_particles", self.num_particles, 2)
        check_fraction("target_ess", self.target_ess)
        check_choice("move", self.move, MOVES)
        check_fraction("correlation", self.correlation)
        for name in ("max_moves", "num_leapfrog", "max_temperatures"):
            check_count(name, getattr(self, name))
        check_choice("metric", self.metric, ("diagonal", "dense"))
        check_choice("resampling", self.resampling, RESAMPLING)
        if self.step_size is not None:
            check_positive("step_size", self.step_size)
        if self.target_acceptance is not None:
            check_fraction("target_acceptance", self.target_acceptance)

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """One: the temperatures."""
        del budget
        return (Stage("temperatures", self, self.max_temperatures),)

    def init(self, key: PRNGKeyArray, target: Target, start: Any) -> SMCState:
        """A cloud drawn from the prior, whatever ``start``."""
        del start

        def one(key: PRNGKeyArray) -> Array:
            return target.unconstrain(target.sample_prior(key))

        u = jax.vmap(one)(jax.random.split(key, self.num_particles))
        first = {"hmc": 0.5, "random_walk": 2.38 / target.dim**0.5}[self.move]
        step_size = first if self.step_size is None else self.step_size
        zero = jnp.zeros(())
        return SMCState(jnp.asarray(u, float), zero, zero, jnp.log(jnp.asarray(step_size, float)))

    def step(self, key: PRNGKeyArray, state: SMCState, target: Target, t: Array) -> tuple[SMCState, SMCInfo]:
        """One temperature: weigh, resample, move."""
        import blackjax.smc.resampling

        del t
        key_resample, key_move = jax.random.split(key)
        log_likelihood = log_likelihoods(target, state.u)
        increment = self._increment(log_likelihood, state.temperature)
        log_weights = increment * log_likelihood  # log w_i = δ log L(u_i)
        temperature = state.temperature + increment
        log_evidence = state.log_evidence + logsumexp(log_weights) - jnp.log(self.num_particles)
        weights = jax.nn.softmax(log_weights)
        resample = getattr(blackjax.smc.resampling, self.resampling)
        u = state.u[resample(key_resample, weights, self.num_particles)]
        moved = self._move(key_move, u, target, temperature, state.log_step_size)
        return SMCState(moved.u, temperature, log_evidence, moved.log_step_size), SMCInfo(
            temperature=temperature,
            log_evidence=log_evidence,
            ess=1 / jnp.sum(weights**2),
            acceptance_rate=moved.acceptance / moved.moves,
            step_size=jnp.exp(moved.log_step_size),
            moves=moved.moves,
            correlation=moved.correlation,
            num_evaluations=self.num_particles * (1 + moved.evaluations),
        )

    def done(self, state: SMCState) -> Bool[Array, ""]:
        """At λ = 1."""
        return state.temperature >= 1

    def result(self, state: SMCState, target: Target) -> Particles:
        """All clouds, weighted by their evidence and by what they lack to λ = 1; one log evidence per cloud."""
        runs, n, dim = state.u.shape
        missing = 1 - np.asarray(state.temperature)
        log_weights = np.zeros((runs, n))
        if missing.any():
            log_likelihood = np.asarray(jax.vmap(lambda u: log_likelihoods(target, u))(jnp.asarray(state.u)))
            log_weights = missing[:, None] * log_likelihood
        log_evidence = np.asarray(state.log_evidence) + _log_mean(log_weights)
        if not np.isfinite(log_evidence).any():
            raise NonFinite(
                f"SMC: the log evidence is {log_evidence[0]}, since no particle has a finite likelihood; raise "
                f"num_particles (now {n}), or check data and priors with target.check()."
            )
        log_weights = log_weights + np.asarray(state.log_evidence)[:, None]
        equal = np.ptp(log_weights) == 0
        log_weights = (log_weights - np.logaddexp.reduce(log_weights, axis=None)).reshape(-1)
        return Particles(np.asarray(state.u).reshape(runs * n, dim), None if equal else log_weights, log_evidence)

    def merit(self, infos: SMCInfo) -> dict[str, Array]:
        """The last temperature and log evidence, and the mean acceptance."""
        return {
            "temperature": infos.temperature[..., -1].min(),
            "log_evidence": infos.log_evidence[..., -1].mean(),
            "acceptance": infos.acceptance_rate.mean(),
        }

    def _increment(self, log_likelihood: Array, temperature: Array) -> Array:
        """δ: the largest one that leaves ``target_ess`` of the particles, or all that is left."""
        from blackjax.smc.ess import ess_solver
        from blackjax.smc.solver import dichotomy

        left = 1 - temperature
        delta = ess_solver(lambda given: given, log_likelihood, self.target_ess, left, dichotomy)
        # Where most particles have no likelihood at all, no δ keeps enough of them: a small one drops these alone.
        return jnp.where(jnp.isfinite(delta) & (delta > 0), jnp.minimum(delta, left), jnp.minimum(1e-10, left))

    def _move(self, key: PRNGKeyArray, u: Array, target: Target, temperature: Array, log_step_size: Array) -> "Moved":
        """Move the cloud until it has forgotten ``u``; after each move its mean acceptance corrects the step size."""
        wanted = ACCEPTANCE[self.move] if self.target_acceptance is None else self.target_acceptance
        move = partial(hamiltonian, num_leapfrog=self.num_leapfrog) if self.move == "hmc" else random_walk
        metric = cloud_metric(u, self.metric)

        def tempered(x: Array) -> Array:
            # log p + λ log L, written so that at λ = 1 it is the target's own log density.
            prior = target.log_prior(x)
            return jnp.where(temperature >= 1, 0.0, (1 - temperature) * prior) + temperature * target.log_density(x)

        def once(now: Moved) -> Moved:
            new = move(jax.random.fold_in(key, now.moves), now.u, tempered, jnp.exp(now.log_step_size), metric)
            return Moved(
                u=new.u,
                log_step_size=now.log_step_size + GAIN * (new.acceptance - wanted),
                correlation=largest_correlation(u, new.u),
                moves=now.moves + 1,
                acceptance=now.acceptance + new.acceptance,
                evaluations=now.evaluations + new.evaluations,
            )

        def going(now: Moved) -> Array:
            return (now.moves < self.max_moves) & (now.correlation > self.correlation)

        none = jnp.zeros((), int)
        return jax.lax.while_loop(going, once, Moved(u, log_step_size, jnp.ones(()), none, jnp.zeros(()), none))


def log_likelihoods(target: Target, u: Float[Array, "n d"]) -> Float[Array, " n"]:
    """Log L = log density − log prior of each particle; −inf where it is not a number."""
    found = jax.vmap(lambda x: target.log_density(x) - target.log_prior(x))(u)
    return jnp.where(jnp.isnan(found), -jnp.inf, found)


def _log_mean(log_weights: np.ndarray) -> np.ndarray:
    return np.logaddexp.reduce(log_weights, axis=-1) - np.log(log_weights.shape[-1])
