"""Stein variational natural gradients: SVMD with a metric G of one's own in place of a mirror's Hessian, on all of R^d.

    φ⁰_i = (1/n) Σ_j [ k_ji (G_j⁻¹ s_j + ∇·G_j⁻¹) + G_j⁻¹ ∇₁k_ji ],
    φ    = M½ [ G_m (M₋½ φ⁰)_m ]_m,        u_i ← u_i + ε G_i⁻¹ φ_i                (Shi, Liu & Mackey 2022, section 5)

∇·G⁻¹ = −G⁻¹ c, c_a = Σ_be ∂_e G_ab (G⁻¹)_be, is summed over directions e, one derivative of a product of G and a
vector at a time: no array of d³ numbers. With one metric for all particles M½, M₋½ and c drop out. With a metric of its
own for each, a step holds n matrices G⁻¹ and takes 2 n² d² operations for their products with the kernel; that is for
few dimensions. The metrics are in `metrics`.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float

from ...infer.errors import InvalidArgument, NonFinite
from ...infer.kernels.metric import Dense
from ...infer.run.fit import HINTS
from ...infer.target import Target
from ...infer.validate import check_fraction, check_nonnegative
from . import findings
from .common import AbstractStein, SteinState
from .metrics import METRICS, AbstractMetric, as_metric, positive
from .spaces import Cloud
from .svgd import scores
from .svmd import check_gram, gram_roots, untruncated

MOST_NUMBERS = 2**28
"""Of the n matrices G⁻¹ together: 2 GiB in 64 bits."""


class Memory(NamedTuple):
    """The running mean of the metric of mini-batches, (d, d) or (n, d, d); None without them. And the damping added.

    ``raised`` is the largest share of the particles, of any iteration, whose metric was not positive definite.
    """

    mean: Array | None
    count: Array
    raised: Array


class SVNG(AbstractStein):
    """Stein variational natural gradients: SVGD preconditioned by a metric, for badly conditioned posteriors.

    Parameters
    ----------
    num_particles, num_steps, kernel, bandwidth, rule, tolerance, patience, batch_size, initial, tile, backend
        As in `SVGD`; at most 4,000 particles, unless the metric is the Hessian. With ``batch_size`` the metric is a
        running mean over the batches so far, without that of the iteration, with whose score its errors correlate.
    learning_rate
        Of plain gradient steps, constant for 70 % of the iterations, then a cosine to a thousandth; or ``"pilot"``.
    optimizer
        An optax optimiser in place of plain steps, with its own rate.
    metric
        ``"hessian"``: of −log density at the mean of the particles, negative eigenvalues turned positive, one for all.
        Of a target with factors, at each particle: ``"fisher"``, Σ_i g_i g_iᵀ of the gradients g_i of the log
        likelihoods, or ``"observed"``, −Σ_i of their Hessians, which for a generalised linear model with its canonical
        link is the Fisher information and the Gauss–Newton matrix. Or a function u (d,) → G (d, d).
    damping
        Added to the diagonal of G, relative to the mean of its diagonal; raised at particles where G is not positive
        definite all the same.
    decay
        Largest weight of the past in the running mean of mini-batches: that of iteration t is min(1 − 1/t, decay).
    spectrum, jitter
        As in `SVMD`.

    References
    ----------
    Shi, Liu & Mackey (2022), Sampling with mirrored Stein operators, ICLR, arXiv:2106.12506.
    """

    learning_rate: Any = 0.5
    metric: str | Callable[[Array], Array] = eqx.field(static=True, default="hessian")
    damping: Any = 1e-3
    decay: Any = 0.95
    spectrum: Any = eqx.field(static=True, default=1.0)
    jitter: Any = 1e-6

    source: ClassVar[str] = "Shi et al. 2022"
    rates: ClassVar[tuple[float, ...]] = (1.0, 0.3, 0.1, 0.03)

    def __check_init__(self) -> None:
        if self._takes_roots:
            check_gram(self)
        check_nonnegative("damping", self.damping)
        check_fraction("decay", self.decay)
        if not callable(self.metric) and self.metric not in METRICS:
            raise InvalidArgument(
                f"metric must be one of {', '.join(map(repr, METRICS))} or a function of u, got {self.metric!r}."
            )

    @property
    def _takes_roots(self) -> bool:
        """Whether M½ and M₋½ do not cancel."""
        return self.metric != "hessian" or self.spectrum != 1

    def check_target(self, target: Target, u: Float[Array, "n d"] | None) -> None:
        """Room for the matrices; a metric that is finite, and of the right shape, at a start."""
        n, d = self.num_particles, target.dim
        if self.metric != "hessian" and n * d * d > MOST_NUMBERS:
            raise InvalidArgument(
                f"num_particles={n} matrices of {d} × {d} are more than SVNG holds ({MOST_NUMBERS:,} numbers); lower "
                f"num_particles, take metric='hessian', one for all, or use SVGD()."
            )
        if self.metric in ("fisher", "observed"):
            target.require(f"SVNG(metric={self.metric!r})", ("factors",), HINTS)
        if not callable(self.metric):
            return
        point = target.initial(jax.random.key(0)) if u is None else u[0]
        given = np.asarray(self.metric(point))
        if given.shape != (d, d):
            raise InvalidArgument(f"metric must return shape ({d}, {d}), got {given.shape}; u has shape ({d},).")
        if not np.isfinite(given).all():
            raise NonFinite(f"metric must be finite, got {given[~np.isfinite(given)][0]} at a start u = {point}.")

    def positions(self, target: Target, y: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """The particles themselves."""
        del target
        return y

    def remember(self, target: Target, y: Float[Array, "n d"]) -> Memory:
        """No metric yet."""
        n, d = self.num_particles, target.dim
        shape = (d, d) if self.metric == "hessian" else (n, d, d)
        averages = self.batch_size is not None and not callable(self.metric)
        return Memory(jnp.zeros(shape, y.dtype) if averages else None, jnp.zeros(()), jnp.zeros(()))

    def locate(
        self, target: Target, y: Float[Array, "n d"], batch: Array | None, memory: Memory | None = None
    ) -> Cloud:
        """G⁻¹s + ∇·G⁻¹ and G⁻¹; with one metric for all the score alone, for `turn` to divide by G."""
        metric = as_metric(self.metric, target, batch)
        memory = self.remember(target, y) if memory is None else memory
        score = scores(target, y, batch)
        found = metric.matrix(jnp.mean(y, axis=0)) if metric.shared else jax.vmap(metric.matrix)(y)
        matrices = found
        if memory.mean is not None and batch is not None:
            matrices = jnp.where(memory.count == 0, found, memory.mean)
            past = jnp.minimum(1 - 1 / (memory.count + 1), self.decay)
            memory = memory._replace(mean=past * memory.mean + (1 - past) * found, count=memory.count + 1)
        if metric.shared:
            return Cloud(y, score, score=score, memory=memory, turned=self._damped_shared(matrices))
        scale = jnp.mean(jnp.abs(jnp.diagonal(matrices, axis1=1, axis2=2)))
        # The damping is the same for all and taken as a constant, so that ∇·G⁻¹ needs the derivatives of G alone.
        damped = matrices + self.damping * scale * jnp.eye(y.shape[1], dtype=y.dtype)
        factors, raised = positive(damped, scale)
        inverses, drift = jax.vmap(lambda u, s, f: _drift(metric, u, s, f))(y, score, factors)
        memory = memory._replace(raised=jnp.maximum(memory.raised, jnp.mean(raised.astype(float))))
        return Cloud(y, drift, (Dense(inverses),), score=score, memory=memory)

    def step_scores(self, target: Target, y: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """∇ log density in u."""
        return scores(target, y, None)

    def turn(self, target: Target, cloud: Cloud, bandwidth: Array, phi: Array) -> Array:
        """G⁻¹ M½ G M₋½ φ⁰."""
        del target
        if cloud.metric is None:
            if self._takes_roots:
                roots, _ = gram_roots(self.kernel, cloud.x, bandwidth, self.spectrum, self.jitter)
                phi = roots.half @ (roots.inverse @ phi)
            return jnp.linalg.solve(cloud.turned, phi.T).T  # type: ignore
        (block,) = cloud.metric
        roots, _ = gram_roots(self.kernel, cloud.x, bandwidth, self.spectrum, self.jitter)
        inner = roots.inverse @ phi
        turned = roots.half @ jnp.linalg.solve(block.matrices, inner[..., None])[..., 0]  # type: ignore
        return block.apply(turned)

    def remarks(self, state: SteinState, target: Target, result: Any) -> list[dict[str, Any]]:
        """Those of all; the velocity that a truncated spectrum leaves; a metric that was not positive definite."""
        found = [*super().remarks(state, target, result), *untruncated(self, state, target)]
        raised = float(np.max(np.asarray(state.memory.raised)))
        return [*found, findings.raised(raised)] if raised > 0 else found

    def _damped_shared(self, matrix: Array) -> Array:
        """|G| and the damping."""
        values, vectors = jnp.linalg.eigh(0.5 * (matrix + matrix.T))
        found = (vectors * jnp.abs(values)) @ vectors.T
        return found + self.damping * jnp.mean(jnp.diagonal(found)) * jnp.eye(found.shape[0], dtype=found.dtype)

    def _default_optimizer(self) -> Any:
        """Plain steps of length `_rate`."""
        import optax

        return optax.sgd(1.0)


def _drift(metric: AbstractMetric, u: Array, score: Array, factor: Array) -> tuple[Array, Array]:
    """G⁻¹ and G⁻¹(s − c) of one particle, from the Cholesky factor of G."""
    directions = jnp.eye(u.shape[0], dtype=u.dtype)
    inverse = cho_solve((factor, True), directions)

    def add(c: Array, e: Array) -> tuple[Array, None]:
        _, slope = jax.jvp(lambda u: metric.product(u, inverse @ e), (u,), (e,))
        return c + slope, None

    c, _ = jax.lax.scan(add, jnp.zeros_like(u), directions)
    return inverse, cho_solve((factor, True), score - c)
