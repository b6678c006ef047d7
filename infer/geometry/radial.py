"""The radial map from R^d onto a convex set, as a function of its squared gauge ρ², which is smooth where ρ is a norm.

Sets and the formula are in `supports`; here the set is only seen through ρ².
"""

import math

import jax.numpy as jnp
from jaxtyping import Array

SMALL = 0.1
# Coefficients of tanh(ρ)/ρ in powers of ρ², highest first: below SMALL all of 64 bits.
SERIES = (21844 / 6081075, -1382 / 155925, 62 / 2835, -17 / 315, 2 / 15, -1 / 3, 1.0)


def to_interior(v: Array, gauge_squared: Array) -> Array:
    """The image v tanh(ρ)/ρ, for v of shape (…, d) and ρ² of shape (…); ρ < 1 there by a margin of rounding."""
    return v * _tanhc(gauge_squared)[..., None]


def from_interior(t: Array, gauge_squared: Array) -> Array:
    """The inverse t artanh(ρ)/ρ with ρ the gauge of t; not finite where ρ ≥ 1."""
    gauge = jnp.sqrt(jnp.maximum(gauge_squared, jnp.finfo(t.dtype).eps ** 2))
    return t * (jnp.arctanh(gauge) / gauge)[..., None]


def log_det_radial(gauge_squared: Array, dim: int) -> Array:
    """(d − 1) log(tanh(ρ)/ρ) − 2 log cosh ρ."""
    near = gauge_squared < 1
    inside = jnp.where(near, gauge_squared, 0.0)
    gauge = jnp.sqrt(jnp.where(near, 1.0, gauge_squared))
    log_sech = jnp.where(
        near,
        0.5 * jnp.log1p(-inside * _tanhc(inside) ** 2),  # sech² = 1 − tanh²
        math.log(2.0) - jnp.logaddexp(gauge, -gauge),
    )
    return (dim - 1) * jnp.log(_tanhc(gauge_squared)) + 2 * log_sech


def _tanhc(squared: Array) -> Array:
    """tanh(ρ)/ρ from ρ², by its series near 0; at most (1 − 16 ε)/ρ, so that rounding leaves the image inside."""
    small = squared < SMALL**2
    rho = jnp.sqrt(jnp.where(small, 1.0, squared))
    far = jnp.minimum(jnp.tanh(rho), 1 - 16 * jnp.finfo(squared.dtype).eps) / rho
    return jnp.where(small, jnp.polyval(jnp.asarray(SERIES, squared.dtype), jnp.where(small, squared, 0.0)), far)
