"""Estimators of an objective's gradient, each for any objective that it suits and any family q of `Approximation`.

With draws u = T_φ(z), log weights log w = log π_θ(u) − log q_φ(u) and an objective L of them:

    reparameterised    ∂L/∂φ through u and through log q_φ                        (Kingma & Welling 2014)
    path               Σ c (∇_u log π − ∇_u log q)ᵀ ∂T_φ/∂φ                     (Roeder et al. 2017; Tucker et al. 2019)
    score function     Σ (L − b_k) ∂log q_φ(u_k)/∂φ + ∂L/∂φ at fixed u            (Williams 1992; Mnih & Rezende 2016)
    fixed draws        ∂L/∂φ through log q_φ at fixed u                           (Richter et al. 2020)

Path gradients drop terms of mean zero, which makes them exactly zero where q = π. For linear objectives c = 1 / (M K);
for others the terms are not zero and are reparameterised a second time, which gives c = g − ∂g/∂log w with
g = ∂L/∂log w (`Objective.coefficients`), w̃² for IWAE. The score ∇_u log q comes from the inverse (sticking the landing:
a second pass, sequential for autoregressive flows) or from a recursion along the flow (`score_recursion`).

Every estimator writes a surrogate: a scalar whose derivative in the parameters of q, and in those of the model if it
has any, is the estimate. Parameters of the model see log π_θ at fixed draws, through `Objective.model`.
"""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, PRNGKeyArray

from ..approximation import Approximation
from ..errors import InvalidArgument, NotAvailable
from .objectives import Objective
from .surrogates import at_draws, credit, draw, draws_shape, has_score, model_part, path_surrogate, transport_of
from .surrogates import split as split


class Estimate(NamedTuple):
    """An objective's value, the log weights (M, K) behind it, and its gradient, a pytree as `split` gives it."""

    value: Array
    log_w: Array
    grads: Any


