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
from jaxtyping import Array, Float

from ...infer.errors import UnsupportedTarget
from ...infer.geometry.mirror import AbstractMirror
from ...infer.target import Target
from ...infer.target.primal import Primal, primal
from ...infer.validate import check_choice
from ..mirrors import as_mirror, check_inside, resolve_mirror
from .common import AbstractStein
from .spaces import Cloud, inverse_hessians, unconstrained, values_at

SPACES = ("primal", "dual")
HALVINGS = 30


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
        Of RMSprop; constant for 70 % of the iterations, then a cosine to a thousandth.
    optimizer
        An optax optimiser in place of RMSprop, with its own rate.
    tolerance
        The run ends once the root mean square velocity is this share of the first one; not with mini-batches.
    batch_size
        Observations per iteration, shared by all particles, of a target with factors; None for all.
    initial
        The particles to begin with: unconstrained (n, d), values by site with a leading axis n, or an approximation
        to draw them from; None for random ones.
    tile
        Particles per side of a tile of the sum over pairs; None for what suits the device.

    References
    ----------
    Liu & Wang (2016), NeurIPS; Shi, Liu & Mackey (2022), ICLR, arXiv:2106.12506.
    """

    source: ClassVar[str] = "Liu & Wang 2016"

    def locate(self, target: Target, y: Float[Array, "n d"], batch: Array | None) -> Cloud:
        """Scores in u."""
        return Cloud(y, scores(target, y, batch))


def scores(target: Target, u: Float[Array, "n d"], batch: Array | None) -> Float[Array, "n d"]:
    """∇ log density in u, log-Jacobian included; of a mini-batch, an unbiased estimate."""
    density = target.log_density
    if batch is not None:
        density = lambda u: target.log_density_minibatch(u, batch)  # type: ignore  # noqa: E731
    return jax.vmap(jax.grad(density))(u)


class AbstractMirrored(AbstractStein):
    """What the samplers with a mirror share."""

    mirror: Any = eqx.field(default=None, converter=as_mirror)

    requires: ClassVar[tuple[str, ...]] = ("support",)
    space: ClassVar[str] = "primal"

    def mirror_for(self, found: Primal) -> AbstractMirror:
        """The mirror over x; real sites are Euclidean."""
        return resolve_mirror(self.mirror, found, jnp.ones(sum(block.size for block in found.coordinates.blocks)))

    def locate(self, target: Target, y: Float[Array, "n d"], batch: Array | None) -> Cloud:
        """Dual scores b = P s + ∇·P, and P."""
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
        """A mirror with an inverse, particles inside of its domain."""
        found = primal(target)
        mirror = self.mirror_for(found)
        mirror.check(sum(block.size for block in found.coordinates.blocks))
        if not mirror.invertible:
            raise UnsupportedTarget(
                f"{type(self).__name__} steps in the dual and needs the inverse of the mirror map, which "
                f"{type(mirror).__name__} has not in closed form; use SVGD(), in unconstrained coordinates, or MAPLA()."
            )
        if u is None:
            u = target.initial(jax.random.key(0))[None]
        for point in u:
            check_inside(mirror, found, found.coordinates.to_x(point))


class MirroredSVGD(AbstractMirrored):
    """Stein variational gradient descent in the dual of a mirror map: for simplex, positive and bounded sites.

    Parameters
    ----------
    num_particles, num_steps, kernel, bandwidth, rule, learning_rate, optimizer, tolerance, batch_size, initial, tile
        As in `SVGD`; steps are taken in the dual coordinates.
    mirror
        None for the mirrors of the supports (entropies), a mirror map over all of x, or a dict of sites → mirrors.
    space
        Where the kernel acts: ``"primal"`` on the constrained coordinates x (of a simplex all but the last), or
        ``"dual"`` on y = ∇φ(x).

    Raises
    ------
    UnsupportedTarget
        The supports are not known, or a mirror has no inverse.

    References
    ----------
    Shi, Liu & Mackey (2022), Sampling with mirrored Stein operators, ICLR, arXiv:2106.12506.
    """

    space: str = eqx.field(static=True, default="primal")

    source: ClassVar[str] = "Shi et al. 2022"

    def __check_init__(self) -> None:
        check_choice("space", self.space, SPACES)
