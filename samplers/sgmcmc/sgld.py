"""SGLD: stochastic-gradient Langevin dynamics, by BlackJAX's kernel.

    z⁺ = z + h ĝ(z) + √(2h) ξ,   u = c + S z

with ĝ from a mini-batch. On a normal posterior of curvature λ, with the variance B of ĝ, the stationary variance is

    (1 + hB/2) / (λ (1 − hλ/2)),

from v = (1 − hλ)² v + 2h + h²B: the discretisation and the mini-batches each add to it, in proportion to h.

References
----------
.. [1] M. Welling, Y. W. Teh (2011). Bayesian learning via stochastic gradient Langevin dynamics. ICML.
.. [2] J. Baker, P. Fearnhead, E. Fox, C. Nemeth (2019). Control variates for stochastic gradient MCMC. Statistics and
   Computing 29. arXiv:1706.05439.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from .common import AbstractStochasticGradient


class SGLD(AbstractStochasticGradient):
    """Stochastic-gradient Langevin dynamics, preconditioned and with control variates.

    Before the run a mode is sought with all data; chains begin at draws of the Laplace approximation there. Batches are
    drawn with replacement (of a stream, without, within the block that is in memory).

    Parameters
    ----------
    step_size
        h, in units of the coordinates z in which the posterior has about unit scale (in those of u without
        preconditioning). None: the largest that is predicted to change no standard deviation by more than 2.5 %.
    batch_size
        Rows of the data per step, b.
    control_variates
        Whether gradients are estimated by their difference to those at the mode. Without, the noise of mini-batches
        is about n/b times the posterior's own, and the step size falls by that.
    precondition
        ``"auto"``: steps in coordinates scaled by the inverse Hessian at the mode (its diagonal above 500
        dimensions); None: in those of u.
    decay, decay_from
        γ and τ of the schedule h (1 + t/τ)^−γ while sampling; 0: constant. Draws all count alike.
    bias_check
        Whether half the warm-up is spent on a twin at half the step size that tells the bias.

    Raises
    ------
    UnsupportedTarget
        The target has no log likelihood for each observation.
    InvalidArgument
        The step size is one at which the recursion explodes.

    References
    ----------
    Welling & Teh (2011), ICML; Baker, Fearnhead, Fox & Nemeth (2019), Statistics and Computing 29.
    """

    source: ClassVar[str] = "Welling & Teh 2011; Baker et al. 2019"

    def move(self, key: PRNGKeyArray, target: Any, u: Array, batches: Array, step: Array) -> Array:
        """One step of BlackJAX's kernel from z = 0, the origin moved to u ([1]_, eq. 4)."""
        return self._kernel(key, target, u, batches[0], step, 1.0)

    def move_twin(self, key: PRNGKeyArray, target: Any, u: Array, batches: Array, step: Array) -> Array:
        """Two steps of h/2 whose noises have the sum √(2h) ξ of the step that `move` takes with this key."""
        from blackjax.util import generate_gaussian_noise

        noise = generate_gaussian_noise(key, jnp.zeros_like(u))
        other = jax.random.normal(jax.random.fold_in(key, 1), u.shape, u.dtype)
        for batch, half in zip(batches, (noise + other, noise - other), strict=True):
            kicked = self._kernel(key, target, u, batch, step / 2, 0.0)
            u = kicked + self._centre().spread(jnp.sqrt(step) * half / jnp.sqrt(2.0))
        return u

    def _kernel(self, key: PRNGKeyArray, target: Any, u: Array, batch: Array, step: Array, temperature: float) -> Array:
        import blackjax

        centre = self._centre()
        kernel = blackjax.sgld.build_kernel()
        estimator = lambda z, batch: self.gradient(target, u + centre.spread(z), batch)  # noqa: E731
        return u + centre.spread(kernel(key, jnp.zeros_like(u), estimator, batch, step, temperature))

    def variance(self, step: Any, curvature: Any, noise: Any) -> Any:
        """(1 + hB/2) / (λ(1 − hλ/2)); negative where the recursion explodes."""
        return (1 + step * noise / 2) / (curvature * (1 - step * curvature / 2))
