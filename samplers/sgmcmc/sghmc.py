"""SGHMC: stochastic-gradient Hamiltonian Monte Carlo, by BlackJAX's integrator.

Each iteration draws a momentum p ~ N(0, I) and takes L steps, each with a mini-batch of its own,

    p ← p + (h/2) ĝ(z);   then L times  z ← z + h p,   p ← (1 − αh) p + h ĝ(z) + √(2αh) ξ        ([1]_, algorithm 2)

The gradient is that of the new z, as in the paper. BlackJAX's own kernel takes it at the old one and has no half kick
at the beginning; on a normal posterior its variance is then too large by the share 1/(L − 1) however small h is. The
integrator (`blackjax.sgmcmc.diffusions.sghmc`) is the same.

The last kick, whose momentum is thrown away, is not computed: an iteration costs L mini-batches.

References
----------
.. [1] T. Chen, E. Fox, C. Guestrin (2014). Stochastic gradient Hamiltonian Monte Carlo. ICML. arXiv:1402.4102.
.. [2] J. Baker, P. Fearnhead, E. Fox, C. Nemeth (2019). Control variates for stochastic gradient MCMC. Statistics and
   Computing 29. arXiv:1706.05439.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ...infer.validate import check_count, check_nonnegative
from .common import AbstractStochasticGradient

TRAJECTORY = 1.5
"""Longest trajectory L h of the automatic step size, in units of the posterior's scale: a quarter turn is 1.57."""


class SGHMC(AbstractStochasticGradient):
    """Stochastic-gradient Hamiltonian Monte Carlo, preconditioned and with control variates.

    Parameters
    ----------
    step_size, batch_size, control_variates, precondition, decay, decay_from, bias_check
        As in `SGLD`; of a step of the integrator.
    num_integration_steps
        L, steps and mini-batches per iteration.
    friction
        α ≥ 0. Momenta are drawn anew at each iteration, so that it may be 0.

    Raises
    ------
    UnsupportedTarget
        The target has no log likelihood for each observation.
    InvalidArgument
        The step size is one at which the recursion explodes.

    References
    ----------
    Chen, Fox & Guestrin (2014), ICML; Baker, Fearnhead, Fox & Nemeth (2019), Statistics and Computing 29.
    """

    num_integration_steps: int = eqx.field(static=True, default=10)
    friction: Any = 0.1

    source: ClassVar[str] = "Chen et al. 2014; Baker et al. 2019"

    def __check_init__(self) -> None:
        check_count("num_integration_steps", self.num_integration_steps)
        check_nonnegative("friction", self.friction)

    @property
    def batches_per_step(self) -> int:
        """L."""
        return self.num_integration_steps

    def move(self, key: PRNGKeyArray, target: Any, u: Array, batches: Array, step: Array) -> Array:
        """One trajectory."""
        return self._trajectory(key, target, u, batches, step)

    def move_twin(self, key: PRNGKeyArray, target: Any, u: Array, batches: Array, step: Array) -> Array:
        """A trajectory of the same length and first momentum, in twice as many steps."""
        return self._trajectory(key, target, u, batches, step / 2)

    def _trajectory(self, key: PRNGKeyArray, target: Any, u: Array, batches: Array, step: Array) -> Array:
        from blackjax.sgmcmc.diffusions import sghmc
        from blackjax.util import generate_gaussian_noise

        centre = self._centre()
        integrate = sghmc(self.friction)
        key_momentum, key_noise = jax.random.split(key)
        origin = jnp.zeros_like(u)
        momentum = generate_gaussian_noise(key_momentum, origin)
        momentum = momentum + 0.5 * step * self.gradient(target, u, batches[0])

        def advance(carry: tuple[Array, Array], inputs: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            (z, p), (k, batch) = carry, inputs
            kick = self.gradient(target, u + centre.spread(z + step * p), batch)
            return integrate(k, z, p, kick, step), None

        keys = jax.random.split(key_noise, len(batches))[1:]
        (z, momentum), _ = jax.lax.scan(advance, (origin, momentum), (keys, batches[1:]))
        return u + centre.spread(z + step * momentum)

    def variance(self, step: Any, curvature: Any, noise: Any) -> Any:
        """The fixed point S = (b² + N) / (1 − a²) of the recursion z_L = a z₀ + b p₀ + noise of variance N."""
        step, curvature, noise = (np.asarray(x, float) for x in (step, curvature, noise))
        # Coefficients of z₀ and p₀ in z and p, and the covariance of what noise has added.
        za, zb, pa, pb = np.ones_like(step), np.zeros_like(step), -0.5 * step * curvature, np.ones_like(step)
        vzz, vzp, vpp = np.zeros_like(step), np.zeros_like(step), 0.25 * step**2 * noise
        keep = 1 - self.friction * step
        for i in range(self.num_integration_steps):
            za, zb = za + step * pa, zb + step * pb
            vzz, vzp = vzz + 2 * step * vzp + step**2 * vpp, vzp + step * vpp
            if i + 1 == self.num_integration_steps:
                break
            kick = step * curvature
            pa, pb = keep * pa - kick * za, keep * pb - kick * zb
            fresh = 2 * self.friction * step + step**2 * noise
            vpp = keep**2 * vpp - 2 * keep * kick * vzp + kick**2 * vzz + fresh
            vzp = keep * vzp - kick * vzz
        found = (zb**2 + vzz) / (1 - za**2)
        return np.where(np.abs(za) < 1, found, np.inf)

    def largest_step(self, curvature: float) -> float:
        """A trajectory of 1.5 on the scale of the most curved direction."""
        return TRAJECTORY / (self.num_integration_steps * np.sqrt(curvature))