class Estimator(eqx.Module):
    """How the gradient of an objective is estimated."""

    path: ClassVar[bool] = False

    @abc.abstractmethod
    def surrogate(
        self, objective: Objective, q: Approximation, log_density: Any, key: PRNGKeyArray, num_draws: int | None = None
    ) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, "m k"]]]:
        """A scalar with the estimate as its derivative, and (value, log weights).

        Parameters
        ----------
        objective
            What is maximised.
        q
            The family at its present parameters.
        log_density
            Of u, unnormalised: a function of one u of shape (d,). It may depend on parameters of a model, which are
            moved by the same surrogate. None for `ForwardKL` where it is not known.
        key, num_draws
            Randomness, and M where it differs from the objective's.
        """

    def value_and_grad(
        self, objective: Objective, q: Approximation, log_density: Any, key: PRNGKeyArray, num_draws: int | None = None
    ) -> Estimate:
        """Value, log weights (M, K) and gradient in the parameters of q (None elsewhere); for ascent."""
        params, static = split(q)

        def loss(params: Any) -> Any:
            return self.surrogate(objective, eqx.combine(params, static), log_density, key, num_draws)

        (_, (value, log_w)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return Estimate(value, log_w, grads)


class Reparameterised(Estimator):
    """The whole derivative through the draws. Families drawn by acceptance–rejection add their correction."""

    def surrogate(self, objective, q, log_density, key, num_draws=None):
        """See `Estimator.surrogate`."""
        shape = draws_shape(objective, num_draws)
        drawn = draw(q, key, shape[0] * shape[1])
        log_p, along = at_draws(log_density, drawn.u)
        log_w = (along - drawn.log_q).reshape(shape)
        value = objective(log_w)
        total = value + model_part(objective, log_p, drawn.log_q, shape)
        if drawn.accepted is not None:
            total += jnp.sum(credit(objective, log_w) * drawn.accepted.reshape(shape))
        return total, (stop_gradient(value), stop_gradient(log_w))


class StickingTheLanding(Estimator):
    """Path gradient with the score of q from its density at the draws; linear objectives, K = 1, or given draws.

    Of `ForwardKL` it needs the density besides the draws, and a family that is a map with an inverse; where q = π its
    noise vanishes, while that of `FixedDraws` is the Fisher information (Vaitl et al. 2024, section 4).

    References
    ----------
    Roeder, Wu & Duvenaud (2017), Sticking the landing.
    """

    path: ClassVar[bool] = True

    def surrogate(self, objective, q, log_density, key, num_draws=None):
        """See `Estimator.surrogate`."""
        return path_surrogate(objective, q, log_density, key, num_draws, recursive=False)


class FastPath(Estimator):
    """The same gradient with the score of q carried along the flow, without an inverse; linear objectives, or K = 1.

    References
    ----------
    Vaitl, Winkler, Richter & Kessel (2024), Fast and unified path gradient estimators for normalizing flows, alg. 1.
    """

    path: ClassVar[bool] = True

    def surrogate(self, objective, q, log_density, key, num_draws=None):
        """See `Estimator.surrogate`."""
        return path_surrogate(objective, q, log_density, key, num_draws, recursive=True)


class DReG(Estimator):
    """Doubly reparameterised gradient of any smooth objective of log weights; the path gradient where it is linear.

    Parameters
    ----------
    recursive
        Whether the score of q is carried along the flow (True), or comes from its density (False); None: along the
        flow where q is one.

    References
    ----------
    Tucker, Lawson, Gu & Maddison (2019), Doubly reparameterized gradient estimators for Monte Carlo objectives, eq. 8.
    """

    recursive: bool | None = eqx.field(static=True, default=None)
    path: ClassVar[bool] = True

    def surrogate(self, objective, q, log_density, key, num_draws=None):
        """See `Estimator.surrogate`."""
        recursive = has_score(q) if self.recursive is None else self.recursive
        return path_surrogate(objective, q, log_density, key, num_draws, recursive)


class ScoreFunction(Estimator):
    """Score-function gradient with a leave-one-out baseline; the log density need not be differentiable.

    The baseline of a draw is the objective with its log weight replaced by the mean of the others': for the ELBO the
    mean of the other log weights, for IWAE that of VIMCO.

    References
    ----------
    Williams (1992); Mnih & Rezende (2016), Variational inference for Monte Carlo objectives, eq. 10.
    """

    def surrogate(self, objective, q, log_density, key, num_draws=None):
        """See `Estimator.surrogate`."""
        shape = draws_shape(objective, num_draws)
        u = stop_gradient(q.sample_and_log_prob(key, shape[0] * shape[1])[0])
        log_q = jax.vmap(q.log_prob)(u)
        log_p = jax.vmap(log_density)(u)
        log_w = (stop_gradient(log_p) - log_q).reshape(shape)
        value = objective(log_w)
        total = jnp.sum(credit(objective, log_w) * log_q.reshape(shape))
        if not objective.linear:  # else ∂L/∂φ at fixed u has mean zero
            total += value
        return total + model_part(objective, log_p, log_q, shape), (stop_gradient(value), stop_gradient(log_w))


class FixedDraws(Estimator):
    """Derivative through log q alone, at draws that are held fixed: of q (log-variance, wake) or of the posterior."""

    def surrogate(self, objective, q, log_density, key, num_draws=None):
        """See `Estimator.surrogate`."""
        shape = draws_shape(objective, num_draws)
        if objective.sampling == "given":
            u = objective.take(key, shape).reshape(shape[0] * shape[1], -1)
        else:
            u = stop_gradient(q.sample_and_log_prob(key, shape[0] * shape[1])[0])
        log_q = jax.vmap(q.log_prob)(u)
        log_p = jnp.zeros_like(log_q) if log_density is None else jax.vmap(log_density)(u)
        log_w = (stop_gradient(log_p) - log_q).reshape(shape)
        value = objective(log_w)
        return value + model_part(objective, log_p, log_q, shape), (stop_gradient(value), stop_gradient(log_w))


# -- pairs that fit ---------------------------------------------------------------------------------------------------


def check(objective: Objective, estimator: Estimator, q: Approximation | None = None, log_density: Any = True) -> None:
    """Raise `InvalidArgument`, with the reason and a remedy, where an objective, estimator and family do not fit."""
    pair = f"{type(estimator).__name__} with {type(objective).__name__}"
    single = isinstance(estimator, StickingTheLanding | FastPath)
    if objective.sampling == "given":
        if not (single or isinstance(estimator, FixedDraws)):
            raise InvalidArgument(f"{pair}: its draws are given and not drawn from q; use FixedDraws or FastPath.")
        if single and log_density is None:
            raise InvalidArgument(f"{pair} needs the gradient of log_density, got None; use FixedDraws.")
    elif objective.sampling == "fixed" and not isinstance(estimator, FixedDraws):
        raise InvalidArgument(
            f"{pair}: its draws are held fixed, {type(estimator).__name__} moves them; use FixedDraws."
        )
    elif objective.sampling == "reparameterised" and isinstance(estimator, FixedDraws):
        raise InvalidArgument(f"{pair} leaves out how the draws move, which is its gradient; use Reparameterised.")
    elif single and not objective.linear and objective.num_samples > 1:
        raise InvalidArgument(
            f"{pair} of K = {objective.num_samples} is biased, since the score term that it drops has not mean zero; "
            "use DReG, or K = 1."
        )
    if isinstance(estimator, ScoreFunction) and objective.num_draws * objective.num_samples < 2:
        raise InvalidArgument(f"{pair} has {objective.shape} draws; its leave-one-out baseline needs at least 2.")
    if q is not None:
        _check_family(pair, objective, estimator, q)


def _check_family(pair: str, objective: Objective, estimator: Estimator, q: Approximation) -> None:
    name = type(q).__name__
    recursive = isinstance(estimator, FastPath) or (
        isinstance(estimator, DReG) and (has_score(q) if estimator.recursive is None else estimator.recursive)
    )
    if recursive and not has_score(q):
        raise InvalidArgument(f"{pair}: {name} is no flow with base and bijection; use StickingTheLanding or DReG.")
    if hasattr(q, "sample_and_correction") and not isinstance(estimator, Reparameterised):
        raise InvalidArgument(f"{pair}: {name} is drawn by acceptance-rejection; use Reparameterised.")
    if objective.sampling == "given" and estimator.path:
        try:
            jax.eval_shape(lambda key: transport_of(q)[1](objective.take(key, (1, 1))[0, 0]), jax.random.key(0))
        except (NotAvailable, NotImplementedError) as error:
            raise InvalidArgument(
                f"{pair} needs the draw of the base behind a point, which {name} lacks ({error}); use FixedDraws."
            ) from error
    dense = isinstance(estimator, StickingTheLanding | ScoreFunction | FixedDraws)
    if dense or objective.sampling == "given" or (isinstance(estimator, DReG) and not recursive):
        try:
            jax.eval_shape(lambda key: q.log_prob(q.sample_and_log_prob(key, 1)[0][0]), jax.random.key(0))
        except (NotAvailable, NotImplementedError) as error:
            raise InvalidArgument(f"{pair} needs log_prob, which {name} lacks ({error}); use FastPath.") from error
