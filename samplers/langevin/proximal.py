"""Proximal Langevin algorithms in the Euclidean geometry, none of them adjusted.

============  ==========================================================================================
scheme        one iteration, γ the step, λ the smoothing, p(x) = prox_{λg}(x), ξ ~ N(0, I)
============  ==========================================================================================
``psgla``     x⁺ = prox_{γg}(x − γ∇f(x) + √(2γ) ξ)                                                   [1]_
``pgld``      q = prox_{γg}(x), x⁺ = q − γ∇f(q) + √(2γ) ξ                                            [2]_
``pp_ula``    x⁺ = prox^{M⁻¹}_{γg}(x − γM∇f(x)) + √(2γ) M^{½} ξ                                      [3]_
``fbula``     x⁺ = x − (γ/λ)(I − λ∇²f(x))(x − p(x − λ∇f(x))) + √(2γ) ξ, by a Hessian–vector product  [4]_
============  ==========================================================================================

Each costs one gradient and one proximal operator per step (``fbula`` one Hessian–vector product more).

References
----------
.. [1] A. Salim, P. Richtárik (2020). Primal dual interpretation of the proximal stochastic gradient Langevin algorithm.
   NeurIPS.
.. [2] A. Durmus, S. Majewski, B. Miasojedow (2019). Analysis of Langevin Monte Carlo via convex optimization. JMLR 20.
.. [3] M.-C. Corbineau, D. Kouamé, E. Chouzenoux, J.-Y. Tourneret, J.-C. Pesquet (2019). Preconditioned P-ULA for joint
   deconvolution-segmentation of ultrasound images. IEEE Signal Processing Letters 26(10).
.. [4] A. Eftekhari, L. Vargas, K. C. Zygalakis (2023). The forward–backward envelope for sampling with the overdamped
   Langevin algorithm. Statistics and Computing 33.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ...infer.errors import InvalidArgument
from ...infer.geometry.metric import metric_prox
from ...infer.geometry.mirror import AbstractMirror, Point
from ...infer.target import Target
from ...infer.target.primal import Primal, primal
from ...infer.validate import check_choice, check_count, check_positive
from .checks import check_euclidean_step
from .common import Local, Noise, Proposal, finite, value_and_drift
from .curvature import curvature, hessian_product
from .slope import term_step
from .unadjusted import AbstractUnadjusted

SCHEMES = ("psgla", "pgld", "pp_ula", "fbula")


class ProximalLangevin(AbstractUnadjusted):
    """Proximal Langevin algorithms for a smooth plus a nonsmooth part: PSGLA, PGLD, PP-ULA, FBULA. All approximate.

    Parameters
    ----------
    step_size
        γ, below 2/L. Default: 1/(5 L), L the largest curvature of f (of f in the metric M) at the start, found by power
        iteration (for ``"fbula"`` L + 1/λ in its place), and at most 0.1/α² for a term of slope α, of which M takes a
        share.
    scheme
        ``"psgla"`` (draws lie on the kinks, the least bias in moments), ``"pgld"``, ``"pp_ula"`` or ``"fbula"``.
    smoothing
        λ, of ``"fbula"``, which needs it; below 1/L.
    metric
        M, symmetric positive definite, of ``"pp_ula"``; shape (d, d). Default: the identity.
    num_prox
        Inner iterations of the proximal operator in the metric M.
    bias_check
        As in `BregmanProximalLangevin`.

    Raises
    ------
    UnsupportedTarget
        The target has no nonsmooth part, or a site is not real.
    InvalidArgument
        λ ≥ 1/L, or M is not positive definite.

    References
    ----------
    Salim & Richtárik (2020), NeurIPS (psgla); Durmus, Majewski & Miasojedow (2019), JMLR (pgld); Corbineau et al.
    (2019) (pp_ula); Eftekhari, Vargas & Zygalakis (2023) (fbula).
    """

    scheme: str = eqx.field(static=True, default="psgla")
    smoothing: Any = None
    metric: Any = None
    num_prox: int = eqx.field(static=True, default=100)

    source: ClassVar[str] = "Salim & Richtárik 2020 and others"
    warning: ClassVar[str] = (
        "ProximalLangevin is approximate: there is no Metropolis test, and its draws have a bias of the order of the "
        "step size. BregmanProximalLangevin() is exact."
    )

    def __check_init__(self) -> None:
        check_choice("scheme", self.scheme, SCHEMES)
        check_count("num_prox", self.num_prox)
        if self.scheme != "pp_ula" and self.metric is not None:
            raise InvalidArgument(f"metric is a setting of scheme='pp_ula', and scheme is {self.scheme!r}.")
        if self.scheme == "fbula":
            if self.smoothing is None:
                raise InvalidArgument(f"scheme='fbula' needs smoothing, below 1/L; got {self.smoothing!r}.")
            check_positive("smoothing", self.smoothing)
        elif self.smoothing is not None:
            raise InvalidArgument(
                f"smoothing={self.smoothing!r} is a setting of scheme='fbula', and scheme is {self.scheme!r}, whose "
                f"proximal operator has the step size as its parameter."
            )
        if self.metric is not None:
            matrix = np.asarray(self.metric, float)
            good = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] and np.allclose(matrix, matrix.T)
            if not good or np.linalg.eigvalsh(matrix).min() <= 0:
                raise InvalidArgument(f"metric must be symmetric and positive definite, got {matrix.tolist()}.")

    def prepare(self, key: PRNGKeyArray, target: Target, start: Any) -> "ProximalLangevin":
        """Check λ against the curvature of f at a random point."""
        super().prepare(key, target, start)
        if self.metric is not None and np.shape(self.metric) != (target.dim, target.dim):
            raise InvalidArgument(
                f"metric has shape {np.shape(self.metric)}; on a target of dimension {target.dim} it must be "
                f"({target.dim}, {target.dim})."
            )
        if self.scheme == "fbula":
            found = primal(target)
            largest = float(curvature(found, found.coordinates.to_x(target.initial(key)), None))
            if self.smoothing * largest >= 1:
                raise InvalidArgument(
                    f"smoothing={self.smoothing:g} must be below 1/L = {1 / largest:.3g}, L the curvature of the "
                    f"smooth part: beyond it the forward–backward envelope has other minima."
                )
        return self

    def check_step(self, target: Primal, x: Any) -> None:
        """A step of the user's must be below 2/L, of ``"fbula"`` below 2/(L + 1/λ)."""
        super().check_step(target, x)
        metric = None if self.metric is None else np.asarray(self.metric, float)
        check_euclidean_step(self, target, x, 1 / self.smoothing if self.scheme == "fbula" else 0.0, metric)

    def locate(self, target: Primal, mirror: AbstractMirror, point: Point) -> Local:
        """Log π, and ∇f."""
        smooth, drift = value_and_drift(target.smooth_log_density, point.x)
        term = target.nonsmooth.value(point.x)
        return Local(point, smooth - term, drift, term)

    def propose(self, target: Primal, mirror: AbstractMirror, noise: Noise, local: Local, step: Array) -> Proposal:
        """One iteration of the scheme."""
        update = {"psgla": self._psgla, "pgld": self._pgld, "pp_ula": self._pp_ula, "fbula": self._fbula}[self.scheme]
        new = self.locate(
            target, mirror, mirror.at(update(target, local, jnp.sqrt(2 * step) * noise(local.point), step))
        )
        return Proposal(new, jnp.asarray(jnp.nan), finite(new))

    def noise(self, key: PRNGKeyArray, mirror: AbstractMirror, point: Point) -> Array:
        """A draw of N(0, I), or N(0, M)."""
        xi = mirror.noise(key, point)
        return xi if self.metric is None else jnp.linalg.cholesky(jnp.asarray(self.metric, xi.dtype)) @ xi

    def _psgla(self, target: Primal, local: Local, noise: Array, step: Array) -> Array:
        return target.nonsmooth.prox(local.point.x - step * local.drift + noise, step)

    def _pgld(self, target: Primal, local: Local, noise: Array, step: Array) -> Array:
        q = target.nonsmooth.prox(local.point.x, step)
        return q - step * value_and_drift(target.smooth_log_density, q)[1] + noise

    def _pp_ula(self, target: Primal, local: Local, noise: Array, step: Array) -> Array:
        if self.metric is None:
            return target.nonsmooth.prox(local.point.x - step * local.drift, step) + noise
        matrix = jnp.asarray(self.metric, local.drift.dtype)
        forward = local.point.x - step * matrix @ local.drift
        return metric_prox(target.nonsmooth, matrix, forward, step, self.num_prox) + noise

    def _fbula(self, target: Primal, local: Local, noise: Array, step: Array) -> Array:
        x, smoothing = local.point.x, self.smoothing
        away = x - target.nonsmooth.prox(x - smoothing * local.drift, smoothing)
        curved = hessian_product(target, x, away)
        return x - step / smoothing * (away - smoothing * curved) + noise

    def first_step(self, target: Primal, mirror: AbstractMirror, local: Local) -> Any:
        """1/(5 L)."""
        metric = None if self.metric is None else jnp.asarray(self.metric)
        largest = curvature(target, local.point.x, metric)
        if self.scheme == "fbula":
            largest = largest + 1 / self.smoothing
        return jnp.minimum(0.2 / largest, term_step(target.nonsmooth, metric))
