"""Mirror maps: what samplers need of a Legendre function φ on an open convex set C of R^d.

y = ∇φ(x) is the dual of the primal x, and ∇φ* leads back. A `Point` keeps both, so that nobody computes one from the
other twice, and what else keeps digits where x is near the boundary of C: there the dual is large and precise, while
a quantity such as 1 − x has lost all of its digits. For that reason every quantity of a mirror but φ itself is a
function of the `Point`.

================  ==========================================================
symbol            name
================  ==========================================================
φ(x)              ``value``
∇φ, ∇φ*           ``at``, ``from_dual``
H = ∇²φ           ``hess_mv``, ``log_det_hess``, ``noise`` (a draw of N(0, H))
P = H⁻¹           ``inv_hess_mv``, ``inv_noise`` (a draw of N(0, P))
∇·P               ``div_inv_hess``
D_φ(u, v)         ``divergence``
================  ==========================================================

References
----------
.. [1] K. S. Zhang, G. Peyré, J. Fadili, M. Pereyra (2020). Wasserstein control of mirror Langevin Monte Carlo. COLT.
.. [2] J. Shi, C. Liu, L. Mackey (2022). Sampling with mirrored Stein operators. ICLR.
.. [3] H. H. Bauschke, J. M. Borwein (1997). Legendre functions and the method of random Bregman projections.
   J. Convex Analysis 4(1).
"""

import abc
import inspect
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, DTypeLike, Float, PRNGKeyArray

from ..errors import InvalidArgument

Structure = Literal["identity", "diagonal", "rank_one", "dense"]


class Point(NamedTuple):
    """A point of C in both coordinates.

    Attributes
    ----------
    x
        Primal coordinates, of shape (d,).
    y
        Dual coordinates y = ∇φ(x), of shape (d,).
    extra
        What the mirror keeps beside them: log probabilities of the simplex, slacks of a polytope, …
    """

    x: Array
    y: Array
    extra: Any = ()


class AbstractMirror(eqx.Module):
    """A mirror map. Concrete classes are final.

    Attributes
    ----------
    full_dual : bool
        ∇φ maps C onto all of R^d, so that no step in the dual leaves its domain (unadjusted mirror Langevin needs it).
    jointly_convex : bool
        The divergence D_φ is convex in both arguments together; left envelopes of convex terms are convex then.
    structure : str
        Of H: ``"identity"``, ``"diagonal"``, ``"rank_one"`` (diagonal plus rank one) or ``"dense"``.
    invertible : bool
        Whether ∇φ* is there; without it a mirror serves samplers in the primal (MAPLA) only.
    """

    full_dual: eqx.AbstractVar[bool]
    jointly_convex: eqx.AbstractVar[bool]
    structure: eqx.AbstractVar[str]
    invertible: eqx.AbstractVar[bool]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__[1:]:
            if base is AbstractMirror or not issubclass(base, AbstractMirror):
                continue
            if not inspect.isabstract(base) and not base.__name__.startswith("Abstract"):
                raise TypeError(f"{cls.__name__} extends the concrete mirror {base.__name__}; mirrors are final.")

    @abc.abstractmethod
    def value(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """φ(x); infinite or NaN outside of C."""

    @abc.abstractmethod
    def at(self, x: Float[Array, " d"]) -> Point:
        """The point with primal coordinates x ∈ C."""

    @abc.abstractmethod
    def from_dual(self, y: Float[Array, " d"]) -> Point:
        """The point with dual coordinates y.

        Raises
        ------
        NotAvailable
            The mirror is not `invertible`.
        """

    @abc.abstractmethod
    def hess_mv(self, p: Point, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """H v = ∇²φ(x) v."""

    @abc.abstractmethod
    def inv_hess_mv(self, p: Point, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """P v = ∇²φ(x)⁻¹ v."""

    def inv_hess_quadratic(self, p: Point, v: Float[Array, " d"]) -> Float[Array, ""]:
        """VᵀP v ≥ 0; mirrors in whose P v large terms cancel have it as a sum of squares."""
        return jnp.sum(v * self.inv_hess_mv(p, v))

    @abc.abstractmethod
    def log_det_hess(self, p: Point) -> Float[Array, ""]:
        """Log det ∇²φ(x)."""

    @abc.abstractmethod
    def noise(self, key: PRNGKeyArray, p: Point) -> Float[Array, " d"]:
        """A draw of N(0, ∇²φ(x))."""

    @abc.abstractmethod
    def inv_noise(self, key: PRNGKeyArray, p: Point) -> Float[Array, " d"]:
        """A draw of N(0, ∇²φ(x)⁻¹)."""

    @abc.abstractmethod
    def div_inv_hess(self, p: Point) -> Float[Array, " d"]:
        """The row-wise divergence (∇·P)ₐ = Σ_b ∂P_ab/∂x_b, which is ∇_y log det ∇²φ*(y) as well ([2]_)."""

    @abc.abstractmethod
    def contains(self, x: Float[Array, " d"]) -> Bool[Array, ""]:
        """Whether x is finite and in the open set C."""

    def check(self, dim: int) -> None:
        """Raise unless the parameters fit dimension ``dim``.

        Raises
        ------
        InvalidArgument
            A parameter is an array of another size.
        """
        del dim

    def divergence(self, u: Point, v: Point) -> Float[Array, ""]:
        """D_φ(u, v) = φ(u) − φ(v) − ⟨∇φ(v), u − v⟩ ≥ 0."""
        return self.value(u.x) - self.value(v.x) - jnp.sum(v.y * (u.x - v.x))


def gaussians(key: PRNGKeyArray, size: int, dtype: DTypeLike) -> Float[Array, " size"]:
    """Independent standard normals."""
    return jax.random.normal(key, (size,), dtype)


# -- parameters of mirrors --------------------------------------------------------------------------------------------


def parameter(value: Any) -> Any:
    """A parameter as a mirror keeps it: Python numbers and JAX arrays as they are, all else as NumPy arrays."""
    if isinstance(value, int | float | jax.Array | np.ndarray) and not isinstance(value, bool):
        return value
    try:
        return np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise InvalidArgument(f"a mirror's parameter must be a number or an array of numbers, got {value!r}.") from None


def known(value: Any) -> np.ndarray | None:
    """``value`` as a NumPy array to be checked; None for one that is being traced."""
    return None if isinstance(value, jax.core.Tracer) else np.asarray(value, dtype=float)


def check_entries(name: str, value: Any, above: float = 0.0) -> None:
    """Raise unless ``value`` is a number or a vector of finite numbers greater than ``above``."""
    entries = known(value)
    if entries is None:
        return
    if entries.ndim > 1:
        raise InvalidArgument(f"{name} must be a number or a vector, got an array of shape {entries.shape}.")
    wrong = entries[~(np.isfinite(entries) & (entries > above))]
    if wrong.size:
        raise InvalidArgument(f"{name} must be finite and > {above:g}, got {wrong.flat[0]:g}.")


def check_fits(name: str, value: Any, dim: int) -> None:
    """Raise unless ``value`` is a number or has one entry per coordinate."""
    if np.shape(value) not in ((), (dim,)):
        raise InvalidArgument(f"{name} has shape {np.shape(value)}, but there are {dim} coordinates; give {dim} or 1.")
