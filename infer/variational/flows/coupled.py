"""Maps with a triangular Jacobian: elementwise, coupling and autoregressive, with any transformer.

- `Elementwise`: y_i = τ(x_i; θ_i), the only one of them that is there for d = 1.
- `Coupling`: y_a = x_a, y_b = τ(x_b; network(x_a)) (NICE, RealNVP, spline flows). Both directions cost one network.
- `Autoregressive`: y_i = τ(x_i; network(x_<i)) (Kingma et al. 2016, IAF). Forward is one masked network; the inverse is
  d of them, one after the other. `Invert` of it is the masked autoregressive flow (Papamakarios et al. 2017).
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ...errors import InvalidArgument
from .. import score_recursion as recursion
from .bijection import Bijection, Structure
from .networks import Network
from .transformers import Transformer


class Triangular(Bijection):
    """A map with a triangular Jacobian in the order of the coordinates."""

    def transform_and_log_diagonal(self, x: Float[Array, " d"]) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """T(x) and the logs of the Jacobian's diagonal."""
        raise NotImplementedError

    def transform_and_log_det(self, x: Array, condition: Any = None) -> tuple[Array, Array]:
        """T(x) and the sum of the log-diagonal."""
        del condition
        y, log_diagonal = self.transform_and_log_diagonal(x)
        return y, jnp.sum(log_diagonal)


class Elementwise(Triangular):
    """Each coordinate by itself.

    Parameters
    ----------
    transformer
        τ.
    params
        θ, shape (d, P).
    """

    transformer: Transformer
    params: Float[Array, "d P"]
    dim: int = eqx.field(static=True)
    structure: ClassVar[Structure] = "elementwise"

    @classmethod
    def make(cls, transformer: Transformer, dim: int) -> "Elementwise":
        """The identity."""
        return cls(transformer, jnp.zeros((dim, transformer.num_params)), dim)

    def transform_and_log_diagonal(self, x: Array) -> tuple[Array, Array]:
        """τ(x; θ) and log τ'."""
        return self.transformer.forward(self.params, x)

    def push_score(self, x: Array, g: Array) -> tuple[Array, Array, Array]:
        """(G − ∂ log τ') / τ'."""
        fixed, (x_held, g) = recursion.held(self), jax.lax.stop_gradient((x, g))
        log_det, _, pushed = recursion.elementwise(fixed.transform_and_log_det, x_held, g)
        return self.transform(x), log_det, pushed

    def inverse_and_log_det(self, y: Array, condition: Any = None) -> tuple[Array, Array]:
        """τ⁻¹."""
        del condition
        x, log_slope = self.transformer.backward(self.params, y)
        return x, -jnp.sum(log_slope)


class Coupling(Triangular):
    """The first ``split`` coordinates stay and decide what happens to the others.

    Parameters
    ----------
    transformer
        τ.
    network
        Maps (split,) to ((d − split) P,).
    dim, split
        d ≥ 2 and how many coordinates stay, 1 ≤ split < d.
    """

    transformer: Transformer
    network: Network
    dim: int = eqx.field(static=True)
    split: int = eqx.field(static=True)
    structure: ClassVar[Structure] = "coupling"

    @classmethod
    def make(
        cls, key: PRNGKeyArray, transformer: Transformer, dim: int, hidden: tuple[int, ...], activation: str,
        split: int | None = None,
    ) -> "Coupling":  # fmt: skip
        """The identity, with random hidden layers; by default half of the coordinates stay."""
        split = dim // 2 if split is None else split
        if not 1 <= split < dim:
            raise InvalidArgument(
                f"A coupling layer of dimension {dim} got split={split}; it must keep at least one coordinate and move "
                f"at least one, so d ≥ 2 (for d = 1 use family='spline')."
            )
        network = Network.make(key, (split, *hidden, (dim - split) * transformer.num_params), activation)
        return cls(transformer, network, dim, split)

    def _params(self, kept: Array) -> Array:
        return self.network(kept).reshape(self.dim - self.split, self.transformer.num_params)

    def push_score(self, x: Array, g: Array) -> tuple[Array, Array, Array]:
        """One forward pass and two pullbacks."""
        at = self.split
        parts = (self._params, self._transform)
        fixed = recursion.held(self)
        y, log_det, pushed = recursion.coupling(
            *parts, (fixed._params, fixed._transform), (x[:at], x[at:]), (g[:at], g[at:])
        )
        return jnp.concatenate([x[:at], y]), log_det, jnp.concatenate(pushed)

    def _transform(self, params: Array, x: Array) -> tuple[Array, Array]:
        y, log_slope = self.transformer.forward(params, x)
        return y, jnp.sum(log_slope)

    def transform_and_log_diagonal(self, x: Array) -> tuple[Array, Array]:
        """The kept part with zeros, the moved part with log τ'."""
        kept, moved = x[: self.split], x[self.split :]
        y, log_slope = self.transformer.forward(self._params(kept), moved)
        return jnp.concatenate([kept, y]), jnp.concatenate([jnp.zeros_like(kept), log_slope])

    def inverse_and_log_det(self, y: Array, condition: Any = None) -> tuple[Array, Array]:
        """As cheap as forward."""
        del condition
        kept, moved = y[: self.split], y[self.split :]
        x, log_slope = self.transformer.backward(self._params(kept), moved)
        return jnp.concatenate([kept, x]), -jnp.sum(log_slope)


class Autoregressive(Triangular):
    """Each coordinate by those before it.

    Parameters
    ----------
    transformer
        τ.
    network
        A masked network from (d,) to (d P,).
    dim
        d.
    """

    transformer: Transformer
    network: Network
    dim: int = eqx.field(static=True)
    structure: ClassVar[Structure] = "autoregressive"

    @classmethod
    def make(
        cls, key: PRNGKeyArray, transformer: Transformer, dim: int, hidden: tuple[int, ...], activation: str
    ) -> "Autoregressive":
        """The identity, with random hidden layers."""
        dims = (dim, transformer.num_params)
        sizes = (dim, *hidden, dim * transformer.num_params)
        return cls(transformer, Network.make(key, sizes, activation, dims), dim)

    def _params(self, x: Array) -> Array:
        return self.network(x).reshape(self.dim, self.transformer.num_params)

    def push_score(self, x: Array, g: Array) -> tuple[Array, Array, Array]:
        """By Jacobi iterations, which end: the strict triangle is nilpotent."""
        fixed = recursion.held(self)
        return recursion.autoregressive(self._params, self._transform, (fixed._params, fixed._transform), x, g)

    def _transform(self, params: Array, x: Array) -> tuple[Array, Array]:
        y, log_slope = self.transformer.forward(params, x)
        return y, jnp.sum(log_slope)

    def transform_and_log_diagonal(self, x: Array) -> tuple[Array, Array]:
        """One network."""
        return self.transformer.forward(self._params(x), x)

    def inverse_and_log_det(self, y: Array, condition: Any = None) -> tuple[Array, Array]:
        """One network per coordinate: after i of them the first i coordinates are right, whatever the others are."""
        del condition

        def body(x: Array, _: None) -> tuple[Array, None]:
            return self.transformer.backward(self._params(x), y)[0], None

        x, _ = jax.lax.scan(body, jnp.zeros_like(y), length=self.dim)
        return x, -jnp.sum(self.transformer.forward(self._params(x), x)[1])
