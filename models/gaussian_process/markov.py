"""Kernels of one input as the covariance of a stationary Markov chain: what makes a process linear in n.

g(t) = hᵀ s(t), with s a state of D numbers whose law is N(0, P) at every time and s(t + Δ) = A(Δ) s(t) + N(0, P − A P
Aᵀ) ([1]_). Matérn kernels of half-integer smoothness have such states, of the process and its derivatives; times are in
units of the length scale here, and derivatives too, so that entries of A and P are of order one at any scale. A sum of
kernels puts the states one below the other, a product is the Kronecker product of A, P and h.

References
----------
.. [1] J. Hartikainen, S. Särkkä (2010). Kalman filtering and smoothing solutions to temporal Gaussian process
   regression models. IEEE MLSP.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

TURN = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [-1.0, -3.0, -2.0]])
"""N of Matérn-5/2: A(s) = e⁻ˢ (I + s N + s² N² / 2), N³ = 0."""
LAW = np.array([[1.0, 0.0, -1 / 3], [0.0, 1 / 3, 0.0], [-1 / 3, 0.0, 1.0]])


class Markov(NamedTuple):
    """A chain at n times: the stationary law P, the transition A to each time from the one before, and h.

    The first transition comes from nowhere: what stands there is not used.
    """

    law: Float[Array, "D D"]
    step: Float[Array, "n D D"]
    read: Float[Array, "n D"]

    def __add__(self, other: "Markov") -> "Markov":
        """Of the sum of independent processes."""
        return Markov(
            jax.scipy.linalg.block_diag(self.law, other.law),
            jax.vmap(jax.scipy.linalg.block_diag)(self.step, other.step),
            jnp.concatenate([self.read, other.read], 1),
        )

    def __mul__(self, other: "Markov") -> "Markov":
        """Of the process whose covariance is the product."""
        return Markov(
            jnp.kron(self.law, other.law), jax.vmap(jnp.kron)(self.step, other.step),
            jax.vmap(jnp.kron)(self.read, other.read),
        )  # fmt: skip


def matern(order: int, lengthscale: Any, variance: Any, t: Float[Array, " n"]) -> Markov:
    """Matérn of smoothness ``order`` − ½, for an order of 1, 2 or 3, at ascending times.

    Parameters
    ----------
    order
        D, the number of states.
    lengthscale, variance
        Numbers.
    """
    s = jnp.diff(t, prepend=t[:1])[:, None, None] * np.sqrt(2 * order - 1) / lengthscale
    eye = jnp.eye(order, dtype=t.dtype)
    if order == 1:
        step, law = eye, eye
    elif order == 2:
        step, law = eye + s * jnp.asarray([[1.0, 1.0], [-1.0, -1.0]]), eye
    else:
        step, law = eye + s * TURN + 0.5 * s**2 * (TURN @ TURN), jnp.asarray(LAW, t.dtype)
    return Markov(variance * law, jnp.exp(-s) * step, jnp.broadcast_to(eye[0], (len(t), order)))
