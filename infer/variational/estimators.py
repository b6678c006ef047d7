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
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, PRNGKeyArray

from ..approximation import Approximation
from ..errors import InvalidArgument, NotAvailable
from .objectives import Objective


class Estimate(NamedTuple):
    """An objective's value, the log weights (M, K) behind it, and its gradient, a pytree as `split` gives it."""

    value: Array
    log_w: Array
    grads: Any


class Drawn(NamedTuple):
    """Draws of q, flat: u (n, d), log q(u) (n,), and log densities of what was accepted (n,), see `rejection`."""

    u: Array
    log_q: Array
    accepted: Array | None = None


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
        shape = _shape(objective, num_draws)
        drawn = draw(q, key, shape[0] * shape[1])
        log_p, along = _at_draws(log_density, drawn.u)
        log_w = (along - drawn.log_q).reshape(shape)
        value = objective(log_w)
        total = value + _model_part(objective, log_p, drawn.log_q, shape)
        if drawn.accepted is not None:
            total += jnp.sum(_credit(objective, log_w) * drawn.accepted.reshape(shape))
        return total, (stop_gradient(value), stop_gradient(log_w))


class StickingTheLanding(Estimator):
    """Path gradient with the score of q from its density at the draws; linear objectives, or K = 1.

    References
    ----------
    Roeder, Wu & Duvenaud (2017), Sticking the landing.
    """

    path: ClassVar[bool] = True

    def surrogate(self, objective, q, log_density, key, num_draws=None):
        """See `Estimator.surrogate`."""
        return _path_surrogate(objective, q, log_density, key, num_draws, recursive=False)


class FastPath(Estimator):
    """The same gradient with the score of q carried along the flow, without an inverse; linear objectives, or K = 1.

    References
    ----------
    Vaitl, Winkler, Richter & Kessel (2024), Fast and unified path gradient estimators for normalizing flows, alg. 1.
    """

    path: ClassVar[bool] = True

    def surrogate(self, objective, q, log_density, key, num_draws=None):
        """See `Estimator.surrogate`."""
        return _path_surrogate(objective, q, log_density, key, num_draws, recursive=True)


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
        return _path_surrogate(objective, q, log_density, key, num_draws, recursive)


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
        shape = _shape(objective, num_draws)
        u = stop_gradient(q.sample_and_log_prob(key, shape[0] * shape[1])[0])
        log_q = jax.vmap(q.log_prob)(u)
        log_p = jax.vmap(log_density)(u)
        log_w = (stop_gradient(log_p) - log_q).reshape(shape)
        value = objective(log_w)
        total = jnp.sum(_credit(objective, log_w) * log_q.reshape(shape))
        if not objective.linear:  # else ∂L/∂φ at fixed u has mean zero
            total += value
        return total + _model_part(objective, log_p, log_q, shape), (stop_gradient(value), stop_gradient(log_w))


class FixedDraws(Estimator):
    """Derivative through log q alone, at draws that are held fixed: of q (log-variance, wake) or of the posterior."""

    def surrogate(self, objective, q, log_density, key, num_draws=None):
        """See `Estimator.surrogate`."""
        shape = _shape(objective, num_draws)
        if objective.sampling == "given":
            u = objective.take(key, shape).reshape(shape[0] * shape[1], -1)
        else:
            u = stop_gradient(q.sample_and_log_prob(key, shape[0] * shape[1])[0])
        log_q = jax.vmap(q.log_prob)(u)
        log_p = jnp.zeros_like(log_q) if log_density is None else jax.vmap(log_density)(u)
        log_w = (stop_gradient(log_p) - log_q).reshape(shape)
        value = objective(log_w)
        return value + _model_part(objective, log_p, log_q, shape), (stop_gradient(value), stop_gradient(log_w))


