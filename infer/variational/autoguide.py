"""NumPyro's automatic guides, trained on the ELBO by NumPyro's SVI, on any target.

The guide q_φ is one of u, the flat unconstrained vector, and the model it is trained on is the target's log density as
a NumPyro model with the one site ``u``: supports, reparameterisations and enumerated discrete sites are the target's
business, and a draw of the guide is in the order of the target's sites. Each step moves φ up

    ELBO(φ) = E_{q_φ}[log π(u) − log q_φ(u)]

by the reparameterised gradient of ``num_particles`` draws (Kucukelbir et al. 2017), at as many gradients of log π.
"""

import inspect
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..approximation import Approximation
from ..errors import InvalidArgument, NonFinite
from ..method import AbstractMethod, Budget, Stage
from ..run.start import Warm
from ..target import Target
from ..target.arguments import first_line
from ..validate import check_count, check_positive
from .guides import GuideApproximation, flat_model, laplace

GUIDES = (
    "AutoNormal",
    "AutoDiagonalNormal",
    "AutoMultivariateNormal",
    "AutoLowRankMultivariateNormal",
    "AutoLaplaceApproximation",
    "AutoIAFNormal",
    "AutoBNAFNormal",
    "AutoDAIS",
)
WITHOUT_DENSITY = ("AutoDelta",)
MAX_BAD_STEPS = 20
SMOOTHING = 0.99


class GuideState(eqx.Module):
    """State of the optimisation.

    Parameters
    ----------
    optimiser
        NumPyro's optimiser state: count, parameters, moments.
    elbo
        Running mean of the ELBO's estimates.
    best, since
        Its largest value so far, and the steps since it improved.
    bad
        Steps in a row whose ELBO was not finite; they change nothing.
    """

    optimiser: Any
    elbo: Float[Array, ""]
    best: Float[Array, ""]
    since: Int[Array, ""]
    bad: Int[Array, ""]


class GuideInfo(NamedTuple):
    """What is known of a step; the loss is −ELBO."""

    loss: Array
    num_evaluations: Array


