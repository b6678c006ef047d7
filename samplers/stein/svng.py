"""Stein variational natural gradients: SVMD with a metric G of one's own in place of a mirror's Hessian, on all of R^d.

    φ⁰_i = (1/n) Σ_j [ k_ji (G_j⁻¹ s_j + ∇·G_j⁻¹) + G_j⁻¹ ∇₁k_ji ],
    φ    = M½ [ G_m (M₋½ φ⁰)_m ]_m,        u_i ← u_i + ε G_i⁻¹ φ_i                (Shi, Liu & Mackey 2022, section 5)

∇·G⁻¹ = −G⁻¹ c, c_a = Σ_be ∂_e G_ab (G⁻¹)_be, is summed over directions e, one directional derivative of G at a time: d
of them per particle, and no array of d³ numbers. With one metric for all particles M½ and M₋½ cancel. A step holds n
matrices G⁻¹ and takes 2 n² d² operations for their products with the kernel; it is meant for few dimensions.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Array, Float

from ...infer.errors import InvalidArgument, NonFinite
from ...infer.kernels.metric import Dense
from ...infer.run.fit import HINTS
from ...infer.target import Target
from ...infer.validate import check_nonnegative
from .common import AbstractStein
from .spaces import Cloud
from .svgd import scores
from .svmd import check_gram, gram_roots

METRICS = ("hessian", "fisher")
MOST_NUMBERS = 2**28
"""Of the n matrices G⁻¹ together: 2 GiB in 64 bits."""


class SVNG(AbstractStein):
    """Stein variational natural gradients: SVGD preconditioned by a metric, for badly conditioned posteriors.

    Parameters
    ----------
    num_particles, num_steps, kernel, bandwidth, rule, tolerance, patience, batch_size, initial, tile, backend
        As in `SVGD`; at most 4,000 particles.
    learning_rate
        Of plain gradient steps, constant for 70 % of the iterations, then a cosine to a thousandth; or ``"pilot"``.
    optimizer
        An optax optimiser in place of plain steps, with its own rate.
    metric
        ``"hessian"``: of −log density at the mean of the particles, negative eigenvalues turned positive, one for all;
        ``"fisher"``: Σ_i g_i g_iᵀ of the gradients g_i of the log likelihoods of a target with factors, at each
        particle, and not with mini-batches; or a function u (d,) → G (d, d).
    damping
        Added to the diagonal of G, relative to the mean of its diagonal.
    spectrum, jitter
        As in `SVMD`.

    References
    ----------
    Shi, Liu & Mackey (2022), Sampling with mirrored Stein operators, ICLR, arXiv:2106.12506.
    """

    learning_rate: Any = 0.5
    metric: str | Callable[[Array], Array] = eqx.field(static=True, default="hessian")
    damping: Any = 1e-3
    spectrum: Any = 1.0
    jitter: Any = 1e-6

    source: ClassVar[str] = "Shi et al. 2022"
    rates: ClassVar[tuple[float, ...]] = (1.0, 0.3, 0.1, 0.03)

    def __check_init__(self) -> None:
        check_gram(self)
        check_nonnegative("damping", self.damping)
        if not callable(self.metric) and self.metric not in METRICS:
            raise InvalidArgument(f"metric must be 'hessian', 'fisher' or a function of u, got {self.metric!r}.")
        if self.metric == "fisher" and self.batch_size is not None:
            raise InvalidArgument(
                f"metric='fisher' with batch_size={self.batch_size} takes metric and score from the same observations, "
                f"and the product of their errors does not average out; use metric='hessian'."
            )

    def check_target(self, target: Target, u: Float[Array, "n d"] | None) -> None:
        """Room for the matrices; a metric that is positive definite at a start."""
        n, d = self.num_particles, target.dim
        if n * d * d > MOST_NUMBERS:
            raise InvalidArgument(
                f"num_particles={n} matrices of {d} × {d} are more than SVNG holds ({MOST_NUMBERS:,} numbers); lower "
                f"num_particles, or use SVGD()."
            )
        if self.metric == "fisher":
            target.require("SVNG(metric='fisher')", ("factors",), HINTS)
        if not callable(self.metric):
            return
        point = target.initial(jax.random.key(0)) if u is None else u[0]
        given = np.asarray(self.metric(point))
        if given.shape != (d, d):
            raise InvalidArgument(f"metric must return shape ({d}, {d}), got {given.shape}; u has shape ({d},).")
        if not np.isfinite(given).all() or np.linalg.eigvalsh(0.5 * (given + given.T)).min() <= 0:
            raise NonFinite(
                f"metric is not positive definite at a start; its smallest entry on the diagonal is "
                f"{np.diagonal(given).min():.4g}; add to the diagonal."
            )

    def locate(self, target: Target, y: Float[Array, "n d"], batch: Array | None) -> Cloud:
        """G⁻¹s + ∇·G⁻¹, and G⁻¹."""
        metric = self.metric_at(target, y, batch)
        score = scores(target, y, batch)
        directions = jnp.eye(y.shape[1], dtype=y.dtype)

        def one(u: Array, score: Array) -> tuple[Array, Array]:
            factor = cho_factor(metric(u), lower=True)
            inverse = cho_solve(factor, directions)

            def add(c: Array, e: Array) -> tuple[Array, None]:
                _, slope = jax.jvp(metric, (u,), (e,))
                return c + slope @ (inverse @ e), None

            c, _ = jax.lax.scan(add, jnp.zeros_like(u), directions)
            return inverse, cho_solve(factor, score - c)

        inverses, drift = jax.vmap(one)(y, score)
        return Cloud(y, drift, (Dense(inverses),), score=score)

    def step_scores(self, target: Target, y: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """∇ log density in u."""
        return scores(target, y, None)

    def turn(self, target: Target, cloud: Cloud, bandwidth: Array, phi: Array) -> Array:
        """G⁻¹ M½ G M₋½ φ⁰."""
        del target
        assert cloud.metric is not None
        (block,) = cloud.metric
        roots, _ = gram_roots(self.kernel, cloud.x, bandwidth, self.spectrum, self.jitter)
        inner = roots.inverse @ phi
        turned = roots.half @ jnp.linalg.solve(block.matrices, inner[..., None])[..., 0]  # type: ignore
        return block.apply(turned)

    def metric_at(self, target: Target, y: Float[Array, "n d"], batch: Array | None) -> Callable[[Array], Array]:
        """G as a function of u, damped."""
        d = y.shape[1]
        if callable(self.metric):
            given = self.metric
        elif self.metric == "fisher":
            given = lambda u: _fisher(target, u, batch)  # noqa: E731
        else:
            hessian = jax.hessian(target.log_density)(jnp.mean(y, axis=0))
            values, vectors = jnp.linalg.eigh(-0.5 * (hessian + hessian.T))
            shared = (vectors * jnp.abs(values)) @ vectors.T
            given = lambda u: shared  # noqa: E731

        def damped(u: Array) -> Array:
            found = given(u)
            return found + self.damping * jnp.mean(jnp.diagonal(found)) * jnp.eye(d, dtype=u.dtype)

        return damped

    def _default_optimizer(self) -> Any:
        """Plain steps of length `_rate`."""
        import optax

        return optax.sgd(1.0)


def _fisher(target: Any, u: Array, batch: Array | None) -> Array:
    """Σ_i g_i g_iᵀ, g_i the gradient of the log likelihood of observation i."""
    chosen = jnp.arange(target.num_factors) if batch is None else batch
    gradients = jax.jacrev(lambda u: target.factor(u, chosen))(u)
    return target.num_factors / chosen.shape[0] * gradients.T @ gradients