def amortised(
    estimator: Estimator,
    objective: Objective,
    trained: Any,
    build: Callable[[Any, Any], tuple[Any, Callable]],
    data: Any,
    key: PRNGKeyArray,
) -> Estimate:
    """Mean over observations of an objective whose guide (and model) are functions of the observation.

    Parameters
    ----------
    trained
        Pytree of what is trained, e.g. an encoder and a decoder.
    build
        (trained, datum) ↦ (q, log_density) of that datum's latent u.
    data
        Pytree of arrays with a leading axis of B observations, e.g. a mini-batch.

    Returns
    -------
    Estimate
        Mean value, log weights (B, M, K), gradient in ``trained``; multiply by n / B for the sum over n observations.
    """
    params, static = split(trained)
    size = jax.tree.leaves(data)[0].shape[0]

    def loss(params: Any) -> Any:
        def one(datum: Any, key: PRNGKeyArray) -> Any:
            q, log_density = build(eqx.combine(params, static), datum)
            return estimator.surrogate(objective, q, log_density, key)

        totals, (values, log_w) = jax.vmap(one)(data, jax.random.split(key, size))
        return jnp.mean(totals), (jnp.mean(values), log_w)

    (_, (value, log_w)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return Estimate(value, log_w, grads)


def gradient_noise(
    estimator: Estimator, objective: Objective, q: Any, log_density: Any, key: PRNGKeyArray, num_probes: int = 16
) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
    """Squared length of the mean gradient and trace of its covariance, for each block of parameters of q.

    A block is a field of q (or of its bijection, where q is a flow); both are from ``num_probes`` independent gradients
    of one term each (M = 1), and the first is corrected for its own noise, so that it may come out negative.

    Returns
    -------
    dict
        Name of the block → (‖E g‖², tr Var g), scalars.
    """
    least = 2 if isinstance(estimator, ScoreFunction) and objective.num_samples == 1 else 1
    one = lambda key: estimator.value_and_grad(objective, q, log_density, key, num_draws=least).grads  # noqa: E731
    grads = jax.lax.map(one, jax.random.split(key, num_probes))
    blocks: dict[str, list[Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path[: 3 if hasattr(q, "bijection") else 1]).lstrip(".")
        blocks.setdefault(name, []).append(leaf.reshape(num_probes, -1))
    found = {}
    for name, leaves in blocks.items():
        g = jnp.concatenate(leaves, 1)
        noise = jnp.sum(jnp.var(g, axis=0, ddof=1))
        found[name] = (jnp.sum(jnp.mean(g, 0) ** 2) - noise / num_probes, noise)
    return found


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
    dense = isinstance(estimator, StickingTheLanding | ScoreFunction | FixedDraws)
    if dense or objective.sampling == "given" or (isinstance(estimator, DReG) and not recursive):
        try:
            jax.eval_shape(lambda key: q.log_prob(q.sample_and_log_prob(key, 1)[0][0]), jax.random.key(0))
        except (NotAvailable, NotImplementedError) as error:
            raise InvalidArgument(f"{pair} needs log_prob, which {name} lacks ({error}); use FastPath.") from error


# -- parameters -------------------------------------------------------------------------------------------------------


def split(q: Any) -> tuple[Any, Any]:
    """Parameters (inexact arrays that are not marked `paramax.NonTrainable`) and the rest; `eqx.combine` joins them."""
    from paramax import NonTrainable

    return eqx.partition(q, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, NonTrainable))


# -- pieces of surrogates ---------------------------------------------------------------------------------------------


def draw(q: Any, key: PRNGKeyArray, n: int) -> Drawn:
    """Draws and log densities, differentiable; with the correction of acceptance–rejection where q has one."""
    if hasattr(q, "sample_and_correction"):
        return Drawn(*q.sample_and_correction(key, n))
    return Drawn(*q.sample_and_log_prob(key, n))


def has_score(q: Any) -> bool:
    """Whether the score of q can be carried along its draws: a method of its own, or a base and a bijection."""
    return hasattr(q, "sample_and_score") or (hasattr(q, "bijection") and hasattr(q, "base"))


def _shape(objective: Objective, num_draws: int | None) -> tuple[int, int]:
    return (objective.num_draws if num_draws is None else num_draws), objective.num_samples


def _at_draws(log_density: Callable, u: Float[Array, "n d"]) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Log densities at held draws, functions of the model's parameters, and to first order around them, of u alone."""
    held = stop_gradient(u)
    values, scores = jax.vmap(jax.value_and_grad(log_density))(held)
    along = stop_gradient(values) + jnp.sum(stop_gradient(scores) * (u - held), -1)
    return values, along


def _model_part(objective: Objective, log_p: Array, log_q: Array, shape: tuple[int, int]) -> Float[Array, ""]:
    """The surrogate of the model's parameters: the objective at held draws and held log q; zero in value."""
    part = objective.model((log_p - stop_gradient(log_q)).reshape(shape))
    return part - stop_gradient(part)


def _path_surrogate(
    objective: Objective,
    q: Any,
    log_density: Any,
    key: PRNGKeyArray,
    num_draws: int | None,
    recursive: bool,
) -> tuple[Array, tuple[Array, Array]]:
    shape = _shape(objective, num_draws)
    n = shape[0] * shape[1]
    if objective.sampling == "given":
        u, log_q, score = _given_path(q, objective.take(key, shape).reshape(n, -1), recursive)
        even = jnp.full(shape, 1 / n, u.dtype)
    elif recursive:
        from .score_recursion import sample_and_score

        u, log_q, score = sample_and_score(q, key, n)
    else:
        u, _ = q.sample_and_log_prob(key, n)
        log_q, score = _density_and_score(q, u)
    log_p, scores_p = jax.vmap(jax.value_and_grad(log_density))(stop_gradient(u))
    log_q = stop_gradient(log_q)
    log_w = stop_gradient(log_p - log_q).reshape(shape)
    # Of given draws the gradient is that of the ELBO with other draws (Vaitl et al. 2024, alg. 3).
    c = even if objective.sampling == "given" else objective.coefficients(log_w)[1]
    along = jnp.sum(stop_gradient(c.reshape(n, 1) * (scores_p - score)) * u)
    value = objective(log_w)
    return along + _model_part(objective, log_p, log_q, shape), (stop_gradient(value), log_w)


def _density_and_score(q: Any, u: Float[Array, "n d"]) -> tuple[Array, Array]:
    """Log densities and scores of q at held draws, by q's density."""
    held = jax.tree.map(lambda x: stop_gradient(x) if eqx.is_inexact_array(x) else x, q)
    return jax.vmap(jax.value_and_grad(held.log_prob))(stop_gradient(u))


def _given_path(q: Any, u: Float[Array, "n d"], recursive: bool) -> tuple[Array, Array, Array]:
    """Given draws as T_φ(z) at z = T_φ⁻¹(u) held fixed, with log q and score."""
    from .score_recursion import push_base

    bijection = flow_bijection(q)
    z = stop_gradient(jax.vmap(bijection.inverse)(u))
    if recursive:
        return push_base(q, z)
    moved = jax.vmap(bijection.transform)(z)
    return moved, *_density_and_score(q, moved)


def flow_bijection(q: Any) -> Any:
    """The bijection of a flow, its constrained parameters computed."""
    from paramax import unwrap

    return unwrap(q.bijection)


def _credit(objective: Objective, log_w: Float[Array, "m k"]) -> Float[Array, "m k"]:
    """L − b for each draw, held fixed; b is L with its log weight replaced by the mean of the others'.

    In its row where K > 1, of all draws where K = 1: the replacement depends on the other draws alone.
    """
    log_w = stop_gradient(log_w)
    m, k = log_w.shape
    rows = log_w if k > 1 else log_w.reshape(1, m)
    others = (jnp.sum(rows, -1, keepdims=True) - rows) / max(rows.shape[1] - 1, 1)
    if objective.linear:
        return ((rows - others) / log_w.size).reshape(m, k)
    whole = objective(log_w)

    def without(i: Array) -> Array:
        changed = jnp.where(jnp.arange(log_w.size) == i, jnp.ravel(others), jnp.ravel(log_w))
        return objective(changed.reshape(m, k))

    return whole - jax.lax.map(without, jnp.arange(m * k), batch_size=min(m * k, 256)).reshape(m, k)
