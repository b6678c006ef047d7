"""State and record of a Gaussian run, the Gaussian that a state is, and why a run was frozen."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ...errors import NonFinite
from ...linalg import AbstractFactor, Triangular
from ...target import Target
from ..whitening import Frame
from .approximation import GaussianApproximation

FINITE, NOT_FINITE, DIVERGED, LOST = 0, 1, 2, 3
FINAL_DRAWS = 1024
MEMORY = 0.1
"""Weight of the newest estimate in the running curvature and ELBO."""
OUTLYING = 10.0
"""Times the running curvature that one estimate counts for at most."""


class GaussianState(eqx.Module):
    """State of a run.

    Parameters
    ----------
    mean, factor
        The Gaussian, in the coordinates of ``frame`` (None: those of u).
    direction, curvature
        Of largest curvature of E ∇²V: power iteration's vector and running estimate.
    size
        Step size, before it decays.
    elbo
        Running mean of the ELBO's estimates.
    failure, failed_at, failed_draw
        0, or why the run was frozen; the iteration and the draw at which a gradient was not finite.
    above, worst, hot
        Steps with step × curvature above 1; its largest value; steps in a row with it above 2.
    num_steps, skipped
        Steps taken, and draws left out since they were not finite.
    trend
        Running ELBO over a short and over a long memory, and running variance of its estimates.
    late
        Steps since the step size began to decay.
    halfway
        Norm of the mean and trace of the covariance in the middle of the run, to see whether they still grow.
    extra
        What a method adds (an optimiser's state).
    anchor
        Of the control variates of mini-batches; None without.
    """

    mean: Float[Array, " d"]
    factor: AbstractFactor
    frame: Frame | None
    direction: Float[Array, " d"]
    curvature: Float[Array, ""]
    size: Float[Array, ""]
    elbo: Float[Array, ""]
    failure: Int[Array, ""]
    failed_at: Int[Array, ""]
    failed_draw: Float[Array, " d"]
    above: Int[Array, ""]
    worst: Float[Array, ""]
    hot: Int[Array, ""]
    num_steps: Int[Array, ""]
    skipped: Int[Array, ""]
    trend: Float[Array, "3"]
    late: Int[Array, ""]
    halfway: Float[Array, "2"]
    extra: Any
    anchor: Any = None


class GaussianInfo(NamedTuple):
    """What is known of a step; see `AbstractGaussianVI`."""

    elbo: Array
    elbo_se: Array
    gradient_norm: Array
    variance_mean: Array
    variance_scale: Array
    step_size: Array
    curvature: Array
    step_times_curvature: Array
    skipped: Array
    num_hvps: Array
    num_evaluations: Array


def in_u(state: GaussianState, y: Float[Array, " d"]) -> Float[Array, " d"]:
    """A point of the run's coordinates in u."""
    return y if state.frame is None else state.frame.to_u(y)


def tracked(state: GaussianState, image: Float[Array, " d"]) -> tuple[Float[Array, ""], Float[Array, " d"]]:
    """Running curvature and direction from S × direction: one step of power iteration.

    The direction does not depend on the draws of this step, so that its Rayleigh quotient is unbiased, noise or not, up
    to `OUTLYING` times what it was: of a draw far out, a thousand times more curved, the steps would shrink for long.
    """
    quotient = jnp.minimum(jnp.abs(jnp.vdot(state.direction, image)), OUTLYING * state.curvature)
    curvature = state.curvature + MEMORY * (quotient - state.curvature)
    norm = jnp.linalg.norm(image)
    return curvature, jnp.where(norm > 0, image / jnp.where(norm > 0, norm, 1.0), state.direction)


def to_u(state: GaussianState) -> GaussianApproximation:
    """The Gaussian of one state in the coordinates u."""
    if state.frame is None:
        return GaussianApproximation(state.mean, state.factor)
    # With (L C)ᵀ = Q R, Σ = Rᵀ R; no product of the factor with itself.
    r = jnp.linalg.qr((state.frame.scale @ state.factor.dense()).T, mode="r")
    tril = r.T * jnp.sign(jnp.diagonal(r))
    return GaussianApproximation(state.frame.to_u(state.mean), Triangular(tril))


@jax.jit
def _final_elbos(state: GaussianState, target: Target) -> tuple[Array, Array]:
    def one(state: GaussianState) -> tuple[Array, Array]:
        q = to_u(state)
        z = jax.random.normal(jax.random.key(0), (FINAL_DRAWS, q.loc.shape[0]), q.loc.dtype)

        def weight(z: Array) -> Array:
            u = q.loc + q.factor.apply(z)
            return target.log_density(u) + 0.5 * jnp.sum(z**2)

        each = jax.vmap(weight)(z) + q.factor.log_det() + 0.5 * z.shape[1] * jnp.log(2 * jnp.pi)
        return each.mean(), each.std() / jnp.sqrt(FINAL_DRAWS)

    return jax.lax.map(one, state)


def final_elbos(state: GaussianState, target: Target) -> tuple[np.ndarray, np.ndarray]:
    """ELBO of each restart, by common draws, and standard errors."""
    state = jax.tree.map(jnp.asarray, state)
    elbo, error = _final_elbos(state, target)
    return np.nan_to_num(np.asarray(elbo), nan=-np.inf), np.asarray(error)


def explain(name: str, state: GaussianState, target: Target) -> None:
    """Raise what froze a run of the method ``name``."""
    t = int(state.failed_at)
    if int(state.failure) == DIVERGED:
        raise NonFinite(
            f"{name} diverges: step_size × curvature was {float(state.worst):.3g} at iteration {t} and stayed "
            f"above 2; use a step_size of at most {0.5 / float(state.curvature):.3g}, or None to choose it."
        )
    if int(state.failure) == LOST:
        raise NonFinite(
            f"{name}: mean or covariance left the finite numbers at iteration {t}, with step_size "
            f"{float(state.size):.3g} and curvature {float(state.curvature):.3g}; use a smaller step_size."
        )
    u = jnp.asarray(state.failed_draw)
    value, gradient = jax.value_and_grad(target.log_density)(u)
    shown = np.array2string(np.asarray(u), precision=4, threshold=6)
    raise NonFinite(
        f"{name}: the log density ({float(value):.6g}) or its derivatives (largest gradient entry "
        f"{float(jnp.max(jnp.abs(gradient))):.3g}) are not finite at the draw {shown} of iteration {t}; give the "
        f"support of constrained parameters to the target, or leave such draws out with skip_nonfinite=True."
    )
