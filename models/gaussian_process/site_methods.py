"""`DenseGP`, `StateSpaceGP`, `SVGP`: a latent process by sites on a dense, Markov or low-rank form of its prior.

The last two make no error where the form is the process's own: `DenseGP` and `StateSpaceGP` have the exact posterior
and the exact evidence under Gaussian noise, and the best Gaussian q under any other likelihood. That is the variational
one and not Laplace's approximation, since its ELBO is a bound that can be compared between likelihoods and with `SVGP`,
whose own likelihood terms need no new derivation, and since its means are those of the marginals and not a mode.
"""

import abc
from typing import Any, ClassVar, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...infer.errors import InvalidArgument, NotAvailable, UnsupportedTarget
from ...infer.target import Target
from ...infer.validate import check_count
from .chain import Chain
from .climb import Climb
from .dense import Dense, Inducing, choose_inducing
from .kernels import without_chain
from .latent import DENSE, LatentGP
from .learning import INNER, AbstractLatentMethod, process_reached, unbounded
from .likelihoods import Gaussian
from .sites import AbstractForm, Sites, elbo, first_sites, iterate, site_at
from .sites_posterior import SitesPosterior


class SitesState(eqx.Module):
    """State of a run.

    Parameters
    ----------
    climb
        Hyper-parameters, see `LatentGP.free`, and what is known of the ELBO as their function.
    sites
        Of the likelihood.
    mean, variance
        Of f at the data, of the last iteration of the fixed point.
    elbo
        Of the last step.
    num_steps
        Evaluations of the ELBO and its gradient in this stage.
    change
        Largest change of a mean in the last iteration, in standard deviations.
    step_size
        Of the last natural-gradient step.
    """

    climb: Climb
    sites: Sites
    mean: Float[Array, " n"]
    variance: Float[Array, " n"]
    elbo: Float[Array, ""]
    num_steps: Int[Array, ""]
    change: Float[Array, ""]
    step_size: Float[Array, ""]


class SitesInfo(NamedTuple):
    """What is known of a step."""

    elbo: Array
    change: Array
    step_size: Array
    num_evaluations: Array


