"""`LastLayerApproximation`: the density of a trained last layer, and its predictions in closed form."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.approximation import Approximation
from ...infer.errors import InvalidArgument, NonFinite
from ...infer.run.plan import jax_key
from ...infer.run.precision import precision
from ...infer.validate import check_count
from .calibration import (
    Calibration,
    distribution_function,
    draw_calibration,
    draw_scores,
    of_classes,
    of_regression,
    separation,
)
from .model import LastLayer, Rows
from .online import condition, conjugate


class Uncertainty(NamedTuple):
    """A prediction and the parts of its uncertainty, as NumPy arrays.

    Parameters
    ----------
    mean
        Of y, of its shape; for classification the probabilities, shape (n, K).
    epistemic, aleatoric
        Regression: variances of y that more data would remove, and that they would not. Classification: mutual
        information of label and logits, and mean entropy of the label given the logits, in nats, shape (n,).
    """

    mean: np.ndarray
    epistemic: np.ndarray
    aleatoric: np.ndarray


class Paths(eqx.Module):
    """Draws of a regression function; see `LastLayerApproximation.paths`."""

    target: LastLayer
    w: Array

    def __call__(self, x: Any) -> Array:
        """Values at rows x."""
        units = self.target.units
        f = jnp.einsum("id,nkd->nik", self.target.phi(x), jnp.asarray(self.w))
        f = units.y_loc + units.y_scale * f
        return f[..., 0] if self.target._single else f


class LastLayerApproximation(Approximation):
    """q of the last layer, together with what was learned of features and noise.

    Attributes
    ----------
    target
        The `LastLayer` with the learned features and noise: what q approximates the posterior of.
    bits
        Precision in which it was learned, and in which predictions are computed.
    """

    target: LastLayer
    bits: int = eqx.field(static=True, default=64)

    # -- of the density -----------------------------------------------------------------------------------------------

    def fitted_target(self, target: Any) -> Any:
        """The target with what was learned in it."""
        del target
        return self.target

    def sample_and_log_prob(self, key: PRNGKeyArray, n: int) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
        """Independent draws of the latents."""

        def one(key: PRNGKeyArray) -> tuple[Array, Array]:
            inner = self.target.head.sample(key)
            u = self.target.unconstrain(self.target.from_head(inner))
            return u, self.target.head.log_q(inner) + self.target.where.constrain(u)[1]

        return jax.vmap(one)(jax.random.split(key, n))

    def log_prob(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density of u."""
        values, log_det = self.target.where.constrain(u)
        return self.target.head.log_q(self.target.to_head(values)) + log_det

    def mean(self) -> Float[Array, " d"]:
        """Means of the weights; raises `NotAvailable` where they are not all that is inferred."""
        if len(self.target.sites) > 1:
            return super().mean()
        return jnp.ravel(self.target.head.weights.mean)

    def covariance(self) -> Float[Array, "d d"]:
        """Block-diagonal of S_k; raises `NotAvailable` where weights are not all that is inferred."""
        if len(self.target.sites) > 1:
            return super().covariance()
        return jax.scipy.linalg.block_diag(*self.target.head.weights.covariances())

    # -- predictions --------------------------------------------------------------------------------------------------

    def predict(self, x: Any, *, joint: bool = False) -> Any:
        """The predictive of y at rows x: a NumPyro distribution in units of y, its arrays NumPy's.

        Batch shape (n,), or (n, K) for several outputs; with ``joint`` one multivariate distribution over the rows, for
        each output. Its arrays have the precision of the fit: use it within ``jax.enable_x64(True)`` to keep 64 bits.

        Raises
        ------
        InvalidArgument
            x has rows of another shape, or ``joint`` for a head without a closed form.
        NonFinite
            x is not finite.
        """
        with precision(self.bits):
            found = _predict(self.without_rows, self._checked(x), joint=joint)
            return jax.tree.map(np.asarray, found)

    def log_score(self, x: Any, y: Any) -> np.ndarray:
        """Log predictive density (or probability) of y at each row x, in units of y, shape (n,)."""
        y = np.asarray(y)
        wanted = (len(x), *np.shape(self.target.rows.y)[1:])
        if y.shape != wanted:
            raise InvalidArgument(f"y must have shape {wanted}, one entry for each row of x, got {y.shape}.")
        with precision(self.bits):
            return np.asarray(_log_scores(self.without_rows, self._checked(x), y))

    def uncertainty(self, x: Any) -> Uncertainty:
        """Mean, and epistemic and aleatoric parts, at rows x."""
        target = self.target
        with precision(self.bits):
            mean, epistemic, aleatoric = (np.asarray(a) for a in _moments(self.without_rows, self._checked(x)))
        if target.head.task == "classification":
            return Uncertainty(mean, epistemic, aleatoric)
        loc, scale = target.units.y_loc, target.units.y_scale
        parts = loc + scale * mean, scale**2 * epistemic, scale**2 * aleatoric
        return Uncertainty(*(a[:, 0] if target._single else a for a in parts))

    def ood_score(self, x: Any) -> np.ndarray:
        """How much rows x look like those learned from, shape (n,): high for them, low out of distribution."""
        with precision(self.bits):
            return np.asarray(_ood_scores(self.without_rows, self._checked(x)))

    def leverage(self, x: Any) -> tuple[np.ndarray, np.ndarray]:
        """Lengths ‖φ(x)‖ of the features, and Σ_k φᵀS_kφ.

        Where the lengths do not grow away from the data, neither does epistemic uncertainty: choose other features.
        """
        with precision(self.bits):
            lengths, quadratic = _leverages(self.without_rows, self._checked(x))
            return np.asarray(lengths), np.asarray(quadratic)

    def calibration(self, x: Any = None, y: Any = None) -> Calibration:
        """How often predictions of rows x hold, by default of the rows held out.

        Raises
        ------
        InvalidArgument
            No rows are given, and the target has none held out.
        """
        if x is None or y is None:
            if self.target.held is None:
                raise InvalidArgument(
                    f"calibration needs rows that were not learned from, got x={x} and none held out."
                )
            x, y = self.target.held
        if self.target.head.task == "classification":
            return of_classes(self.predict(x).probs, y)
        predictive = self.predict(x)
        with precision(self.bits):
            return of_regression(distribution_function(predictive, np.asarray(y)))

    def plot_calibration(self, x: Any = None, y: Any = None) -> Any:
        """A matplotlib figure of `calibration`."""
        import matplotlib.pyplot as plt

        return draw_calibration(plt, self.calibration(x, y), self.target.head.task)

    def plot_ood(self, **rows: Any) -> Any:
        """A matplotlib figure of `ood_score` of rows of several kinds, ``plot_ood(test=x, letters=other)``.

        The first two are told apart in the title, by the area under the ROC curve.
        """
        import matplotlib.pyplot as plt

        if not rows:
            raise InvalidArgument(f"plot_ood needs rows, each kind under a name, got {rows}.")
        scores = {name: self.ood_score(x) for name, x in rows.items()}
        figure = draw_scores(plt, scores)
        if len(scores) > 1:
            (one, a), (other, b) = list(scores.items())[:2]
            figure.axes[0].set_title(f"{one} from {other}: area {separation(a, b):.3f}")
        return figure

    def pictures(self) -> list[tuple[str, str, Callable[[Any], Any]]]:
        """See `Approximation.pictures`: calibration of the rows held out; their scores beside those learned from."""
        rows, held = self.target.rows, self.target.held
        if held is None:
            return []
        text = "Of the rows held out: what was promised against what was found; the diagonal is calibration."
        scores = lambda: {"learned from": self.ood_score(rows.x), "held out": self.ood_score(held.x)}  # noqa: E731
        return [
            ("Calibration", text, lambda plt: draw_calibration(plt, self.calibration(), self.target.head.task)),
            ("Scores", "How much rows look like those learned from; rows far to the left are of another kind.",
             lambda plt: draw_scores(plt, scores())),
        ]  # fmt: skip

    # -- new data -----------------------------------------------------------------------------------------------------

    def refit(self, covariance: str | None = None) -> "LastLayerApproximation":
        """With the exact posterior of the last layer given the learned features and noise, in closed form.

        Parameters
        ----------
        covariance
            Another form of S, say ``"dense_precision"``, in which new rows can be added.

        Raises
        ------
        InvalidArgument
            The head is not a `NormalHead` or a `StudentTHead`, or of low rank.
        """
        head = self.target.head
        if covariance is not None:
            head = dataclasses.replace(head, covariance=covariance, rank=None)
        with precision(self.bits):
            target = self.target._with(head=head)
            return self._with_target(target._with(head=_refitted(target)))

    def condition(self, x: Any, y: Any) -> "LastLayerApproximation":
        """With new rows: the exact update of q in O(D²) each; features, noise and standardisation stay.

        Of a q that `refit` made the result is the posterior of all rows together, in any order; of one that was trained
        it is q times the new likelihood.

        Raises
        ------
        InvalidArgument
            The form of S is not ``"dense_precision"`` (see `refit`), the head has no closed form, or shapes do not fit.
        """
        y = np.asarray(y)
        wanted = (len(x), *np.shape(self.target.rows.y)[1:])
        if y.shape != wanted or not np.isfinite(y).all():
            raise InvalidArgument(f"y must be finite numbers of shape {wanted}, got shape {y.shape}.")
        rows = Rows(*(np.concatenate(pair) for pair in zip(self.target.rows, (self._checked(x), y), strict=True)))
        with precision(self.bits):
            head = _conditioned(self.without_rows, rows.x[-len(y) :], y)
            return self._with_target(self.target._with(head=head, rows=rows))

    def paths(self, n: int = 1, *, key: Any = 0) -> "Paths":
        """Draws of the regression function: ``path(x)`` of shape (n, rows) or (n, rows, K), differentiable in x.

        For Thompson sampling: each draw is one function, the same wherever it is evaluated. It is a pytree: a function
        of path and x is compiled once for all draws. To be called within ``jax.enable_x64(True)`` where the fit has 64
        bits.
        """
        check_count("n", n)
        target = self.target
        if target.head.task != "regression":
            raise InvalidArgument(f"paths are of regression functions, got {type(target.head).__name__}.")
        with precision(self.bits):
            w = np.asarray(_drawn(target.head, jax.random.split(jax_key(key), n)))
        return Paths(self.without_rows, w)

    @property
    def without_rows(self) -> LastLayer:
        """The target with one row of its data: a function of it is compiled once, however many rows were added."""
        rows = self.target.rows
        return self.target._with(rows=Rows(rows.x[:1], rows.y[:1]), held=None)

    def _with_target(self, target: LastLayer) -> "LastLayerApproximation":
        return LastLayerApproximation(jax.tree.map(np.asarray, target), self.bits)

    def _checked(self, x: Any) -> np.ndarray:
        x = np.asarray(x)
        own = np.shape(self.target.rows.x)[1:]
        if x.shape[1:] != own or x.ndim == 0:
            raise InvalidArgument(f"x must have rows of shape {own}, as the data have, got shape {x.shape}.")
        if np.issubdtype(x.dtype, np.inexact) and not np.isfinite(x).all():
            raise NonFinite(f"x has {int((~np.isfinite(x)).sum())} values that are not finite; leave them out.")
        return x


@partial(jax.jit, static_argnames=("joint",))
def _predict(target: LastLayer, x: Any, *, joint: bool) -> Any:
    return target.predict(x, joint=joint)


@jax.jit
def _log_scores(target: LastLayer, x: Any, y: Any) -> Array:
    return target.log_scores(x, y)


@jax.jit
def _moments(target: LastLayer, x: Any) -> tuple[Array, Array, Array]:
    return target.moments(x)


@jax.jit
def _ood_scores(target: LastLayer, x: Any) -> Array:
    return target.ood_score(x)


@jax.jit
def _leverages(target: LastLayer, x: Any) -> tuple[Array, Array]:
    phi = target.phi(x)
    return jnp.linalg.norm(phi, axis=-1), jnp.sum(target.head.weights.quadratic(phi), -1)


@jax.jit
def _drawn(head: Any, keys: Array) -> Array:
    return jax.vmap(head.sample)(keys)["w"]


@jax.jit
def _refitted(target: LastLayer) -> Any:
    return conjugate(target.head, target.phi(target.rows.x), target.targets(target.rows.y))


@jax.jit
def _conditioned(target: LastLayer, x: Any, y: Any) -> Any:
    return condition(target.head, target.phi(x), target.targets(y))
