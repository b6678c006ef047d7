"""`ConditionalScore`: denoisers of θ given data x, for all x at once, in coordinates that suit each x.

Of whitened parameters y₀, a posterior given x may be many times narrower than the prior, and lies elsewhere for each x.
So a normal regression comes first, N(m(x), S(x)) by maximum likelihood, and the denoiser is that of this normal,
corrected by a network N. With V = S + ρ² I, which commutes with S, and symmetric square roots

    D(y, ρ; x) = m + S V⁻¹ (y − m) + ρ S^½ V^−½ N(V^−½ (y − m), log ρ/s, x),    s = |S|^(1/2d)

which is exact where posteriors are normal and the network zero. The inputs have unit size at every level and for every
x, and so has what N is regressed on: at ρ → 0 minus the noise, at ρ → ∞ the standardised residual of the regression. It
is the preconditioning of [1]_ with S(x) for the data's variance. Symmetric roots, not factors: they are smooth in S.

The prior is learned too, as what is known of θ given nothing: m = 0, S = I, x = 0 and a flag.

References
----------
.. [1] T. Karras et al. (2022). Elucidating the design space of diffusion-based generative models. arXiv:2206.00364.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.variational.flows.networks import Network
from .network import LEVEL_FEATURES, level_features
from .scores import AbstractScore, Level
from .training import HELD_LEVELS, Levels

DROPPED = 0.1
"""Share of a batch that is learned without its condition, which makes the network the score of the prior too."""


class Condition(NamedTuple):
    """What a denoiser is given: x and a flag, shape (c,), and the normal N(m, Q diag(v) Qᵀ) that the regression has."""

    context: Float[Array, " c"]
    mean: Float[Array, " d"]
    variances: Float[Array, " d"]
    axes: Float[Array, "d d"]


class NormalRegression(eqx.Module):
    """N(m, (A Aᵀ)⁻¹) as a function of x, A lower triangular; before training the linear least squares.

    m = B x + A₀⁻ᵀ u and A = A₀ T, with u and T, by rows and its diagonal as logarithms, the network's d + d (d + 1)/2
    outputs.

    Parameters
    ----------
    net
        A perceptron of c inputs; zero before training.
    slope, root
        B and A₀, shapes (d, c) and (d, d); not trained.
    """

    net: Network
    slope: Float[Array, "d c"]
    root: Float[Array, "d d"]

    @classmethod
    def make(
        cls, key: PRNGKeyArray, points: np.ndarray, contexts: np.ndarray, hidden: tuple[int, ...], dtype: Any
    ) -> "NormalRegression":
        """Before training on whitened parameters (n, d) and contexts (n, c)."""
        (n, dim), width = points.shape, contexts.shape[1]
        # A touch of the prior, for inputs that are collinear: as of one more observation.
        gram = contexts.T @ contexts + np.eye(width)
        slope = np.linalg.solve(gram, contexts.T @ points).T
        residual = points - contexts @ slope.T
        covariance = (residual.T @ residual + np.eye(dim)) / (n + 1)
        net = Network.make(key, (width, *hidden, dim + dim * (dim + 1) // 2), "silu")
        return jax.tree.map(
            lambda x: jnp.asarray(x, dtype), cls(net, slope, np.linalg.cholesky(np.linalg.inv(covariance)))
        )

    @property
    def dim(self) -> int:
        """Size of the parameters."""
        return self.root.shape[0]

    def __call__(self, context: Float[Array, " c"]) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
        """The mean and A."""
        slope, root = jax.lax.stop_gradient((self.slope, self.root))
        out, d = self.net(context), self.dim
        t = jnp.zeros((d, d), out.dtype).at[np.tril_indices(d)].set(out[d:])
        t = t - jnp.diag(jnp.diag(t)) + jnp.diag(jnp.exp(jnp.diag(t)))
        return slope @ context + solve_triangular(root, out[:d], lower=True, trans=1), root @ t

    def loss(self, point: Float[Array, " d"], context: Float[Array, " c"]) -> Float[Array, ""]:
        """−log density of y₀ given x, without ½ d log 2π."""
        mean, a = self(context)
        return 0.5 * jnp.sum((a.T @ (point - mean)) ** 2) - jnp.sum(jnp.log(jnp.diag(a)))


class GivenScore(AbstractScore):
    """The denoiser given one x.

    Parameters
    ----------
    net
        N, a perceptron of d + 16 + c inputs and d outputs.
    condition
        What is known of x.
    """

    net: Network
    condition: Condition

    def noise(self, y: Float[Array, " d"], rho: Level) -> Float[Array, " d"]:
        """ε̂ = (y − D)/ρ."""
        context, mean, variances, axes = self.condition
        total = variances + rho**2
        apart = (y - mean) @ axes
        level = jnp.log(rho) - 0.5 * jnp.mean(jnp.log(variances))
        found = self.net(jnp.concatenate([axes @ (apart / jnp.sqrt(total)), level_features(level), context]))
        return axes @ (rho * apart / total - jnp.sqrt(variances / total) * (found @ axes))

    def denoise(self, y: Float[Array, " d"], rho: Level) -> Float[Array, " d"]:
        """E[y₀ | y, x]."""
        rho = jnp.asarray(rho, y.dtype)
        return y - rho * self.noise(y, rho)


class ConditionalScore(eqx.Module):
    """Denoisers given any x.

    Parameters
    ----------
    net
        See `GivenScore`.
    regression
        The normal given x.
    """

    net: Network
    regression: NormalRegression

    @classmethod
    def make(
        cls, key: PRNGKeyArray, regression: NormalRegression, hidden: tuple[int, ...], context: int, dtype: Any
    ) -> "ConditionalScore":
        """Before training: that of the normals."""
        sizes = (regression.dim + LEVEL_FEATURES + context, *hidden, regression.dim)
        return cls(jax.tree.map(lambda x: x.astype(dtype), Network.make(key, sizes, "silu")), regression)

    def condition(self, context: Float[Array, " c"]) -> Condition:
        """A context's normal; of a context whose flag, its last number, is 0, that of the prior, N(0, I)."""
        mean, a = self.regression(context)
        flag = context[-1]
        axes, roots, _ = jnp.linalg.svd(a)  # not eigenvectors of A Aᵀ: its small ones are lost in 32 bits
        return Condition(context, flag * mean, jnp.where(flag > 0, roots**-2, 1.0), axes)

    def under(self, condition: Condition) -> GivenScore:
        """The denoiser given what `condition` found."""
        return GivenScore(self.net, condition)

    def given(self, context: Float[Array, " c"]) -> GivenScore:
        """The denoiser given a context."""
        return self.under(self.condition(context))


