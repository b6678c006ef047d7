"""Reflected diffusion on the cube [0, 1]^d: densities with mass at the faces, without a bijection.

Noise x + σ z is folded back at the faces. The densities p_σ solve the heat equation in τ = σ²/2 with no flux through
the faces, tend to the uniform one, and have the flow dx/du = −σ² ∇ log p_σ(x), u = log σ: that of `solvers` with the
"denoiser" x + σ² ∇ log p_σ, so that steps, log-determinants and inverses are the same. The score vanishes normally to
the faces, which are then fixed by every step: a map that does not fold keeps the cube. The base is uniform.

A coordinate's noising kernel, for the regression of a network on it, is a sum of images, 2m ± x₀, or of eigenfunctions

    k_τ(x, x₀) = 1 + 2 Σ_k e^(−k² π² τ) cos kπx cos kπx₀

of which 20 terms serve above τ = 0.01 and 3 images on each side below it.

A bijection to the real line is usually preferable; reflection is for densities that do not fall off at the faces.

References
----------
.. [1] A. Lou, S. Ermon (2023). Reflected diffusion models. arXiv:2304.04740. (Their sampler multiplies the drift by a
   bump that vanishes at the faces, which changes the density; here the network has that property.)
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...infer.approximation import Approximation
from ...infer.errors import UnsupportedTarget
from ...infer.target import Target
from ...infer.target.words import describe
from ...infer.variational.flows.networks import Network
from .density import inverse_and_log_det, transform_and_log_det
from .scores import AbstractScore, Level
from .solvers import AbstractSolver, Point
from .training import Levels

TERMS = 20
IMAGES = 3
SWITCH = 0.01
LARGEST, SMALLEST = 2.0, 0.01
"""Levels σ; at the first the density is uniform to 1e-8, e^(−π² σ²/2)."""


def fold(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Into [0, 1] by reflections at the faces."""
    x = jnp.mod(x, 2)
    return jnp.where(x > 1, 2 - x, x)


def log_heat_kernel(x: Array, x0: Array, tau: Array) -> Array:
    """The logarithm of k_τ(x, x₀), of one coordinate."""
    k = jnp.arange(1, TERMS + 1, dtype=x.dtype) * jnp.pi
    large = jnp.maximum(tau, SWITCH)  # so that the branch that is not used is finite too
    waves = jnp.log(1 + 2 * jnp.sum(jnp.exp(-(k**2) * large) * jnp.cos(k * x) * jnp.cos(k * x0)))
    small = jnp.minimum(tau, SWITCH)
    m = jnp.arange(-IMAGES, IMAGES + 1, dtype=x.dtype)
    distances = jnp.concatenate([x - x0 - 2 * m, x + x0 - 2 * m])
    images = jax.nn.logsumexp(-(distances**2) / (4 * small)) - 0.5 * jnp.log(4 * jnp.pi * small)
    return jnp.where(tau > SWITCH, waves, images)


def heat_score(x: Point, x0: Point, sigma: Level) -> Point:
    """∂/∂x log k_τ(x, x₀), τ = σ²/2, coordinate by coordinate."""
    tau = jnp.asarray(0.5 * sigma**2, x.dtype)
    return jax.vmap(jax.grad(log_heat_kernel), in_axes=(0, 0, None))(x, x0, tau)


class CubeScore(AbstractScore):
    """A network's score that vanishes normally to the faces: ∇ log p_σ = sin(πx)/√(sin²(πx) + σ²) · N(cos πx, log σ)/σ.

    Parameters
    ----------
    net
        A perceptron of 2 d + 3 inputs and d outputs; at N = 0 the density is uniform.
    """

    net: Network

    @classmethod
    def make(cls, key: PRNGKeyArray, dim: int, hidden: tuple[int, ...] = (96, 96), dtype: Any = float) -> "CubeScore":
        """Before training: the uniform density."""
        net = Network.make(key, (2 * dim + 3, *hidden, dim), "silu")
        return cls(jax.tree.map(lambda x: x.astype(dtype), net))

    def over_level(self, x: Point, sigma: Level) -> Point:
        """σ ∇ log p_σ."""
        sigma = jnp.asarray(sigma, x.dtype)
        sine, cosine = jnp.sin(jnp.pi * x), jnp.cos(jnp.pi * x)
        level = jnp.log(sigma)
        inputs = [cosine, jnp.cos(2 * jnp.pi * x), level[None], jnp.sin(level)[None], jnp.cos(level)[None]]
        return sine / jnp.sqrt(sine**2 + sigma**2) * self.net(jnp.concatenate(inputs))

    def denoise(self, y: Float[Array, " d"], rho: Level) -> Float[Array, " d"]:
        """The point x + σ² ∇ log p_σ, which drives the flow; not a mean."""
        return y + rho * self.over_level(y, rho)


