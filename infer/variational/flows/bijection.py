"""`Bijection`: an invertible map with its log-determinant, in the interface of flowjax; and how maps are combined.

Our maps are equinox modules whose leaves are arrays and nothing else, so that a whole flow is a state of the optimiser,
goes through `jax.lax.scan` layer by layer and is stored as it is. flowjax's bijections may hold functions (activations,
constraints), which every construction makes anew; they are taken as they are by `foreign.Foreign`.

Maps act on one point of shape (d,); use `jax.vmap`. Stacked layers are one `scan`: a deep flow compiles as fast as a
shallow one.
"""

import abc
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ...errors import InvalidArgument, NotAvailable
from .. import score_recursion as recursion

Structure = Literal["elementwise", "coupling", "autoregressive", "linear", "planar", "continuous", "chain", "other"]
CHECKPOINTED = 16


class Bijection(eqx.Module):
    """An invertible map of R^d with its log-determinant; flowjax's interface, without its base class.

    flowjax takes these where it takes its own (`flowjax.distributions.Transformed`, …), and we take flowjax's.

    Attributes
    ----------
    structure
        What is known of the Jacobian, for whoever can use it (scores carried along with the draws). ``"elementwise"``,
        ``"coupling"`` and ``"autoregressive"`` maps have a triangular one, whose log-diagonal
        `transform_and_log_diagonal` returns.
    dim
        d.
    """

    structure: ClassVar[Structure] = "other"
    dim: eqx.AbstractVar[int]

    @property
    def shape(self) -> tuple[int]:
        """Shape of a point, (d,)."""
        return (self.dim,)

    @property
    def cond_shape(self) -> None:
        """None: our maps take no condition (flowjax's name for covariates)."""
        return

    @abc.abstractmethod
    def transform_and_log_det(
        self, x: Float[Array, " d"], condition: Any = None
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """T(x) and log|det ∂T/∂x|; ``condition`` is there for flowjax's sake and not used."""

    def inverse_and_log_det(
        self, y: Float[Array, " d"], condition: Any = None
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """T⁻¹(y) and log|det ∂T⁻¹/∂y|; raises `NotAvailable` where there is no inverse."""
        raise NotAvailable(
            f"{type(self).__name__} has no inverse, so the flow has no density at given points; use the densities that "
            f"sample_and_log_prob gives with its draws, or a coupling, autoregressive or spline family."
        )

    def push_score(
        self, x: Float[Array, " d"], g: Float[Array, " d"]
    ) -> tuple[Float[Array, " d"], Float[Array, ""], Float[Array, " d"]]:
        """T(x), log|det|, and the score at T(x) of a density whose score at x is ``g``, at held parameters.

        G' = (G − ∂ log|det J|) J⁻¹ (Vaitl et al. 2024, arXiv:2403.15881, algorithm 1); here by the dense Jacobian.
        """
        return recursion.dense(self, x, g)

    def transform(self, x: Float[Array, " d"], condition: Any = None) -> Float[Array, " d"]:
        """T(x)."""
        return self.transform_and_log_det(x, condition)[0]

    def inverse(self, y: Float[Array, " d"], condition: Any = None) -> Float[Array, " d"]:
        """T⁻¹(y)."""
        return self.inverse_and_log_det(y, condition)[0]

    @property
    def _vectorize(self) -> Any:
        """What flowjax's distributions ask of a bijection: the same over leading axes."""
        from flowjax.bijections.bijection import _VectorizedBijection

        return _VectorizedBijection(self)


class Chain(Bijection):
    """Maps one after the other, the first one first.

    Parameters
    ----------
    bijections
        Maps of one dimension.
    """

    bijections: tuple[Bijection, ...]
    structure: ClassVar[Structure] = "chain"

    def __check_init__(self) -> None:
        dims = [b.dim for b in self.bijections]
        if not dims or len(set(dims)) > 1:
            raise InvalidArgument(
                f"bijections of a chain must be one or more of equal dimension, got dimensions {dims}."
            )

    @property
    def dim(self) -> int:
        """That of each of them."""
        return self.bijections[0].dim

    def transform_and_log_det(self, x: Array, condition: Any = None) -> tuple[Array, Array]:
        """All of them in order."""
        total = jnp.zeros((), x.dtype)
        for bijection in self.bijections:
            x, log_det = bijection.transform_and_log_det(x, condition)
            total += log_det
        return x, total

    def inverse_and_log_det(self, y: Array, condition: Any = None) -> tuple[Array, Array]:
        """The inverses in reverse order."""
        total = jnp.zeros((), y.dtype)
        for bijection in reversed(self.bijections):
            y, log_det = bijection.inverse_and_log_det(y, condition)
            total += log_det
        return y, total

    def push_score(self, x: Array, g: Array) -> tuple[Array, Array, Array]:
        """All of them in order."""
        total = jnp.zeros((), x.dtype)
        for bijection in self.bijections:
            x, log_det, g = bijection.push_score(x, g)
            total += log_det
        return x, total, g


class Stack(Bijection):
    """Layers of one kind, applied by `jax.lax.scan`.

    Beyond 16 layers the backward pass recomputes each layer instead of keeping its activations.

    Parameters
    ----------
    layer
        A map whose arrays have a leading axis over layers, as ``eqx.filter_vmap(make)(keys)`` gives it.
    """

    layer: Bijection
    structure: ClassVar[Structure] = "chain"

    @property
    def dim(self) -> int:
        """That of a layer."""
        return self.layer.dim

    @property
    def num_layers(self) -> int:
        """Length of the leading axis."""
        return jax.tree.leaves(self.layer)[0].shape[0]

    def transform_and_log_det(self, x: Array, condition: Any = None) -> tuple[Array, Array]:
        """First to last."""
        return self._scan(lambda layer, x: layer.transform_and_log_det(x, condition), x, reverse=False)

    def inverse_and_log_det(self, y: Array, condition: Any = None) -> tuple[Array, Array]:
        """Last to first."""
        return self._scan(lambda layer, y: layer.inverse_and_log_det(y, condition), y, reverse=True)

    def push_score(self, x: Array, g: Array) -> tuple[Array, Array, Array]:
        """First to last."""

        def body(carry: tuple[Array, Array, Array], layer: Bijection) -> tuple[tuple[Array, Array, Array], None]:
            x, total, g = carry
            x, log_det, g = layer.push_score(x, g)
            return (x, total + jax.lax.stop_gradient(log_det), jax.lax.stop_gradient(g)), None

        body = jax.checkpoint(body) if self.num_layers > CHECKPOINTED else body
        carry = (x, jnp.zeros((), x.dtype), jax.lax.stop_gradient(g))
        return jax.lax.scan(body, carry, self.layer)[0]

    def _scan(self, apply: Any, x: Array, *, reverse: bool) -> tuple[Array, Array]:
        def body(carry: tuple[Array, Array], layer: Bijection) -> tuple[tuple[Array, Array], None]:
            x, total = carry
            x, log_det = apply(layer, x)
            return (x, total + log_det), None

        body = jax.checkpoint(body) if self.num_layers > CHECKPOINTED else body
        out, _ = jax.lax.scan(body, (x, jnp.zeros((), x.dtype)), self.layer, reverse=reverse)
        return out


class Invert(Bijection):
    """The inverse of a map as a map: what was cheap to sample is then cheap to evaluate.

    Parameters
    ----------
    bijection
        The map; it must have an inverse.
    """

    bijection: Bijection

    @property
    def dim(self) -> int:
        """That of the map."""
        return self.bijection.dim

    def transform_and_log_det(self, x: Array, condition: Any = None) -> tuple[Array, Array]:
        """The map's inverse."""
        return self.bijection.inverse_and_log_det(x, condition)

    def inverse_and_log_det(self, y: Array, condition: Any = None) -> tuple[Array, Array]:
        """The map."""
        return self.bijection.transform_and_log_det(y, condition)

    def push_score(self, x: Array, g: Array) -> tuple[Array, Array, Array]:
        """By a pullback of the map, which is the cheap direction."""
        y, log_det = self.transform_and_log_det(x)
        _, pull = jax.vjp(recursion.held(self.bijection).transform_and_log_det, jax.lax.stop_gradient(y))
        return y, jax.lax.stop_gradient(log_det), pull((jax.lax.stop_gradient(g), jnp.ones_like(log_det)))[0]


class Permutation(Bijection):
    """y = x[indices].

    Parameters
    ----------
    indices
        A permutation of 0, …, d − 1.
    """

    indices: Int[Array, " d"]
    dim: int = eqx.field(static=True)
    structure: ClassVar[Structure] = "linear"

    def __init__(self, indices: Int[Array, " d"]) -> None:
        self.indices = indices
        self.dim = indices.shape[-1]

    def transform_and_log_det(self, x: Array, condition: Any = None) -> tuple[Array, Array]:
        """The points in the new order."""
        del condition
        return x[self.indices], jnp.zeros((), x.dtype)

    def inverse_and_log_det(self, y: Array, condition: Any = None) -> tuple[Array, Array]:
        """And back."""
        del condition
        return jnp.zeros_like(y).at[self.indices].set(y), jnp.zeros((), y.dtype)

    def push_score(self, x: Array, g: Array) -> tuple[Array, Array, Array]:
        """In the new order."""
        return x[self.indices], jnp.zeros((), x.dtype), g[self.indices]
