"""Increasing maps of one coordinate, with parameters that a network or the coordinate itself provides.

All of them are the identity where the parameters are zero, which is where a flow begins. The rational-quadratic spline
is that of Durkan, Bekasov, Murray & Papamakarios (2019), Neural spline flows, arXiv:1906.04032, eqs. 4-8, with
derivatives of 1 at the ends of its box, so that it joins its linear tails smoothly (flowjax's lets the end derivatives
move, which breaks the derivative there). Bins are picked by masks over K of them: gathers are slow where x is batched.
"""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...errors import InvalidArgument
from ...validate import check_count, check_positive

MIN_BIN = 1e-3
MIN_DERIVATIVE = 1e-3


class Transformer(eqx.Module):
    """y_i = τ(x_i; params_i), increasing in x_i.

    Attributes
    ----------
    num_params
        Parameters per coordinate, P.
    """

    @property
    @abc.abstractmethod
    def num_params(self) -> int:
        """Parameters per coordinate, P."""

    @abc.abstractmethod
    def forward(self, params: Float[Array, "n P"], x: Float[Array, " n"]) -> tuple[Array, Array]:
        """τ(x) and log τ'(x), shapes (n,)."""

    @abc.abstractmethod
    def backward(self, params: Float[Array, "n P"], y: Float[Array, " n"]) -> tuple[Array, Array]:
        """The x = τ⁻¹(y), and log τ'(x), shapes (n,)."""


class Additive(Transformer):
    """y = x + t (Dinh, Krueger & Bengio 2014)."""

    @property
    def num_params(self) -> int:
        """The shift."""
        return 1

    def forward(self, params: Array, x: Array) -> tuple[Array, Array]:
        """Shifted."""
        return x + params[:, 0], jnp.zeros_like(x)

    def backward(self, params: Array, y: Array) -> tuple[Array, Array]:
        """Shifted back."""
        return y - params[:, 0], jnp.zeros_like(y)


class Affine(Transformer):
    """y = x exp(s) + t with s = S tanh(s̃ / S), so that one step cannot blow a layer up.

    Parameters
    ----------
    limit
        S, the largest |s|.
    """

    limit: float = eqx.field(static=True, default=3.0)

    def __check_init__(self) -> None:
        check_positive("limit", self.limit)

    @property
    def num_params(self) -> int:
        """Log scale and shift."""
        return 2

    def _log_scale(self, params: Array) -> Array:
        return self.limit * jnp.tanh(params[:, 0] / self.limit)

    def forward(self, params: Array, x: Array) -> tuple[Array, Array]:
        """Scaled and shifted."""
        log_scale = self._log_scale(params)
        return x * jnp.exp(log_scale) + params[:, 1], log_scale

    def backward(self, params: Array, y: Array) -> tuple[Array, Array]:
        """Shifted and scaled back."""
        log_scale = self._log_scale(params)
        return (y - params[:, 1]) * jnp.exp(-log_scale), log_scale