def reflected_loss(
    score: CubeScore, points: Float[Array, "n d"], key: PRNGKeyArray, levels: Levels
) -> Float[Array, ""]:
    """Mean squared error of σ ∇ log p_σ, log σ uniform, against the noising kernel's score."""
    key_noise, key_levels = jax.random.split(key)
    sigmas = jnp.exp(levels.stratified(key_levels, len(points))).astype(points.dtype)

    def one(x0: Point, sigma: Array, noise: Point) -> Array:
        x = fold(x0 + sigma * noise)
        return jnp.mean((score.over_level(x, sigma) - sigma * heat_score(x, x0, sigma)) ** 2)

    return jnp.mean(jax.vmap(one)(points, sigmas, jax.random.normal(key_noise, points.shape, points.dtype)))


class ReflectedFlow(eqx.Module):
    """The distribution of a solver's end from the uniform one.

    Parameters
    ----------
    score
        Any whose `denoise` is x + σ² ∇ log p_σ.
    grid
        Levels σ₀ > … > σ_n.
    solver
        One of `solvers`.
    dim
        d.
    """

    score: AbstractScore
    grid: Float[Array, " levels"]
    solver: AbstractSolver
    dim: int = eqx.field(static=True)

    def transform(self, x: Point) -> tuple[Point, Float[Array, ""], Int[Array, ""]]:
        """The draw that a uniform point becomes, its log density, and the number of folded steps."""
        pushed = transform_and_log_det(self.score, self.solver, self.grid, x)
        return pushed.y, -pushed.log_det, pushed.folds

    def sample_and_log_prob(self, key: PRNGKeyArray, n: int) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
        """``n`` independent draws and their log densities; NaN where a step folds the map."""
        starts = jax.random.uniform(key, (n, self.dim), self.grid.dtype)
        x, log_q, folds = jax.vmap(self.transform)(starts)
        return x, jnp.where(folds > 0, jnp.nan, log_q)

    def log_prob(self, x: Point) -> Float[Array, ""]:
        """The log density at a point of the cube, −∞ outside; NaN where a step has no inverse there."""
        pulled = inverse_and_log_det(self.score, self.solver, self.grid, x)
        inside = jnp.all((x >= 0) & (x <= 1))
        found = pulled.residual < jnp.sqrt(jnp.finfo(x.dtype).eps)
        return jnp.where(inside, jnp.where(found, -pulled.log_det, jnp.nan), -jnp.inf)


class CubeApproximation(Approximation):
    """A flow on the cube as the approximation of a target all of whose sites lie between two bounds.

    Such a site is mapped to the real line by the log odds of x = (value − lower)/(upper − lower), so that log q(u) =
    log q(x) + Σ log x (1 − x): mass at a face, x → 0, is a tail e^u.

    Parameters
    ----------
    flow
        On the cube.
    learned
        What is known of the training, a `Learned`, or None.
    """

    flow: ReflectedFlow
    learned: Any = None

    def sample_and_log_prob(self, key: PRNGKeyArray, n: int) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
        """``n`` independent u and their log densities; NaN where a step folds the map."""
        x, log_q = self.flow.sample_and_log_prob(key, n)
        return jnp.log(x) - jnp.log1p(-x), log_q + jnp.sum(jnp.log(x) + jnp.log1p(-x), axis=-1)

    def log_prob(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density at any u."""
        inside = jnp.sum(jax.nn.log_sigmoid(u) + jax.nn.log_sigmoid(-u))
        return self.flow.log_prob(jax.nn.sigmoid(u)) + inside

    def trial(self, z: Float[Array, " d"]) -> tuple[Float[Array, ""], Int[Array, ""]]:
        """Log density on the cube of the draw that a standard normal point becomes, and the folded steps on its way."""
        _, log_q, folds = self.flow.transform(jax.scipy.stats.norm.cdf(z))
        return log_q, folds


def check_intervals(target: Target) -> None:
    """Raise unless every site lies between two bounds.

    Raises
    ------
    UnsupportedTarget
        A site's support is not an interval.
    """
    for name, support in target.supports().items():
        given = None if support is None else support.value
        kind = type(getattr(given, "base_constraint", given)).__name__.strip("_").lower()
        if kind not in ("unitinterval", "interval", "openinterval"):
            found = "of a support that depends on others" if given is None else describe(given)
            raise UnsupportedTarget(
                f"A reflected diffusion needs sites between two bounds, and {name!r} is {found}; use "
                f"score='amortised', which maps any support to the real line."
            )
