"""The families by name: stacked layers of one kind, an affine map (radial: one on either side), and the whitening.

| family | layer | draws | density at u |
|---|---|---|---|
| ``planar``, ``radial`` | Rezende & Mohamed 2015 | O(d) | no / O(d) |
| ``nice`` | additive coupling, Dinh et al. 2014 | 1 network | 1 network |
| ``realnvp`` | affine coupling, Dinh et al. 2016 | 1 network | 1 network |
| ``spline-coupling`` | rational-quadratic coupling, Durkan et al. 2019 | 1 network | 1 network |
| ``iaf`` | inverse autoregressive, Kingma et al. 2016 | 1 network | d networks |
| ``spline-iaf`` | rational-quadratic, autoregressive | 1 network | d networks |
| ``maf`` | masked autoregressive, Papamakarios et al. 2017 | d networks | 1 network |
| ``spline-maf`` | rational-quadratic, autoregressive | d networks | 1 network |
| ``bnaf`` | block neural autoregressive, De Cao et al. 2019 | 1 network | no |
| ``continuous`` | neural differential equation, Chen et al. 2018 | 1 solve | 1 solve |
| ``spline`` | rational-quadratic, each coordinate by itself | O(d) | O(d) |

flowjax has most of these layers. They are written anew here because its own hold functions that differ between two
constructions (so that each would compile anew), start away from the identity, take unbounded log scales, and train
the end derivatives of splines; a flow of flowjax's is taken instead of a name.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ...errors import InvalidArgument
from ...validate import check_choice, check_count, check_positive
from .bijection import Bijection, Chain, Invert, Permutation, Stack
from .bnaf import BlockAutoregressive
from .continuous import Continuous
from .coupled import Autoregressive, Coupling, Elementwise
from .foreign import Foreign
from .linear import AffineMap, LUMixing, random_permutation
from .networks import ACTIVATIONS
from .planar import Planar, Radial
from .transformers import Additive, Affine, RationalQuadratic, Transformer

COUPLING = ("nice", "realnvp", "spline-coupling")
AUTOREGRESSIVE = ("iaf", "spline-iaf", "maf", "spline-maf")
FAMILIES = ("spline", *COUPLING, *AUTOREGRESSIVE, "planar", "radial", "bnaf", "continuous")
NO_INVERSE = ("planar", "bnaf")
SEQUENTIAL_INVERSE = ("iaf", "spline-iaf")
DEFAULT_LAYERS = {"planar": 32, "radial": 32, "bnaf": 2, "continuous": 1, "spline": 1}
LU_DIM = 50
FULL_DIM = 100


class Shape(NamedTuple):
    """What decides a family's shape besides its name; hashable.

    Parameters
    ----------
    num_layers
        None: 32 planar or radial ones, 2 of ``bnaf``, 1 of ``continuous`` and ``spline``, else 8.
    hidden
        Hidden units of each layer's network; of ``bnaf`` per coordinate. None: two layers of 32 to 128, growing with d.
    activation
        ``"tanh"``, ``"relu"``, ``"silu"`` or ``"gelu"``.
    num_bins, bound
        Of splines: bins, and the half-width of the box, in standard deviations of the base.
    scale_limit
        Of affine layers: the largest log scale.
    mixing
        Between layers: ``"permutation"``, ``"lu"`` (a trained linear map), None: ``"lu"`` up to 50 dimensions.
    tolerance
        Of the ODE solver.
    """

    num_layers: int | None = None
    hidden: tuple[int, ...] | None = None
    activation: str = "silu"
    num_bins: int = 8
    bound: float = 5.0
    scale_limit: float = 3.0
    mixing: str | None = None
    tolerance: float = 1e-5


def check_family(family: Any, shape: Shape) -> None:
    """Raise `InvalidArgument` unless ``family`` is a name or a bijection, and the shape is in range."""
    if isinstance(family, str):
        check_choice("family", family, FAMILIES)
    elif not (hasattr(family, "transform_and_log_det") and hasattr(family, "shape")):
        raise InvalidArgument(
            f"family must be one of {', '.join(FAMILIES)}, or a bijection of flowjax's interface, got {family!r}."
        )
    if shape.num_layers is not None:
        check_count("num_layers", shape.num_layers)
    for size in shape.hidden or ():
        check_count("hidden", size)
    check_choice("activation", shape.activation, tuple(ACTIVATIONS))
    check_count("num_bins", shape.num_bins, 2)
    check_positive("bound", shape.bound)
    check_positive("scale_limit", shape.scale_limit)
    check_positive("tolerance", shape.tolerance)
    if shape.mixing is not None:
        check_choice("mixing", shape.mixing, ("permutation", "lu"))


def check_dim(family: Any, dim: int) -> None:
    """Raise `InvalidArgument` where a family cannot be built in this dimension."""
    if dim == 1 and family in (*COUPLING, *AUTOREGRESSIVE):
        raise InvalidArgument(
            f"family={family!r} needs two coordinates or more, and the target has dimension {dim}; use family='spline'."
        )


def build(key: PRNGKeyArray, family: Any, dim: int, shape: Shape = Shape()) -> Chain:  # noqa: B008
    """A flow of this family on R^d, near the identity.

    Raises
    ------
    InvalidArgument
        A coupling or autoregressive family for d = 1, or a bijection of another shape.
    """
    check_dim(family, dim)
    affine = AffineMap.make(dim, full=dim <= FULL_DIM)
    if not isinstance(family, str):
        own = Foreign.wrap(family)
        if own.dim != dim:
            raise InvalidArgument(
                f"The bijection has shape ({own.dim},), and the target has dimension {dim}; they must be equal."
            )
        return Chain((as_default(own), affine))
    num_layers = shape.num_layers or DEFAULT_LAYERS.get(family, 8)
    layers = eqx.filter_vmap(lambda k: _layer(k, family, dim, shape))(jax.random.split(key, num_layers))
    # Radial maps know of no direction: before and after an affine map they are different families, unlike planar ones.
    before = (AffineMap.make(dim, full=dim <= FULL_DIM),) if family == "radial" else ()
    return Chain((*before, Stack(layers), affine))


def as_default(bijection: Bijection) -> Bijection:
    """The same with its floating-point arrays in JAX's present default precision."""
    return jax.tree.map(lambda x: jnp.asarray(x, float) if jnp.issubdtype(x.dtype, jnp.inexact) else x, bijection)


