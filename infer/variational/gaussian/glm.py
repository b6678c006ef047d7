"""Targets whose Gaussian expectations are one-dimensional integrals: generalised linear models with a normal prior.

    log π(x) = Σⱼ ℓ(aⱼᵀx + oⱼ, yⱼ) − ½ (x − μ)ᵀ Λ (x − μ) + const

Under x ~ N(m, C Cᵀ) each linear predictor is normal with standard deviation |Cᵀaⱼ|, so that E log π, its gradient and
mean Hessian are sums of N one-dimensional integrals, computed by Gauss–Hermite quadrature to rounding error; without
observations they are those of a Gaussian, in closed form. Cost: O(N d² + N q) for q nodes.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

from ...errors import InvalidArgument
from ...target.arguments import name_of
from ...target.base import Site
from ...target.labelled import LabelledTarget, check_inside, check_values
from ...target.static import Labels

LIKELIHOODS: dict[str, Callable[[Any, Any], Any]] = {
    "bernoulli": lambda z, y: y * z - jax.nn.softplus(z),
    "poisson": lambda z, y: y * z - jnp.exp(z) - gammaln(y + 1.0),
    "normal": lambda z, y: -0.5 * (y - z) ** 2 - 0.5 * jnp.log(2 * jnp.pi),
}


class GLMTarget(LabelledTarget):
    """A generalised linear model with a normal prior. Make one with `glm_target`.

    Attributes
    ----------
    design, response, offset
        A, y and o, shapes (N, d), (N,), (N,).
    prior_mean, prior_factor
        μ, and R with Λ = Rᵀ R, shapes (d,) and (d, d).
    constant
        Log normaliser of the prior; 0 under a flat one.
    """

    design: Any
    response: Any
    offset: Any
    prior_mean: Any
    prior_factor: Any
    constant: Any
    likelihood: Any = eqx.field(static=True)
    site: str = eqx.field(static=True)
    labels: Labels = eqx.field(static=True)

    @property
    def sites(self) -> tuple[Site, ...]:
        """One site, the coefficients."""
        d = self.design.shape[1]
        return (Site(self.site, (d,), "float64", "real", "latent", d),)

    def structure(self) -> frozenset[str]:
        """See `Target.structure`; ``"gaussian_expectations"`` is that of this class."""
        return frozenset({"prior", "likelihood", "gaussian_expectations"})

    def log_density(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log prior and all log likelihoods."""
        return self.log_prior(u) + jnp.sum(self._likelihoods(u))

    def log_prior(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log prior density."""
        r = jnp.asarray(self.prior_factor, float) @ (u - jnp.asarray(self.prior_mean, float))
        return jnp.asarray(self.constant, float) - 0.5 * jnp.sum(r**2)

    def log_likelihood(self, values: dict[str, Array]) -> dict[str, Array]:
        """Log likelihood of each observation, under the name ``"y"``."""
        return {"y": self._likelihoods(values[self.site])}

    def log_densities(self, u: Float[Array, " d"]) -> dict[str, Array]:
        """Prior and likelihood."""
        return {"prior": self.log_prior(u), "y": jnp.sum(self._likelihoods(u))}

    def prior_densities(self, values: dict[str, Array]) -> dict[str, Array]:
        """The log prior at one draw."""
        return {self.site: self.log_prior(values[self.site])}

    def constrain(self, u: Float[Array, " d"]) -> dict[str, Array]:
        """The coefficients by name."""
        return {self.site: u}

    def unconstrain(self, values: dict[str, Any]) -> Float[Array, " d"]:
        """The coefficients."""
        u = check_values(values, {self.site: (self.dim,)})
        check_inside(u, {self.site: "real"})
        return u[self.site]

    def gaussian_expectations(
        self, mean: Float[Array, " d"], scale: Float[Array, "d k"], num_nodes: int = 32
    ) -> tuple[Float[Array, ""], Float[Array, " d"], Callable[[Array], Array]]:
        """E V, E ∇V, and x ↦ E[∇²V] x of the potential V = −log π under N(mean, scale scaleᵀ).

        Parameters
        ----------
        mean, scale
            Any factor of the covariance will do.
        num_nodes
            Gauss–Hermite nodes; exact for ℓ a polynomial of degree 2 num_nodes − 1.
        """
        design, response, offset = (jnp.asarray(x, float) for x in (self.design, self.response, self.offset))
        factor, centre = jnp.asarray(self.prior_factor, float), jnp.asarray(self.prior_mean, float)
        nodes, weights = gauss_hermite(num_nodes)
        spread = jnp.sqrt(jnp.sum((design @ scale) ** 2, axis=1))
        z = (design @ mean + offset)[:, None] + spread[:, None] * jnp.asarray(nodes, float)
        value, first, second = (
            jax.vmap(jax.vmap(f, (0, None)))(z, response) @ jnp.asarray(weights, float)
            for f in (self.likelihood, jax.grad(self.likelihood), jax.grad(jax.grad(self.likelihood)))
        )
        residual = factor @ (mean - centre)
        expected = 0.5 * (jnp.sum(residual**2) + jnp.sum((factor @ scale) ** 2)) - jnp.sum(value) - self.constant
        gradient = factor.T @ residual - design.T @ first
        return expected, gradient, lambda x: factor.T @ (factor @ x) - design.T @ (second * (design @ x))

    def _likelihoods(self, u: Float[Array, " d"]) -> Float[Array, " n"]:
        z = jnp.asarray(self.design, float) @ u + jnp.asarray(self.offset, float)
        return jax.vmap(self.likelihood)(z, jnp.asarray(self.response, float))

    def _identity(self) -> list[Any]:
        arrays = [self.design, self.response, self.offset, self.prior_mean, self.prior_factor, self.constant]
        return [name_of(self.likelihood), *arrays]


def glm_target(
    design: Any,
    response: Any,
    likelihood: str | Callable = "bernoulli",
    *,
    prior_precision: Any = 1.0,
    prior_mean: Any = 0.0,
    offset: Any = 0.0,
    name: str = "beta",
) -> GLMTarget:
    """A generalised linear model with a normal prior, whose Gaussian expectations are exact.

    Parameters
    ----------
    design
        A, shape (N, d); N = 0 gives the prior itself, a Gaussian target.
    response
        y, shape (N,).
    likelihood
        ``"bernoulli"`` (logit link), ``"poisson"`` (log link), ``"normal"`` (unit variance: scale rows of A and y by
        1/σ), or a function ``(z, y) -> log likelihood`` of one linear predictor.
    prior_precision
        Λ: a number, a diagonal (d,) or a matrix (d, d); 0 for a flat prior, which may leave the posterior improper.
    prior_mean
        μ, a number or shape (d,).
    offset
        o, a number or shape (N,).
    name
        Name of the one site.

    Raises
    ------
    InvalidArgument
        Shapes do not agree, a number is not finite, or Λ is not symmetric positive semidefinite.
    """
    design, response = _numbers("design", design), _numbers("response", response)
    if design.ndim != 2 or design.shape[1] == 0:
        raise InvalidArgument(f"design has shape {design.shape}; it must be a matrix (N, d) with d >= 1.")
    n, d = design.shape
    if response.shape != (n,):
        raise InvalidArgument(f"response has shape {response.shape}; a design of shape {(n, d)} needs ({n},).")
    if isinstance(likelihood, str):
        if likelihood not in LIKELIHOODS:
            raise InvalidArgument(
                f"likelihood must be one of {', '.join(map(repr, LIKELIHOODS))} or a function (z, y), got "
                f"{likelihood!r}."
            )
        _check_response(likelihood, response)
        likelihood = LIKELIHOODS[likelihood]
    if not callable(likelihood):
        raise InvalidArgument(f"likelihood must be a name or a function (z, y), got {likelihood!r}.")
    factor, log_det = _root(prior_precision, d)
    constant = 0.0 if log_det is None else 0.5 * log_det - 0.5 * d * np.log(2 * np.pi)
    return GLMTarget(
        design, response, _shaped("offset", offset, n), _shaped("prior_mean", prior_mean, d), factor,
        np.asarray(constant), likelihood, name, Labels(),
    )  # fmt: skip


def gauss_hermite(num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for the expectation under N(0, 1), exact for polynomials of degree 2 num_nodes − 1."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    return nodes, weights / weights.sum()


def _root(precision: Any, d: int) -> tuple[np.ndarray, float | None]:
    """R with Rᵀ R = Λ, and log det Λ (None where it is singular)."""
    given = _numbers("prior_precision", precision)
    if given.shape == () or given.shape == (d,):
        diagonal = np.broadcast_to(given, (d,))
        if np.any(diagonal < 0):
            raise InvalidArgument(f"prior_precision must be >= 0, got {diagonal.min():g} in its diagonal.")
        return np.diag(np.sqrt(diagonal)), float(np.log(diagonal).sum()) if np.all(diagonal > 0) else None
    if given.shape != (d, d):
        raise InvalidArgument(f"prior_precision has shape {given.shape}; it must be (), ({d},) or ({d}, {d}).")
    values, vectors = np.linalg.eigh(given)
    top = max(values.max(), 0.0)
    if not np.allclose(given, given.T, rtol=1e-8, atol=1e-12 * top) or values.min() < -1e-10 * top:
        raise InvalidArgument(
            f"prior_precision must be symmetric positive semidefinite, got a matrix with eigenvalues from "
            f"{values.min():g} to {values.max():g}."
        )
    singular = values.min() <= 1e-14 * top
    root = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
    return root, None if singular else float(np.log(values).sum())


def _shaped(name: str, value: Any, size: int) -> np.ndarray:
    value = _numbers(name, value)
    if value.shape not in ((), (size,)):
        raise InvalidArgument(f"{name} has shape {value.shape}; it must be a number or of shape ({size},).")
    return np.array(np.broadcast_to(value, (size,)))


def _numbers(name: str, value: Any) -> np.ndarray:
    try:
        array = np.array(value, dtype=float)
    except (TypeError, ValueError):
        raise InvalidArgument(f"{name} must hold numbers, got {value!r}.") from None
    if not np.all(np.isfinite(array)):
        raise InvalidArgument(f"{name} must be finite, got {array[~np.isfinite(array)].flat[0]}; remove such rows.")
    return array


def _check_response(likelihood: str, y: np.ndarray) -> None:
    if likelihood == "bernoulli" and np.any((y != 0) & (y != 1)):
        raise InvalidArgument(f"response must be 0 or 1, got {y[(y != 0) & (y != 1)][0]:g}; likelihood is bernoulli.")
    if likelihood == "poisson" and np.any((y < 0) | (y != np.round(y))):
        bad = y[(y < 0) | (y != np.round(y))][0]
        raise InvalidArgument(f"response must be counts >= 0, got {bad:g}; likelihood is poisson.")
