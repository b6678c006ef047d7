"""Convex supports as NumPyro constraints, with bijections from R^d; and the mirror that suits a support.

About a point c inside of a convex set let ρ(v) = inf {r ≥ 0 : c + v/r is in the set} be its gauge. The radial map

    x = c + v tanh(ρ)/ρ,   log |det dx/dv| = (d − 1) log(tanh(ρ)/ρ) − 2 log cosh ρ,

takes R^d onto the interior (the identity along directions in which the set has no end): on the interval (−1, 1) it is
the logistic map of NumPyro's ``interval``, and like there a density that is bounded gets tails e^(−2ρ).

NumPyro is imported, and the bijections are registered in ``biject_to``, when the first support is made.
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..errors import InvalidArgument, UnsupportedTarget
from ..validate import check_positive
from .ellipsoid_barrier import EllipsoidBarrier, cholesky
from .mirror import AbstractMirror, parameter
from .polytope_barrier import PolytopeBarrier, check_halfspaces
from .product import Affine
from .radial import from_interior, log_det_radial, to_interior
from .separable import BoltzmannShannon, BoxBarrier, Euclidean, FermiDirac, HalfLineBarrier
from .simplex import AbstractSimplex, SimplexBarrier, SimplexEntropy


def polytope(A: Any, b: Any, center: Any = None) -> Any:
    """The support {x ∈ R^d : A x < b}, a NumPyro constraint.

    Parameters
    ----------
    A
        Of shape (m, d), one row per inequality.
    b
        Of shape (m,).
    center
        A point inside, of shape (d,), from which the bijection starts; None for the Chebyshev centre, that of the
        largest ball inside.

    Returns
    -------
    numpyro.distributions.constraints.Constraint
        To be given as ``support`` to `Target.from_log_density`, or to a distribution.

    Raises
    ------
    InvalidArgument
        The shapes do not fit, the polytope is empty or flat, or ``center`` lies outside.
    """
    A, b = (np.asarray(parameter(value), dtype=float) for value in (A, b))
    check_halfspaces(A, b)
    if center is None:
        center = _chebyshev_center(A, b)
    center = np.asarray(parameter(center), dtype=float)
    if center.shape != A.shape[1:] or not np.all(A @ center < b):
        raise InvalidArgument(f"center must be a point of shape {A.shape[1:]} with A x < b, got {center}.")
    return _constraints()["polytope"](A, b, center)


def ellipsoid(matrix: Any) -> Any:
    """The support {x ∈ R^d : xᵀAx < 1}, a NumPyro constraint.

    Parameters
    ----------
    matrix
        A, positive definite: a number, an array of shape (d,) (its diagonal), or (d, d).

    Raises
    ------
    InvalidArgument
        The matrix is not symmetric and positive definite.
    """
    matrix = parameter(matrix)
    return _constraints()["ellipsoid"](matrix, cholesky("matrix", matrix))


def ball(radius: float = 1.0) -> Any:
    """The support {x ∈ R^d : ‖x‖ < radius}, a NumPyro constraint, for any d.

    Raises
    ------
    InvalidArgument
        The radius is not a finite number > 0.
    """
    check_positive("radius", radius)
    return ellipsoid(1.0 / float(radius) ** 2)


def default_mirror(support: Any, size: int, *, barrier: bool = False) -> AbstractMirror:
    """The mirror that suits a support.

    ========================================  ============================================  ==========================
    support                                   mirror                                        barrier
    ========================================  ============================================  ==========================
    real                                      `Euclidean`                                   the same
    positive, greater_than, less_than, …      `BoltzmannShannon`, its affine image          `HalfLineBarrier`, …
    unit_interval, interval, open_interval    `FermiDirac`, its affine image                an image of `BoxBarrier`
    simplex                                   `SimplexEntropy` of all probabilities but     `SimplexBarrier`
                                              the last one
    `ball`, `ellipsoid`                       `EllipsoidBarrier`                            the same
    `polytope`                                `PolytopeBarrier`                             the same
    ========================================  ============================================  ==========================

    Entropies mix faster under a Metropolis test. Without one a step from near an edge may lead far out in the dual, as
    the drift α/x of a density x^α is not small in the metric 1/x; it is in the metric 1/x² of a barrier.

    Parameters
    ----------
    support
        A NumPyro constraint.
    size
        Number of constrained coordinates that the mirror acts on: all values of an array whose support is entry by
        entry; of one vector for a simplex (where the last value is left out: size − 1), an ellipsoid or a polytope.
    barrier
        Whether to take the mirror of the last column.

    Raises
    ------
    UnsupportedTarget
        There is no mirror for the support.
    InvalidArgument
        Its bounds or its matrix do not fit ``size``.
    """
    from numpyro.distributions import constraints

    while isinstance(support, constraints.independent):
        support = support.base_constraint
    mirror = _mirror_of(support, type(support).__name__.strip("_").lower(), size, barrier)
    mirror.check(size - 1 if isinstance(mirror, AbstractSimplex) else size)
    return mirror


def _mirror_of(support: Any, name: str, size: int, barrier: bool) -> AbstractMirror:
    def bound(which: str) -> Any:
        value = np.asarray(getattr(support, which), dtype=float)
        return float(value) if value.ndim == 0 else np.broadcast_to(value.reshape(-1), (size,)).copy()

    half_line = HalfLineBarrier() if barrier else BoltzmannShannon()
    match name:
        case "real" | "realvector" | "realmatrix":
            return Euclidean()
        case "positive" | "nonnegative" | "softpluspositive":
            return half_line
        case "greaterthan" | "greaterthaneq":
            return Affine(half_line, bound("lower_bound"))
        case "lessthan" | "lessthaneq":
            return Affine(half_line, bound("upper_bound"), -1.0)
        case "unitinterval":
            return Affine(BoxBarrier(0.5), 0.5) if barrier else FermiDirac()
        case "interval" | "openinterval":
            lower, width = bound("lower_bound"), bound("upper_bound") - bound("lower_bound")
            if barrier:
                return Affine(BoxBarrier(0.5), lower + 0.5 * width, width)
            return Affine(FermiDirac(), lower, width)
        case "simplex":
            return SimplexBarrier() if barrier else SimplexEntropy()
        case "ellipsoid":
            return EllipsoidBarrier(support.matrix)
        case "polytope":
            return PolytopeBarrier(support.A, support.b)
    raise UnsupportedTarget(
        f"there is no mirror map for the support {support!r}; there is one for real, bounded and simplex sites, "
        f"ball, ellipsoid and polytope, or give your own."
    )


# -- NumPyro's classes ------------------------------------------------------------------------------------------------


@functools.cache
def _constraints() -> dict[str, Any]:
    """The constraint classes, made and registered with their bijections once."""
    from numpyro.distributions import biject_to, constraints
    from numpyro.distributions.transforms import Transform

    class _Convex(constraints.Constraint):
        """An open convex set with the data that describe it; subclasses give the squared gauge about ``center``."""

        event_dim = 1
        center: Any = 0.0
        data: tuple[str, ...] = ()

        def eq(self, other: Any, static: bool = False) -> Any:
            if type(other) is not type(self):
                return False
            same = (constraints.array_equiv(getattr(self, n), getattr(other, n), static=static) for n in self.data)
            return functools.reduce(lambda a, b: a & b, same)

        def __call__(self, x: Any) -> Any:
            x = jnp.asarray(x)
            return self.gauge_squared(x - jnp.asarray(self.center, x.dtype)) < 1

        def feasible_like(self, prototype: Any) -> Any:
            prototype = jnp.asarray(prototype, dtype=float)
            return jnp.broadcast_to(jnp.asarray(self.center, prototype.dtype), prototype.shape)

        def gauge_squared(self, t: Array) -> Array:
            raise NotImplementedError

        def check_dim(self, dim: int) -> None:
            raise NotImplementedError

        def tree_flatten(self) -> Any:
            return tuple(getattr(self, name) for name in self.data), (self.data, {})

    class _Polytope(_Convex):
        data = ("A", "b", "center")

        def __init__(self, A: Any, b: Any, center: Any):
            self.A, self.b, self.center = A, b, center

        def gauge_squared(self, t: Array) -> Array:
            normals, center = jnp.asarray(self.A, t.dtype), jnp.asarray(self.center, t.dtype)
            slacks = jnp.asarray(self.b, t.dtype) - normals @ center
            return jnp.maximum(jnp.max(t @ normals.T / slacks, axis=-1), 0.0) ** 2

        def check_dim(self, dim: int) -> None:
            if dim != np.shape(self.A)[1]:
                raise InvalidArgument(f"a polytope of {np.shape(self.A)[1]} dimensions got vectors of {dim}.")

        def __repr__(self) -> str:
            return f"polytope(A of shape {np.shape(self.A)}, b of shape {np.shape(self.b)})"

        def __reduce__(self) -> Any:
            return polytope, (self.A, self.b, self.center)

    class _Ellipsoid(_Convex):
        data = ("matrix", "factor")

        def __init__(self, matrix: Any, factor: Any):
            self.matrix, self.factor = matrix, factor

        def gauge_squared(self, t: Array) -> Array:
            factor = jnp.asarray(self.factor, t.dtype)
            return jnp.sum((t * factor if factor.ndim < 2 else t @ factor) ** 2, axis=-1)

        def check_dim(self, dim: int) -> None:
            if np.ndim(self.matrix) and dim != np.shape(self.matrix)[0]:
                raise InvalidArgument(f"an ellipsoid of {np.shape(self.matrix)[0]} dimensions got vectors of {dim}.")

        def __repr__(self) -> str:
            return f"ellipsoid({self.matrix!r})" if not np.ndim(self.matrix) else f"ellipsoid{np.shape(self.matrix)}"

        def __reduce__(self) -> Any:
            return ellipsoid, (self.matrix,)

    class _Radial(Transform):
        """The radial map onto an open convex set."""

        def __init__(self, codomain: Any):
            self._codomain = codomain

        @property
        def domain(self) -> Any:
            return constraints.real_vector

        @property
        def codomain(self) -> Any:
            return self._codomain

        def __call__(self, x: Any) -> Any:
            x = jnp.asarray(x)
            return jnp.asarray(self._codomain.center, x.dtype) + to_interior(x, self._codomain.gauge_squared(x))

        def _inverse(self, y: Any) -> Any:
            y = jnp.asarray(y)
            away = y - jnp.asarray(self._codomain.center, y.dtype)
            return from_interior(away, self._codomain.gauge_squared(away))

        def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Any:
            del y, intermediates
            return log_det_radial(self._codomain.gauge_squared(x), x.shape[-1])

        def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
            self._codomain.check_dim(shape[-1])
            return shape

        inverse_shape = forward_shape

        def tree_flatten(self) -> Any:
            return (self._codomain,), (("_codomain",), {})

        def eq(self, other: Any, static: bool = False) -> Any:
            return type(other) is type(self) and self._codomain.eq(other._codomain, static=static)

        def __reduce__(self) -> Any:
            return _bijection, (self._codomain,)

    biject_to.register(_Polytope, _Radial)
    biject_to.register(_Ellipsoid, _Radial)
    return {"polytope": _Polytope, "ellipsoid": _Ellipsoid}


def _bijection(support: Any) -> Any:
    """The bijection of a support, by a function that pickles."""
    from numpyro.distributions import biject_to

    return biject_to(support)


def _chebyshev_center(normals: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Centre of the largest ball inside A x < b; where it could grow for ever, of one that is large enough."""
    from scipy.optimize import linprog

    lengths = np.linalg.norm(normals, axis=1)
    reach = 1 + np.max(np.abs(offsets) / np.where(lengths > 0, lengths, 1.0))
    bounds = [(None, None)] * normals.shape[1] + [(0, reach)]
    cost = np.append(np.zeros(normals.shape[1]), -1.0)
    found = linprog(cost, A_ub=np.column_stack([normals, lengths]), b_ub=offsets, bounds=bounds)
    if found.x is None or not found.x[-1] > 1e-9 * reach:
        what = "is empty" if found.x is None else f"is flat (the largest ball inside has radius {abs(found.x[-1]):.1g})"
        raise InvalidArgument(f"the polytope of the {len(offsets)} inequalities A x < b {what}; check their signs.")
    return found.x[:-1]