class AutoGuide(AbstractMethod):
    """A NumPyro AutoGuide fitted by stochastic variational inference.

    Parameters
    ----------
    guide
        Name of a NumPyro guide (``"AutoNormal"``, ``"AutoMultivariateNormal"``, ``"AutoLowRankMultivariateNormal"``,
        ``"AutoDiagonalNormal"``, ``"AutoLaplaceApproximation"``, ``"AutoIAFNormal"``, ``"AutoBNAFNormal"``,
        ``"AutoDAIS"``), a class of theirs, or a function ``(model, init_loc_fn=...) -> guide``. The model has one site,
        ``u``, a real vector.
    optimizer
        Any optax optimiser; default Adam whose ``learning_rate`` falls to a hundredth along a cosine. Reuse the same
        object: a new one compiles anew.
    learning_rate
        Of the default optimiser.
    num_steps
        Steps of the optimiser, at most.
    num_particles
        Draws per estimate of the ELBO.
    patience
        Stop after so many steps without a larger ELBO (a running mean); None: never.
    options
        Options of the guide by name, e.g. ``{"rank": 5}`` or ``{"num_flows": 2}``.

    Raises
    ------
    InvalidArgument
        An unknown guide, or one without a density (``AutoDelta``).
    NonFinite
        The ELBO was not finite for many steps in a row, or the Hessian of a Laplace approximation is not positive.

    References
    ----------
    Kucukelbir, Tran, Ranganath, Gelman & Blei (2017), JMLR 18; Kingma et al. (2016) (IAF); De Cao, Titov & Aziz (2019)
    (BNAF); Phan, Pradhan & Jankowiak (2019), arXiv:1912.11554.
    """

    guide: Any = eqx.field(static=True, default="AutoNormal")
    optimizer: Any = eqx.field(static=True, default=None)
    learning_rate: Any = 0.02
    num_steps: int = 3000
    num_particles: int = eqx.field(static=True, default=10)
    patience: Any = None
    options: Any = eqx.field(static=True, default=(), converter=lambda given: tuple(sorted(dict(given).items())))

    kind: ClassVar = "approximation"
    exact: ClassVar = False
    evidence: ClassVar[bool] = True
    density: ClassVar[bool] = True
    default_chains: ClassVar[int] = 1
    source: ClassVar[str] = "Kucukelbir et al. 2017; NumPyro"

    def __check_init__(self) -> None:
        name = self.guide if isinstance(self.guide, str) else getattr(self.guide, "__name__", "")
        if name in WITHOUT_DENSITY:
            raise InvalidArgument(f"guide {name} is a point and has no density; use 'AutoLaplaceApproximation'.")
        if isinstance(self.guide, str) and self.guide not in GUIDES:
            raise InvalidArgument(f"guide must be one of {', '.join(GUIDES)}, a class or a function, got {name!r}.")
        if not isinstance(self.guide, str) and not callable(self.guide):
            raise InvalidArgument(f"guide must be a name, a class or a function, got {self.guide!r}.")
        if self.optimizer is not None and not (hasattr(self.optimizer, "init") and hasattr(self.optimizer, "update")):
            raise InvalidArgument(f"optimizer must be an optax GradientTransformation, got {self.optimizer!r}.")
        check_positive("learning_rate", self.learning_rate)
        check_count("num_steps", self.num_steps)
        check_count("num_particles", self.num_particles)
        if self.patience is not None:
            check_count("patience", self.patience)

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """One: the optimisation."""
        del budget
        return (Stage("optimise", self, self.num_steps),)

    def init(self, key: PRNGKeyArray, target: Target, start: Any) -> GuideState:
        """The guide around the start."""
        u = start.u if isinstance(start, Warm) else start
        elbo = target.log_density(u)
        try:
            state = self._svi(target, u).init(key)
        except (TypeError, ValueError, NotImplementedError, AssertionError) as error:
            name = self.guide if isinstance(self.guide, str) else getattr(self.guide, "__name__", repr(self.guide))
            raise InvalidArgument(
                f"guide {name} cannot be made of a model with the one site 'u', a vector, with "
                f"options={dict(self.options)!r}: {first_line(error)}; give options=, another guide, or a function "
                f"(model, init_loc_fn=...) -> guide."
            ) from error
        zero = jnp.zeros((), jnp.int32)
        return GuideState(state.optim_state, elbo, jnp.full_like(elbo, -jnp.inf), zero, zero)

    def step(self, key: PRNGKeyArray, state: GuideState, target: Target, t: Array) -> tuple[GuideState, GuideInfo]:
        """One step of the optimiser."""
        from numpyro.infer.svi import SVIState

        svi = self._svi(target, jnp.zeros(target.dim))
        svi.init(key)  # tells SVI the parameters' constraints; its arrays are not used, so that nothing is computed
        moved, loss = svi.stable_update(SVIState(state.optimiser, None, key))
        finite = jnp.isfinite(loss)
        bad = jnp.where(finite, 0, state.bad + 1)
        share = jnp.maximum(1 - SMOOTHING, 1 / (t + 1.0))
        elbo = jnp.where(finite, state.elbo + share * (-loss - state.elbo), state.elbo)
        better = elbo > state.best
        new = GuideState(
            moved.optim_state, elbo, jnp.where(better, elbo, state.best), jnp.where(better, 0, state.since + 1), bad
        )
        # A step without a finite ELBO is skipped and reports the running mean; too many in a row report NaN.
        reported = jnp.where(finite, loss, jnp.where(bad >= MAX_BAD_STEPS, jnp.nan, -state.elbo))
        return new, GuideInfo(loss=reported, num_evaluations=jnp.asarray(self.num_particles, int))

    def done(self, state: GuideState) -> Bool[Array, ""] | bool:
        """Whether the ELBO has not improved for ``patience`` steps."""
        return False if self.patience is None else state.since >= self.patience

    def result(self, state: GuideState, target: Target) -> Approximation:
        """The guide with the largest ELBO among the restarts."""
        best = int(np.argmax(np.nan_to_num(np.asarray(state.elbo), nan=-np.inf)))
        optimiser = jax.tree.map(lambda x: jnp.asarray(x[best]), state.optimiser)
        params = guide_params(self, target, optimiser)
        if not all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(params)):
            raise NonFinite(f"AutoGuide: parameters of the guide {self.guide!r} are not finite; lower learning_rate.")
        if self._is("AutoLaplaceApproximation"):
            return laplace(target, params["auto_loc"])
        return GuideApproximation(params, target if self._is("AutoDAIS") else None, self, target.dim)

    def merit(self, infos: GuideInfo) -> dict[str, Array]:
        """The ELBO."""
        return {"elbo": -infos.loss.mean()}

    # -- NumPyro's objects ------------------------------------------------------------------------------------------

    def build(self, model: Any, u: Array) -> Any:
        """The guide of ``model``, which begins at ``u``; a new object, since guides keep arrays of what traced them."""
        from numpyro.infer import autoguide, init_to_value

        make = getattr(autoguide, self.guide) if isinstance(self.guide, str) else self.guide
        return make(model, init_loc_fn=init_to_value(values={"u": u}), **dict(self.options))

    def _svi(self, target: Target, u: Array) -> Any:
        from numpyro.infer import SVI, Trace_ELBO

        model = flat_model(target, target.dim)
        return SVI(model, self.build(model, u), self._optimizer(), Trace_ELBO(num_particles=self.num_particles))

    def _optimizer(self) -> Any:
        if self.optimizer is not None:
            return self.optimizer
        import optax

        rate, steps = self.learning_rate, self.num_steps
        return optax.adam(lambda t: rate * (0.01 + 0.495 * (1 + jnp.cos(jnp.pi * jnp.minimum(t / steps, 1.0)))))

    def _is(self, name: str) -> bool:
        """Whether the guide is, or is derived from, NumPyro's class of this name."""
        if isinstance(self.guide, str):
            return self.guide == name
        return inspect.isclass(self.guide) and any(base.__name__ == name for base in self.guide.__mro__)


@jax.jit
def guide_params(method: AutoGuide, target: Target, optimiser: Any) -> dict[str, Any]:
    """The guide's constrained parameters in an optimiser's state."""
    from numpyro.infer.svi import SVIState

    svi = method._svi(target, jnp.zeros(target.dim))
    svi.init(jax.random.key(0))
    return svi.get_params(SVIState(optimiser, None, None))