class AbstractSites(AbstractLatentMethod):
    """Base of the three: they differ in the form of the prior."""

    form: eqx.AbstractVar[AbstractForm | None]

    @abc.abstractmethod
    def choose(self, gp: LatentGP) -> AbstractForm:
        """The form for a process at the hyper-parameters reached; on the host."""

    def prepare(self, key: PRNGKeyArray, target: Target, start: Any) -> "AbstractSites":
        """The form of the prior."""
        del key
        form = self.choose(process_reached(self, target, start))
        return eqx.tree_at(lambda m: m.form, self, form, is_leaf=lambda x: x is None)

    def init(self, key: PRNGKeyArray, target: Target, start: Any) -> SitesState:
        """The sites of the likelihood's start, or where the last stage ended."""
        del key
        gp, nothing = cast("LatentGP", target), jnp.zeros((), jnp.int32)
        if isinstance(start, SitesState):
            return eqx.tree_at(lambda s: (s.climb, s.num_steps), start, (start.climb.anew(), nothing))
        found = first_sites(gp)
        zero, flat = jnp.zeros((), found.linear.dtype), jnp.zeros_like(found.linear)
        return SitesState(Climb.at(gp.free()), found, flat, flat + 1, zero - jnp.inf, nothing, zero + jnp.inf, zero)

    def step(
        self, key: PRNGKeyArray, state: SitesState, target: Target, t: Array
    ) -> tuple[SitesState, SitesInfo]:  # fmt: skip
        """One step of learning, or one iteration of the fixed point."""
        del key, t
        gp = cast("LatentGP", target)
        new = self._iterate(state, gp) if self.last else self._learn(state, gp)
        return new, SitesInfo(new.elbo, new.change, new.step_size, jnp.ones((), jnp.int32))

    def _iterate(self, state: SitesState, gp: LatentGP) -> SitesState:
        found = iterate(gp.with_free(state.climb.point), self._form(), state.sites)
        return SitesState(
            state.climb, found.sites, found.mean, found.variance, found.elbo, state.num_steps, found.change,
            found.step_size,
        )  # fmt: skip

    def _learn(self, state: SitesState, gp: LatentGP) -> SitesState:
        """The best sites at the hyper-parameters asked for, and the ELBO and its gradient there."""
        free, form = state.climb.asked(), self._form()
        here = gp.with_free(free)
        if isinstance(gp.likelihood, Gaussian):
            y, mu = jnp.asarray(gp.y, float), here.mean.at(jnp.asarray(gp.X))
            best, beta = site_at(here, mu, jnp.zeros_like(mu), mu, y), jnp.ones(())
        else:

            def improve(given: Sites, _: None) -> tuple[Sites, Array]:
                found = iterate(here, form, given)
                return found.sites, found.step_size

            best, beta = jax.lax.scan(improve, state.sites, None, INNER)
            beta = beta[-1]
        value, gradient = jax.value_and_grad(lambda free: elbo(gp.with_free(free), form, best)[0])(free)
        gradient = gradient * jnp.asarray(gp.learned(), gradient.dtype)
        change = jnp.max(jnp.abs(free - state.climb.point), initial=0.0)
        climb = state.climb.told(value, gradient)
        # Sites from which an overflow came are not gone on from.
        kept = jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(value), new, old), best, state.sites)
        value = jnp.where(jnp.isfinite(value) | jnp.isneginf(state.climb.value), value, state.elbo)
        return SitesState(climb, kept, state.mean, state.variance, value, state.num_steps + 1, change, beta)

    def result(self, state: SitesState, target: Target) -> SitesPosterior:
        """Q and the learned hyper-parameters."""
        state = jax.tree.map(lambda x: jnp.asarray(x[0]), state)
        gp, form = cast("LatentGP", target).with_free(state.climb.point), self._form()
        if isinstance(form, Chain):
            gp = gp.with_structure(form)
        return SitesPosterior(gp, form, state.sites, state.mean, state.variance, state.elbo)

    def remarks(self, state: SitesState, target: Target, result: Any) -> list[dict[str, Any]]:
        """Whether the fixed point was reached, and what inducing inputs leave open."""
        del target, result
        return [self.standstill(float(np.asarray(state.change)[0]))]

    def alarm(self, infos: SitesInfo) -> str | None:
        """What to say where the ELBO is not finite."""
        cause = (
            "a covariance is not positive definite, or the likelihood overflows; raise the nugget, or begin with "
            "hyper-parameters that fit the data."
        )
        return unbounded(self, infos, cause)

    def _form(self) -> AbstractForm:
        if self.form is None:
            raise NotAvailable(f"{type(self).__name__} has no prior yet (phase {self.phase}); run it with fit.")
        return self.form


class DenseGP(AbstractSites):
    """A latent process with its dense prior, for up to 4,000 observations.

    Under Gaussian noise the posterior and the evidence are exact; under other likelihoods q is the Gaussian nearest to
    the posterior in KL(q ‖ p).

    Parameters
    ----------
    learn
        Whether hyper-parameters are learned, by the ELBO; else they stay those of the target.
    num_steps
        Evaluations of the ELBO and its gradient at most.
    gain
        Nats that a further step must promise for learning to go on.
    max_iterations
        Of the fixed point in the end.
    tolerance
        Largest change of a mean, in standard deviations, at which that stops.
    allow_float32
        Whether a run in 32 bits is let through.

    Raises
    ------
    InvalidArgument
        A setting is out of range, there are too many observations, or the run is in 32 bits.
    NonFinite
        The ELBO is not finite.

    References
    ----------
    Rasmussen & Williams (2006), Gaussian processes for machine learning; Khan & Lin (2017), AISTATS, arXiv:1703.04265.
    """

    learn: bool = eqx.field(static=True, default=True)
    num_steps: int = eqx.field(static=True, default=100)
    gain: float = 0.01
    max_iterations: int = eqx.field(static=True, default=100)
    tolerance: float = 1e-6
    allow_float32: bool = eqx.field(static=True, default=False)
    phase: int = eqx.field(static=True, default=0)
    form: AbstractForm | None = None

    warning: ClassVar[str] = (
        "Point estimates: intervals leave out what is not known of the hyper-parameters, and q is Gaussian, which the "
        "posterior is under Gaussian noise only."
    )
    source: ClassVar[str] = "Rasmussen & Williams 2006; Khan & Lin 2017"

    def choose(self, gp: LatentGP) -> AbstractForm:
        """The dense one."""
        if gp.dim > DENSE:
            raise InvalidArgument(
                f"DenseGP takes at most {DENSE:,} observations, got {gp.dim:,}; use StateSpaceGP for one input, "
                f"DoubleKL or SVGP for more."
            )
        return Dense()