class Pairs(eqx.Module):
    """Whitened parameters (n, d) and contexts (n, c), in 32 bits: those to learn from and those held out."""

    points: Float[Array, "n d"]
    contexts: Float[Array, "n c"]
    held: Float[Array, "m d"]
    held_contexts: Float[Array, "m c"]


def regression_loss(
    regression: NormalRegression, pairs: Pairs, key: PRNGKeyArray, batch: int
) -> Float[Array, ""]:  # fmt: skip
    """−log density of a random batch."""
    rows = jax.random.randint(key, (batch,), 0, len(pairs.points))
    return jnp.mean(jax.vmap(regression.loss)(pairs.points[rows], pairs.contexts[rows]))


def conditions(score: ConditionalScore, contexts: Float[Array, "n c"]) -> Condition:
    """Of many contexts."""
    return jax.lax.map(score.condition, contexts, batch_size=1024)


def lowest_level(condition: Condition, levels: Levels) -> Float[Array, ""]:
    """The least ρ that is learned given x: so many times the regression's least standard deviation."""
    return levels.lowest * jnp.sqrt(jnp.min(condition.variances))


def denoising_loss(
    score: ConditionalScore, pairs: Pairs, known: Condition | None, levels: Levels, key: PRNGKeyArray, batch: int
) -> Float[Array, ""]:
    """Mean squared error of ε̂ over a random batch, with the condition left out now and then.

    ``known`` are the pairs' conditions, which do not change: the regression is not trained any more. Without them they
    are found anew for each batch.
    """
    key_rows, key_noise, key_levels, key_drop = jax.random.split(key, 4)
    rows = jax.random.randint(key_rows, (batch,), 0, len(pairs.points))
    eps = jax.random.normal(key_noise, (batch, pairs.points.shape[1]), jnp.float32)
    share = (jnp.arange(batch) + jax.random.uniform(key_levels, (batch,), jnp.float32)) / batch
    drop = jax.random.uniform(key_drop, (batch,), jnp.float32) < DROPPED
    prior = score.condition(jnp.zeros_like(pairs.contexts[0]))

    def one(row: Array, eps: Array, share: Array, drop: Array) -> Array:
        mine = score.condition(pairs.contexts[row]) if known is None else jax.tree.map(lambda a: a[row], known)
        at = jax.tree.map(lambda a, b: jnp.where(drop, a, b), prior, mine)
        return _error(score, at, pairs.points[row], levels, share, eps)

    return jnp.mean(jax.vmap(one)(rows, eps, share, drop))


def held_out_loss(score: ConditionalScore, pairs: Pairs, known: Condition, levels: Levels) -> Float[Array, ""]:
    """The same over pairs held out, with noise that is always the same and no condition left out."""
    key_noise, key_levels = jax.random.split(jax.random.key(0))
    shape = (len(pairs.held), HELD_LEVELS)
    eps = jax.random.normal(key_noise, (*shape, pairs.held.shape[1]), jnp.float32)
    share = (jnp.arange(HELD_LEVELS) + jax.random.uniform(key_levels, shape, jnp.float32)) / HELD_LEVELS

    def one(point: Array, at: Condition, share: Array, eps: Array) -> Array:
        return jax.vmap(lambda share, eps: _error(score, at, point, levels, share, eps))(share, eps)

    return jnp.mean(jax.vmap(one)(pairs.held, known, share, eps))


def _error(
    score: ConditionalScore, at: Condition, point: Array, levels: Levels, share: Array, eps: Array
) -> Float[Array, ""]:
    """|ε̂ − ε|²/d at a level so far between the lowest and the highest, by logarithms."""
    low, high = jnp.log(lowest_level(at, levels)), jnp.log(levels.highest)
    rho = jnp.exp(low + (high - low) * share)
    return jnp.mean((score.under(at).noise(point + rho * eps, rho) - eps) ** 2)
