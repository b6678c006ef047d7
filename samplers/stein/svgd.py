"""Stein variational gradient descent, in unconstrained coordinates and in the dual ones of a mirror map.

    φ(x_i) = (1/n) Σ_j [ k(x_j, x_i) b_j + P_j ∇₁k(x_j, x_i) ],   y_i ← y_i + step(φ(x_i)),   x_i = ∇φ*(y_i)

SVGD has y = x = u, P = I and b the score of the target with its log-Jacobian, so that constrained sites are right
(Liu & Wang 2016). MirroredSVGD has P = ∇²φ(x)⁻¹ and b = P s + ∇·P (Shi, Liu & Mackey 2022, equation 11; their ψ is our
mirror φ, their η our y); with ``space="dual"`` the kernel acts on y and P = I, which is SVGD through a bijector.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.approximation import as_approximation
from ...infer.geometry.mirror import AbstractMirror
from ...infer.geometry.newton import by_newton, largest_residual, with_inverse
from ...infer.target import Target
from ...infer.target.primal import Primal, primal
from ...infer.validate import check_choice
from ..mirrors import as_mirror, check_inside, resolve_mirror
from . import findings
from .common import AbstractStein, SteinState
from .spaces import Cloud, inverse_hessians, unconstrained, values_at

SPACES = ("primal", "dual")
HALVINGS = 30
NEARER = 0.25


class SVGD(AbstractStein):
    """Stein variational gradient descent: a cloud of particles that repel each other on their way up the density.

    A deterministic flow of few particles, each step of which takes one score per particle, also of a mini-batch.
    Unlike in NumPyro's and BlackJAX's, constrained sites have their Jacobian, and the bandwidth has no factor 1/log n.

    Parameters
    ----------
    num_particles
        Size of the cloud, n; a multiple of the dimension, or variances come out too small.
    num_steps
        Most iterations.
    kernel
        ``"imq"``, (1 + r²/h)^(−1/2), whose particles stay apart; or ``"rbf"``, exp(−r²/h).
    bandwidth
        h, a squared length; None for the ``rule``.
    rule
        How h follows from the cloud, every tenth iteration: ``"median"`` of squared distances (of 1,000 particles, if
        there are more), ``"exact_median"`` of all, in 60 passes, or their ``"mean"``, in closed form.
    learning_rate
        Of RMSprop; constant for 70 % of the iterations, then a cosine to a thousandth. ``"pilot"`` chooses the one, of
        four, that leads to the least KSD in 150 iterations.
    optimizer
        An optax optimiser in place of RMSprop, with its own rate.
    tolerance
        The run ends once the root mean square velocity is this share of the first one and the cloud is not too wide, by
        Stein's identity; not with mini-batches.
    patience
        The run ends once the KSD of the cloud to the target (all data), looked at every 50 iterations, has not fallen
        by 2 % for so many looks; None: nobody looks.
    batch_size
        Observations per iteration, shared by all particles, of a target with factors; None for all.
    initial
        The particles to begin with: unconstrained (n, d), values by site with a leading axis n, or an approximation
        to draw them from; None for random ones.
    tile
        Particles per side of a tile of the sum over pairs; None for what suits the device.
    backend
        Of that sum: ``"xla"``, ``"pallas"`` (a fused kernel for accelerators) or ``"auto"``, see
        `infer.kernels.velocity`.
    precondition
        A posterior (or `Approximation`) of a Gaussian method or a flow: particles begin as its draws and move in the
        coordinates z in which it is N(0, I), where scales and correlations are like; for badly conditioned targets.

    References
    ----------
    Liu & Wang (2016), NeurIPS; Shi, Liu & Mackey (2022), ICLR, arXiv:2106.12506.
    """

    precondition: Any = eqx.field(default=None, converter=lambda given: as_approximation("precondition", given))

    source: ClassVar[str] = "Liu & Wang 2016"

    def positions(self, target: Target, y: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """The particles themselves."""
        del target
        return y

    def locate(self, target: Target, y: Float[Array, "n d"], batch: Array | None, memory: Any = None) -> Cloud:
        """Scores in u, or in z."""
        del memory
        return Cloud(y, scores(target, y, batch, self.precondition))

    def default_start(self) -> Any:
        """Draws of the approximation that preconditions, if there is one."""
        return self.precondition

    def random_cloud(self, key: PRNGKeyArray, target: Target, start: Float[Array, " d"]) -> Float[Array, "n d"]:
        """Random starts, or draws of the approximation."""
        if self.precondition is None:
            return super().random_cloud(key, target, start)
        return self.precondition.sample_and_log_prob(key, self.num_particles)[0]

    def to_steps(self, target: Target, u: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """The points u, or their z."""
        del target
        return u if self.precondition is None else jax.vmap(self.precondition.pull)(u)

    def to_unconstrained(self, target: Target, y: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """The inverse."""
        del target
        return y if self.precondition is None else jax.vmap(lambda z: self.precondition.transport(z)[0])(y)


def scores(
    target: Target, u: Float[Array, "n d"], batch: Array | None, precondition: Any = None
) -> Float[Array, "n d"]:
    """∇ log density in u, log-Jacobian included, or in z; of a mini-batch, an unbiased estimate."""

    def density(y: Array) -> Array:
        u, log_det = (y, 0.0) if precondition is None else precondition.transport(y)
        value = target.log_density(u) if batch is None else target.log_density_minibatch(u, batch)  # type: ignore
        return value + log_det

    return jax.vmap(jax.grad(density))(u)


class AbstractMirrored(AbstractStein):
    """What the samplers with a mirror share."""

    mirror: Any = eqx.field(default=None, converter=as_mirror)

    requires: ClassVar[tuple[str, ...]] = ("support",)
    space: ClassVar[str] = "primal"

    def mirror_for(self, found: Primal) -> AbstractMirror:
        """The mirror over x; real sites are Euclidean, and the inverse of a polytope's is Newton's method."""
        size = sum(block.size for block in found.coordinates.blocks)
        mirror = resolve_mirror(self.mirror, found, jnp.ones(size))
        return (
            mirror if mirror.invertible else with_inverse(mirror, found.coordinates.to_x(jnp.zeros(found.target.dim)))
        )

    def random_cloud(self, key: PRNGKeyArray, target: Target, start: Float[Array, " d"]) -> Float[Array, "n d"]:
        """Random starts; in a polytope nearer to its centre (u = 0): duals at a face are too large for steps to end."""
        u = super().random_cloud(key, target, start)
        return NEARER * u if by_newton(self.mirror_for(primal(target))) else u

    def remarks(self, state: SteinState, target: Target, result: Any) -> list[dict[str, Any]]:
        """Those of all, and the residual of an inverse by Newton's method."""
        found, at = super().remarks(state, target, result), primal(target)
        simplices = [block.name for block in at.coordinates.blocks if block.kind == "simplex"]
        if simplices and np.asarray(state.y).dtype == np.float32:
            found.append(findings.few_bits(simplices[0]))
        mirror = self.mirror_for(at)
        y = jnp.asarray(state.y).reshape(-1, np.shape(state.y)[-1])
        if not by_newton(mirror):
            return found
        return [*found, findings.inverse(float(largest_residual(mirror, jax.vmap(mirror.from_dual)(y))))]

    def positions(self, target: Target, y: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """The particles in the coordinates x, or y."""
        mirror = self.mirror_for(primal(target))
        return y if self.space == "dual" else jax.vmap(lambda y: mirror.from_dual(y).x)(y)

    def locate(self, target: Target, y: Float[Array, "n d"], batch: Array | None, memory: Any = None) -> Cloud:
        """Dual scores b = P s + ∇·P, and P."""
        del memory
        found = primal(target)
        mirror = self.mirror_for(found)

        def log_density(y: Array) -> Array:
            values = values_at(found, mirror, mirror.from_dual(y))
            if batch is None:
                return target.log_density_at(values)
            return target.log_density_at_minibatch(values, batch)  # type: ignore

        points = jax.vmap(mirror.from_dual)(y)
        drift = jax.vmap(jax.grad(log_density))(y) + jax.vmap(mirror.div_inv_hess)(points)
        if self.space == "dual":
            return Cloud(y, drift, None, points)
        return Cloud(points.x, drift, inverse_hessians(mirror, points), points)

    def to_steps(self, target: Target, u: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """∇φ(x(u))."""
        found = primal(target)
        mirror = self.mirror_for(found)
        return jax.vmap(lambda u: mirror.at(found.coordinates.to_x(u)).y)(u)

    def to_unconstrained(self, target: Target, y: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """u(∇φ*(y))."""
        found = primal(target)
        return unconstrained(found, self.mirror_for(found), y)

    def moved(self, target: Target, y: Array, step: Array) -> Array:
        """The sum, each particle's step halved until it stays in the dual domain, where that is not all of R^d."""
        mirror = self.mirror_for(primal(target))
        if mirror.full_dual:
            return y + step
        inside = jax.vmap(lambda y: mirror.contains(mirror.from_dual(y).x))

        def halve(_: int, share: Array) -> Array:
            return jnp.where(inside(y + share[:, None] * step), share, 0.5 * share)

        share = jax.lax.fori_loop(0, HALVINGS, halve, jnp.ones(y.shape[0], y.dtype))
        return y + share[:, None] * step

    def check_target(self, target: Target, u: Float[Array, "n d"] | None) -> None:
        """Particles inside of the mirror's domain."""
        found = primal(target)
        mirror = self.mirror_for(found)
        mirror.check(sum(block.size for block in found.coordinates.blocks))
        if u is None:
            u = target.initial(jax.random.key(0))[None]
        for point in u:
            check_inside(mirror, found, found.coordinates.to_x(point))


class MirroredSVGD(AbstractMirrored):
    """Stein variational gradient descent in the dual of a mirror map: for simplex, positive and bounded sites.

    Parameters
    ----------
    num_particles, num_steps, kernel, bandwidth, rule, learning_rate, optimizer, tolerance, patience, batch_size,
    initial, tile, backend
        As in `SVGD`; steps are taken in the dual coordinates.
    mirror
        None for the mirrors of the supports (entropies; of a polytope its barrier, inverted by Newton's method), a
        mirror map over all of x, or a dict of sites → mirrors.
    space
        Where the kernel acts: ``"primal"`` on the constrained coordinates x (of a simplex all but the last), or
        ``"dual"`` on y = ∇φ(x).

    Raises
    ------
    UnsupportedTarget
        The supports are not known.

    References
    ----------
    Shi, Liu & Mackey (2022), Sampling with mirrored Stein operators, ICLR, arXiv:2106.12506.
    """

    space: str = eqx.field(static=True, default="primal")

    source: ClassVar[str] = "Shi et al. 2022"

    def __check_init__(self) -> None:
        check_choice("space", self.space, SPACES)
