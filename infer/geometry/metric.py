"""Proximal operators in another metric: argmin_z g(z) + ‖z − x‖²_{M⁻¹} / (2 s)."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..errors import InvalidArgument
from ..validate import check_count, check_positive
from .term import like


def metric_prox(term: Any, matrix: Any, x: Float[Array, " d"], step: Any, num_steps: int = 100) -> Float[Array, " d"]:
    """argmin_z g(z) + (z − x)ᵀ M⁻¹ (z − x) / (2 s), by forward–backward steps on the dual.

    With z = x − M w the dual variable is w ∈ s ∂g(z), and for any η ≤ 1/‖M‖

        w ← w + η z − η prox_{(s/η) g}(w/η + z),   z = x − M w,

    which converges linearly, by a factor 1 − η λ_min(M) a step (Combettes, Dũng, Vũ 2011, Proximity for sums of
    composite functions, J. Math. Anal. Appl. 380, with M^½ as linear operator). M itself is never inverted.

    Parameters
    ----------
    term
        The term g; its ``prox`` is called once a step.
    matrix
        M, symmetric positive definite of shape (d, d), or its diagonal of shape (d,). With a diagonal and a separable
        term the answer is ``term.prox(x, s · diagonal)``, exactly.
    x
        Where.
    step
        s > 0, a number.
    num_steps
        Number of dual steps.

    Raises
    ------
    InvalidArgument
        M has the wrong shape, or is not symmetric and positive definite.
    """
    check_positive("step", step)
    check_count("num_steps", num_steps)
    _check_metric(matrix, x.shape[0])
    m, step = like(matrix, x), like(step, x)
    if m.ndim == 1 and getattr(term, "separable", False):
        return term.prox(x, step * m)
    apply = (lambda w: m * w) if m.ndim == 1 else (lambda w: m @ w)
    eta = 1 / (jnp.max(m) if m.ndim == 1 else jnp.linalg.eigvalsh(m)[-1])

    def forward_backward(_: Any, w: Array) -> Array:
        z = x - apply(w)
        return w + eta * (z - term.prox(w / eta + z, step / eta))

    return x - apply(jax.lax.fori_loop(0, num_steps, forward_backward, jnp.zeros_like(x)))


def _check_metric(matrix: Any, dim: int) -> None:
    if np.shape(matrix) not in ((dim,), (dim, dim)):
        raise InvalidArgument(
            f"matrix has shape {np.shape(matrix)}; give ({dim}, {dim}), or ({dim},) for a diagonal one."
        )
    if isinstance(matrix, jax.core.Tracer):
        return
    known = np.asarray(matrix, dtype=float)
    if known.ndim == 2 and not np.allclose(known, known.T, rtol=1e-5, atol=1e-7 * np.abs(known).max()):
        raise InvalidArgument(f"matrix must be symmetric, got an asymmetry of {np.abs(known - known.T).max():g}.")
    least = np.linalg.eigvalsh(known)[0] if known.ndim == 2 else known.min()
    if not least > 0:
        raise InvalidArgument(f"matrix must be positive definite, got the least eigenvalue {least:g}.")