class RationalQuadratic(Transformer):
    """A monotone spline of K rational-quadratic pieces on [−B, B], the identity outside.

    Parameters
    ----------
    num_bins
        K; its K + 1 knots include the ends.
    bound
        B.
    """

    num_bins: int = eqx.field(static=True, default=8)
    bound: float = eqx.field(static=True, default=5.0)

    def __check_init__(self) -> None:
        check_count("num_bins", self.num_bins, 2)
        check_positive("bound", self.bound)
        if self.num_bins * MIN_BIN >= 1:
            raise InvalidArgument(f"num_bins must be below {1 / MIN_BIN:.0f}, got {self.num_bins}.")

    @property
    def num_params(self) -> int:
        """Widths, heights and inner derivatives: 3K − 1."""
        return 3 * self.num_bins - 1

    def knots(self, params: Array) -> tuple[Array, Array, Array]:
        """Positions x and y of the knots and derivatives there, each of shape (n, K + 1)."""
        k, bound = self.num_bins, self.bound

        def positions(logits: Array) -> Array:
            share = MIN_BIN + (1 - k * MIN_BIN) * jax.nn.softmax(logits, axis=-1)
            inner = -bound + 2 * bound * jnp.cumsum(share, axis=-1)[:, :-1]
            end = jnp.full_like(inner[:, :1], bound)  # exactly, whatever the sum has been rounded to
            return jnp.concatenate([-end, inner, end], axis=-1)

        one = jnp.ones_like(params[:, :1])
        slope = MIN_DERIVATIVE + jax.nn.softplus(params[:, 2 * k :] + math.log(math.expm1(1 - MIN_DERIVATIVE)))
        return positions(params[:, :k]), positions(params[:, k : 2 * k]), jnp.concatenate([one, slope, one], axis=-1)

    def _bin(self, at: Array, params: Array, *, inverse: bool) -> tuple[Array, ...]:
        """What belongs to the bin in which ``at`` lies: x_k, Δx, y_k, Δy, d_k, d_{k+1}."""
        xs, ys, slopes = self.knots(params)
        inner = (ys if inverse else xs)[:, 1:-1]
        index = jnp.sum(at[:, None] >= inner, axis=-1)  # in [0, K − 1]
        here = index[:, None] == jnp.arange(self.num_bins)

        def pick(values: Array) -> Array:
            return jnp.sum(jnp.where(here, values, 0), axis=-1)

        x0, x1, y0, y1 = pick(xs[:, :-1]), pick(xs[:, 1:]), pick(ys[:, :-1]), pick(ys[:, 1:])
        return x0, x1 - x0, y0, y1 - y0, pick(slopes[:, :-1]), pick(slopes[:, 1:])

    def _inside(self, at: Array) -> tuple[Array, Array]:
        # Points outside are moved to 0 before the spline, else the branch not taken makes their gradients NaN.
        inside = jnp.abs(at) < self.bound
        return inside, jnp.where(inside, at, 0)

    def forward(self, params: Array, x: Array) -> tuple[Array, Array]:
        """Durkan et al. (2019), eqs. 4-5."""
        inside, at = self._inside(x)
        x0, dx, y0, dy, d0, d1 = self._bin(at, params, inverse=False)
        slope, xi = dy / dx, (at - x0) / dx
        rest = xi * (1 - xi)
        below = slope + (d1 + d0 - 2 * slope) * rest
        y = y0 + dy * (slope * xi**2 + d0 * rest) / below
        log_slope = _log_derivative(slope, xi, d0, d1, below)
        return jnp.where(inside, y, x), jnp.where(inside, log_slope, 0)

    def backward(self, params: Array, y: Array) -> tuple[Array, Array]:
        """Durkan et al. (2019), eqs. 6-8, with the root that does not cancel."""
        inside, at = self._inside(y)
        x0, dx, y0, dy, d0, d1 = self._bin(at, params, inverse=True)
        slope = dy / dx
        delta = (at - y0) * (d1 + d0 - 2 * slope)
        a, b, c = dy * (slope - d0) + delta, dy * d0 - delta, -slope * (at - y0)
        root = jnp.sqrt(jnp.maximum(b**2 - 4 * a * c, jnp.finfo(y.dtype).tiny))
        xi = 2 * c / (-b - root)
        below = slope + (d1 + d0 - 2 * slope) * xi * (1 - xi)
        log_slope = _log_derivative(slope, xi, d0, d1, below)
        return jnp.where(inside, x0 + xi * dx, y), jnp.where(inside, log_slope, 0)


def _log_derivative(slope: Array, xi: Array, d0: Array, d1: Array, below: Array) -> Array:
    above = d1 * xi**2 + 2 * slope * xi * (1 - xi) + d0 * (1 - xi) ** 2
    return 2 * jnp.log(slope) + jnp.log(above) - 2 * jnp.log(below)