def default_hidden(dim: int) -> tuple[int, int]:
    """Two hidden layers, as wide as twice the dimension within [32, 128]."""
    width = min(max(32, 2 * dim), 128)
    return (width, width)


def _layer(key: PRNGKeyArray, family: str, dim: int, shape: Shape) -> Bijection:
    """One layer with the mixing that follows it."""
    key_layer, key_mixing = jax.random.split(key)
    hidden = shape.hidden if shape.hidden is not None else default_hidden(dim)
    transformer = _transformer(family, shape)
    if family == "planar":
        return Planar.make(key_layer, dim)
    if family == "radial":
        return Radial.make(key_layer, dim)
    if family == "spline":
        return Elementwise.make(transformer, dim)
    if family == "continuous":
        return Continuous.make(key_layer, dim, hidden, shape.activation, shape.tolerance)
    if family == "bnaf":
        layer = BlockAutoregressive.make(key_layer, dim, shape.hidden or (8, 8))
        return Chain((layer, Permutation(jnp.arange(dim)[::-1])))
    if family in COUPLING:
        layer = Coupling.make(key_layer, transformer, dim, hidden, shape.activation)
        return Chain((layer, _mixing(random_permutation(key_mixing, dim), shape.mixing)))
    layer = Autoregressive.make(key_layer, transformer, dim, hidden, shape.activation)
    # Reversed, so that what came last in one layer comes first in the next.
    mixing = _mixing(jnp.arange(dim)[::-1], shape.mixing)
    return Chain((Invert(layer) if family.endswith("maf") else layer, mixing))


def _transformer(family: str, shape: Shape) -> Transformer:
    if family.startswith("spline"):
        return RationalQuadratic(shape.num_bins, shape.bound)
    return Additive() if family == "nice" else Affine(shape.scale_limit)


def _mixing(indices: Any, mixing: str | None) -> Bijection:
    if mixing == "lu" or (mixing is None and indices.shape[0] <= LU_DIM):
        return LUMixing.make(indices)
    return Permutation(indices)