class StateSpaceGP(AbstractSites):
    """A latent process of one input with a Markov kernel, in time and memory linear in n; exact as `DenseGP` is.

    Parameters
    ----------
    parallel
        Whether times are combined by associative scans (O(log n) rounds) instead of one after the other; by default on
        accelerators.
    learn, num_steps, gain, max_iterations, tolerance, allow_float32
        As of `DenseGP`.

    Raises
    ------
    UnsupportedTarget
        There is more than one input, or the kernel is no sum or product of Matérn kernels.
    InvalidArgument
        A setting is out of range, or the run is in 32 bits.
    NonFinite
        The ELBO is not finite.

    References
    ----------
    Hartikainen & Särkkä (2010), MLSP; Corenflos, Zhao & Särkkä (2022), FUSION, arXiv:2102.09964.
    """

    parallel: bool | None = eqx.field(static=True, default=None)
    learn: bool = eqx.field(static=True, default=True)
    num_steps: int = eqx.field(static=True, default=100)
    gain: float = 0.01
    max_iterations: int = eqx.field(static=True, default=100)
    tolerance: float = 1e-6
    allow_float32: bool = eqx.field(static=True, default=False)
    phase: int = eqx.field(static=True, default=0)
    form: AbstractForm | None = None

    warning: ClassVar[str] = DenseGP.warning
    source: ClassVar[str] = "Hartikainen & Särkkä 2010; Corenflos et al. 2022"

    def choose(self, gp: LatentGP) -> AbstractForm:
        """The chain."""
        if gp.X.shape[1] != 1:
            raise UnsupportedTarget(
                f"StateSpaceGP needs a process of one input, this one has {gp.X.shape[1]}; use DoubleKL or DenseGP."
            )
        missing = without_chain(gp.kernel)
        if missing is not None:
            missing.markov(jnp.zeros(0))  # says why not
        return Chain(jax.default_backend() != "cpu" if self.parallel is None else self.parallel)


class SVGP(AbstractSites):
    """A latent process by inducing inputs: the low-rank baseline (SGPR where the likelihood is Gaussian).

    Inducing inputs are rows of X, each the one of which those before it tell least, chosen anew once length scales have
    been learned; they are not moved by gradients. q(u) is at its optimum in each step, in closed form or by natural
    gradients.

    Parameters
    ----------
    num_inducing
        M; memory grows as n M, time as n M².
    learn, num_steps, gain, max_iterations, tolerance, allow_float32
        As of `DenseGP`.

    Raises
    ------
    InvalidArgument
        A setting is out of range, or the run is in 32 bits.
    NonFinite
        The ELBO is not finite.

    References
    ----------
    Titsias (2009), AISTATS; Hensman, Matthews & Ghahramani (2015), AISTATS; Adam, Chang, Khan & Solin (2021), NeurIPS,
    arXiv:2111.03412; Burt, Rasmussen & van der Wilk (2020), JMLR 21(131).
    """

    num_inducing: int = eqx.field(static=True, default=500)
    learn: bool = eqx.field(static=True, default=True)
    num_steps: int = eqx.field(static=True, default=40)
    gain: float = 0.01
    max_iterations: int = eqx.field(static=True, default=100)
    tolerance: float = 1e-4
    allow_float32: bool = eqx.field(static=True, default=False)
    phase: int = eqx.field(static=True, default=0)
    form: AbstractForm | None = None

    learning: ClassVar[tuple[str, ...]] = ("inducing inputs 1", "inducing inputs 2")
    warning: ClassVar[str] = (
        "Low rank, point estimates: what varies faster than the inducing inputs can follow counts as noise, and "
        "intervals leave out what is not known of the hyper-parameters."
    )
    source: ClassVar[str] = "Titsias 2009; Adam et al. 2021"

    def __check_init__(self) -> None:
        check_count("num_inducing", self.num_inducing)

    def choose(self, gp: LatentGP) -> AbstractForm:
        """Inducing inputs for the length scales reached."""
        return Inducing(jnp.asarray(choose_inducing(gp, self.num_inducing)))
