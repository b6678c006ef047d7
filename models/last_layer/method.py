"""`VBLL`: features and a Bayesian last layer learned together by a deterministic bound (Harrison et al. 2024).

A step takes a batch, computes the head's bound of it, in closed form, and moves features and head down its gradient by
Adam, with decoupled weight decay of the features only and the gradient clipped. Once an epoch the *predictive* log
density of the rows held out is looked at, and the state in which it was largest is copied: the last iterate overfits,
although its bound goes on rising. A step costs a pass forward and back through the network, and of a dense head B K D²
more.

References
----------
.. [1] J. Harrison, J. Willes, J. Snoek (2024). Variational Bayesian last layers. ICLR. arXiv:2404.11599.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ...infer.errors import InvalidArgument, NotAvailable
from ...infer.method import AbstractMethod, Budget, Stage
from ...infer.target import Target
from ...infer.validate import check_count, check_nonnegative, check_positive
from ...infer.variational.surrogates import split
from .approximation import LastLayerApproximation
from .findings import remarks
from .model import LastLayer
from .variational_features import VariationalFeatures

MAX_BAD = 20


class VBLLState(eqx.Module):
    """State of the training of one restart.

    Parameters
    ----------
    params, rest
        Features and head: what is learned (a pair of pytrees), and the rest.
    optimiser
        State of Adam.
    best, best_score, best_at
        Parameters with the largest mean log predictive density of the rows held out, that number, and their step.
    score
        That number when last looked at.
    since
        Looks since the best.
    order
        Rows in the order of this epoch.
    count, bad
        Steps done, and steps in a row that were not finite.
    """

    params: Any
    rest: Any
    optimiser: Any
    best: Any
    best_score: Float[Array, ""]
    best_at: Int[Array, ""]
    score: Float[Array, ""]
    since: Int[Array, ""]
    order: Int[Array, " n"]
    count: Int[Array, ""]
    bad: Int[Array, ""]


class VBLLInfo(NamedTuple):
    """What is recorded of a step; the validation NLL is that of the last look (NaN before the first)."""

    loss: Array
    validation_nll: Array
    grad_norm: Array
    skipped: Array
    num_evaluations: Array


class VBLL(AbstractMethod):
    """Variational Bayesian last layers; each chain is a restart, of which the best on the rows held out is kept.

    Parameters
    ----------
    num_steps
        Steps, at most.
    batch_size
        Rows per step.
    learning_rate
        Of Adam.
    weight_decay
        Of the features, decoupled from the gradient; the head, and `VariationalFeatures`, have their prior.
    clip
        Longest gradient (2-norm of all parameters together); None: any.
    patience
        Looks (by default epochs) without a better predictive density after which training ends; None: never early.
    look_every
        Steps between two looks at the rows held out; default an epoch.
    kl_weight
        Factor of the KL term, above 1 for wider epistemic bands; 1 is the bound.
    train_features
        False: the head alone is learned (post-training). `LastLayer.freeze` then computes features once.
    warm
        Whether to begin at the target's present features and head, instead of a new head (and new features, where the
        target has ``init``).

    Raises
    ------
    InvalidArgument
        A setting is out of range.
    NonFinite
        The bound was not finite for many steps in a row.

    References
    ----------
    Harrison, Willes & Snoek (2024), Variational Bayesian last layers.
    """

    num_steps: Any = 10_000
    batch_size: int = eqx.field(static=True, default=32)
    learning_rate: Any = 1e-3
    weight_decay: Any = 1e-4
    clip: Any = 1.0
    patience: Any = 100
    look_every: int | None = eqx.field(static=True, default=None)
    kl_weight: Any = 1.0
    train_features: bool = eqx.field(static=True, default=True)
    warm: bool = eqx.field(static=True, default=False)

    kind: ClassVar = "approximation"
    requires: ClassVar[tuple[str, ...]] = ("last_layer",)
    exact: ClassVar = False
    evidence: ClassVar[bool] = True
    density: ClassVar[bool] = True
    default_chains: ClassVar[int] = 1
    source: ClassVar[str] = "Harrison, Willes & Snoek 2024"
    warning: ClassVar[str] = (
        "VBLL's posterior is of the last layer, given features and noise that were optimised: their uncertainty is not "
        "in it."
    )

    def __check_init__(self) -> None:
        for name in ("num_steps", "batch_size"):
            check_count(name, getattr(self, name))
        for name in ("learning_rate", "kl_weight"):
            check_positive(name, getattr(self, name))
        check_nonnegative("weight_decay", self.weight_decay)
        for name in ("patience", "look_every"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.clip is not None:
            check_positive("clip", self.clip)

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """One: the training."""
        del budget
        return (Stage("train", self, self.num_steps),)

    def init(self, key: PRNGKeyArray, target: Target, start: Any) -> VBLLState:
        """Features as given (or from the target's ``init``), and a new head."""
        del start
        target = _as_last_layer(target)
        key_features, key_head = jax.random.split(key)
        net, head = target.features, target.head
        if not self.warm:
            head = target.first_head(key_head)
            net = net if target.init is None else _alike(target.init(key_features), net)
        net, head = jax.tree.map(_in_scope, (net, head))
        trained, frozen = split(net)
        learned, fixed = head.partition()
        params = (trained if self.train_features else None, learned)
        rest = (frozen if self.train_features else net, fixed)
        params = jax.tree.map(jnp.asarray, params)
        number, count = jnp.asarray(jnp.nan, float), jnp.zeros((), jnp.int32)
        return VBLLState(
            params=params,
            rest=jax.tree.map(lambda x: x if eqx.is_array(x) else None, rest),
            optimiser=_adam().init(params),
            best=params,
            best_score=jnp.asarray(-jnp.inf, float),
            best_at=count,
            score=number,
            since=count,
            order=jnp.arange(target.num_data, dtype=jnp.int32),
            count=count,
            bad=count,
        )

    def step(self, key: PRNGKeyArray, state: VBLLState, target: Target, t: Array) -> tuple[VBLLState, VBLLInfo]:
        """One step of the optimiser; at the end of an epoch, a look at the rows held out."""
        target = _as_last_layer(target)
        key_order, key_loss = jax.random.split(key)
        batch = min(self.batch_size, target.num_data)
        per_epoch = target.num_data // batch
        at = t % per_epoch
        order = jax.lax.cond(at == 0, lambda: jax.random.permutation(key_order, state.order), lambda: state.order)
        rows = jax.lax.dynamic_slice_in_dim(order, at * batch, batch)
        x, y = (jnp.asarray(a)[rows] for a in target.rows)

        def objective(params: Any) -> Array:
            net, head = _joined(params, state.rest, target)
            of_features = 0.0
            if isinstance(net, VariationalFeatures):
                of_features = self.kl_weight * net.divergence() / target.num_data
                net = net.draw(jax.random.fold_in(key_loss, 1))
            options: dict[str, Any] = {"key": key_loss, "kl_weight": self.kl_weight}
            return of_features + head.loss(target.phi(x, net), target.targets(y), target.num_data, **options)

        loss, grads = jax.value_and_grad(objective)(state.params)
        decay = 0.0 if isinstance(target.features, VariationalFeatures) else self.weight_decay  # it has a prior
        params, optimiser, norm, finite = self._update(state, loss, grads, decay)
        bad = jnp.where(finite, 0, state.bad + 1)
        state = eqx.tree_at(
            lambda s: (s.params, s.optimiser, s.order, s.count, s.bad), state,
            (params, optimiser, order, state.count + 1, bad),
        )  # fmt: skip
        if target.held is not None:
            every = per_epoch if self.look_every is None else self.look_every
            state = jax.lax.cond((t + 1) % every == 0, lambda: _looked(state, target), lambda: state)
        reported = jnp.where(finite | (bad >= MAX_BAD), loss, 0.0)
        return state, VBLLInfo(reported, -state.score, norm, ~finite, jnp.ones((), int))

    def done(self, state: VBLLState) -> Bool[Array, ""] | bool:
        """Whether the rows held out have not been predicted better for long."""
        return False if self.patience is None else state.since >= self.patience

    def result(self, state: VBLLState, target: Target) -> LastLayerApproximation:
        """The restart that predicts the rows held out best, at its best state; the first one where none are."""
        target = _as_last_layer(target)
        chosen = _chosen(state)
        one = jax.tree.map(lambda x: x[chosen], state)
        params = one.params if target.held is None or not np.isfinite(one.best_score) else one.best
        net, head = jax.tree.map(_on_host, _joined(params, one.rest, target))
        return LastLayerApproximation(target.with_learned(net, head), 64 if jax.config.jax_enable_x64 else 32)

    def remarks(self, state: VBLLState, target: Target, result: Any) -> list[dict[str, Any]]:
        """Whether training had ended, whether it overfitted, and what noise and posterior look like."""
        del target
        chosen = _chosen(state)
        facts = {name: np.asarray(getattr(state, name))[chosen] for name in ("best_score", "score", "best_at", "count")}
        facts |= {"restarts": np.asarray(state.best_score)}
        return remarks(result.target, facts, int(self.num_steps), self.patience)

    def merit(self, infos: VBLLInfo) -> dict[str, Array]:
        """The bound's loss, and the validation NLL."""
        return {"loss": infos.loss.mean(), "validation nll": infos.validation_nll[:, -1].mean()}

    # -- parts --------------------------------------------------------------------------------------------------------

    def _update(self, state: VBLLState, loss: Array, grads: Any, decay: Any) -> tuple[Any, Any, Array, Array]:
        """Parameters and optimiser after the step, or as before where it is not finite."""
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        shrink = 1.0 if self.clip is None else jnp.minimum(1.0, self.clip / jnp.maximum(norm, 1e-30))
        grads = jax.tree.map(lambda g: jnp.where(finite, g * shrink, 0), grads)
        updates, optimiser = _adam().update(grads, state.optimiser, state.params)
        decayed = (jax.tree.map(lambda u, p: u + decay * p, updates[0], state.params[0]), updates[1])
        moved = jax.tree.map(lambda p, u: (p - self.learning_rate * u).astype(p.dtype), state.params, decayed)
        keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
        return (
            jax.tree.map(keep, moved, state.params),
            jax.tree.map(keep, optimiser, state.optimiser),
            norm,
            finite,
        )


def _adam() -> Any:
    import optax

    return optax.scale_by_adam()


def _in_scope(leaf: Any) -> Any:
    """Arrays of floats in the precision of the scope."""
    return (
        jnp.asarray(leaf, float) if eqx.is_inexact_array(leaf) or isinstance(leaf, np.floating | np.ndarray) else leaf
    )


def _on_host(leaf: Any) -> Any:
    return np.asarray(leaf) if eqx.is_array(leaf) else leaf


def _joined(params: Any, rest: Any, target: LastLayer) -> tuple[Any, Any]:
    """Network and head with these parameters; functions and settings are the target's own."""
    net = rest[0] if params[0] is None else eqx.combine(params[0], rest[0])
    return eqx.combine(net, target.features), eqx.combine(params[1], rest[1], target.head)


def _looked(state: VBLLState, target: LastLayer) -> VBLLState:
    """With the mean log predictive density of the rows held out; its parameters are kept if it is the best."""
    net, head = _joined(state.params, state.rest, target)
    held: Any = target.held
    score = jnp.mean(target.log_scores(held.x, held.y, head=head, net=net)).astype(state.score.dtype)
    better = score > state.best_score  # False of NaN
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.params, state.best)
    fields = (best, jnp.where(better, score, state.best_score), jnp.where(better, state.count, state.best_at), score)
    since = jnp.where(better, 0, state.since + 1)
    return eqx.tree_at(lambda s: (s.best, s.best_score, s.best_at, s.score, s.since), state, (*fields, since))


def _chosen(state: VBLLState) -> int:
    """The restart with the best score."""
    return int(np.argmax(np.asarray(state.best_score)))


def _alike(net: Any, present: Any) -> Any:
    """A network from the target's ``init``, which must be one like the present."""
    shapes = lambda tree: [jnp.shape(leaf) for leaf in jax.tree.leaves(tree) if eqx.is_array_like(leaf)]  # noqa: E731
    if shapes(net) != shapes(present):
        raise InvalidArgument(
            f"init(key) must return features like those given, whose arrays have shapes {shapes(present)}, got "
            f"{shapes(net)}."
        )
    return net


def _as_last_layer(target: Target) -> LastLayer:
    if not isinstance(target, LastLayer):
        raise NotAvailable(f"VBLL needs a LastLayer, got {type(target).__name__}.")
    return target
