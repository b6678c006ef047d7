"""`LatentGP`: observations of a latent Gaussian process, one per input, as a target whose u is the process at the data.

p(f, y) = N(f; μ, K) ∏ p(y_i | f_i), K_ij = k(x_i, x_j) + τ² k(x_i, x_i) 1{i = j} with a nugget τ². The prior is dense,
O(n³), as long as no pattern is known; `LatentGP.with_structure` replaces K⁻¹ by its sparse factorisation U Uᵀ
(`infer.variational.sparse_cholesky`), O(n m³). Hyper-parameters are values of the target; `DoubleKL` learns them.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ...infer.errors import InvalidArgument, NonFinite, NotAvailable
from ...infer.target.base import Site
from ...infer.target.labelled import LabelledTarget
from ...infer.target.static import Labels
from ...infer.variational.sparse_cholesky.factor import Structure, prior_columns, times_transpose
from .chain import Chain
from .kernels import Kernel
from .likelihoods import Likelihood
from .means import Mean, Zero

DENSE = 4000
"""Observations up to which the prior may be dense."""
NEIGHBORS = 32
FULL_NEIGHBORS = 30
NEW_AT_ONCE = 256


def _numbers(value: Any) -> Any:
    """Data as 64-bit NumPy arrays; what is traced as it is."""
    if isinstance(value, jax.core.Tracer):
        return value
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return value  # refused by __check_init__


def _inputs(value: Any) -> Any:
    value = _numbers(value)
    return value[:, None] if getattr(value, "ndim", 0) == 1 else value


class LatentGP(LabelledTarget):
    """A latent Gaussian process observed through a likelihood.

    Parameters
    ----------
    kernel
        Of `pushforward.models.gaussian_process.kernels`; its parameters are those that learning begins with.
    likelihood
        Of `pushforward.models.gaussian_process.likelihoods`.
    X
        Inputs, shape (n, d) or (n,).
    y
        Observations, shape (n,).
    mean
        Of `pushforward.models.gaussian_process.means`; 0 by default.
    nugget
        τ², the share of the variance that is noise of the process itself; by default 1e-6 for kernels that are at most
        once differentiable, 1e-4 for others.
    fixed
        Names of hyper-parameters that are not learned, as in `parameters`, e.g. ``("likelihood.df",)``.
    site
        Name of the process at the data among the draws.

    Raises
    ------
    InvalidArgument
        Shapes do not agree, a parameter is not positive, an observation is impossible, or rows of X coincide.
    NonFinite
        X or y has NaN or infinity.
    """

    kernel: Kernel
    likelihood: Likelihood
    X: Any = eqx.field(converter=_inputs)
    y: Any = eqx.field(converter=_numbers)
    mean: Mean = eqx.field(default_factory=Zero)
    nugget: Any = None
    fixed: tuple[str, ...] = eqx.field(static=True, default=(), converter=tuple)
    site: str = eqx.field(static=True, default="f")
    factors_of: Structure | Chain | None = None
    labels: Labels = eqx.field(static=True, default=Labels())

    def __check_init__(self) -> None:
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(self)):
            return
        for name, value, kind in (
            ("kernel", self.kernel, Kernel), ("likelihood", self.likelihood, Likelihood), ("mean", self.mean, Mean),
        ):  # fmt: skip
            if not isinstance(value, kind):
                raise InvalidArgument(
                    f"{name} must be one of pushforward.models.gaussian_process.{name}s, got {value!r}; "
                    f"write Matern32(), not Matern32."
                )
        _check_data(self.X, self.y)
        self.kernel.check(self.X.shape[1])
        self.likelihood.check(self.y)
        if self.nugget is not None and not (np.isfinite(self.nugget) and self.nugget >= 0):
            raise InvalidArgument(f"nugget must be at least 0, got {self.nugget!r}.")
        names = [name for name, _ in self._named()]
        for name in self.fixed:
            if name not in names:
                raise InvalidArgument(f"fixed names {name!r}; the hyper-parameters are {', '.join(names) or 'none'}.")

    # -- hyper-parameters ---------------------------------------------------------------------------------------------

    def _named(self) -> list[tuple[str, Any]]:
        named = []
        for part in ("kernel", "likelihood", "mean"):
            for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(self, part)):
                named.append((f"{part}{jax.tree_util.keystr(path)}", leaf))
        return named

    def parameters(self) -> dict[str, Any]:
        """Hyper-parameters by name."""
        return dict(self._named())

    def free(self) -> Float[Array, " p"]:
        """Hyper-parameters as a flat vector: logarithms of those of kernel and likelihood, those of the mean."""
        parts = [jnp.ravel(jnp.asarray(x, float)) for _, x in self._named()]
        logs = [p if name.startswith("mean") else jnp.log(p) for (name, _), p in zip(self._named(), parts, strict=True)]
        return jnp.concatenate(logs) if logs else jnp.zeros(0)

    def with_free(self, free: Float[Array, " p"]) -> "LatentGP":
        """The same target with the hyper-parameters of such a vector."""
        new, at = {}, 0
        for name, leaf in self._named():
            size, shape = int(np.size(leaf)), np.shape(leaf)
            part = jnp.reshape(free[at : at + size], shape)
            new[name] = part if name.startswith("mean") else jnp.exp(part)
            at += size
        return self.with_parameters(new)

    def with_parameters(self, values: Mapping[str, Any]) -> "LatentGP":
        """The same target with these values of hyper-parameters, by name as in `parameters`; others stay."""
        if not values:
            return self
        new = [values.get(name, leaf) for name, leaf in self._named()]
        return eqx.tree_at(lambda gp: jax.tree.leaves((gp.kernel, gp.likelihood, gp.mean)), self, new)

    def with_priors(self, priors: Mapping[str, Any], *, neighbors: int | None = FULL_NEIGHBORS, rho: Any = None) -> Any:
        """The target of hyper-parameters and process together, e.g. for `pushforward.NUTS`.

        Parameters
        ----------
        priors
            From names of hyper-parameters, as in `parameters`, to NumPyro distributions, each of a single number or of
            the parameter's shape; hyper-parameters without one stay at the values that they have.
        neighbors, rho
            The pattern of the sparse factors, as of `pushforward.DoubleKL`. It is found once, for the length scales
            that the kernel has: give ones of the right size.

        Returns
        -------
        FullGP
            With a Gaussian likelihood the process is integrated out and drawn afterwards.

        Raises
        ------
        InvalidArgument
            A name is unknown, or what it has is not a distribution of such values.
        """
        from .full_bayes import full
        from .pattern import Extent

        return full(self, priors, Extent(rho, None if rho is not None else neighbors))

    def learned(self) -> Bool[np.ndarray, " p"]:
        """Which entries of `free` are not fixed."""
        parts = [np.full(int(np.size(x)), name not in self.fixed) for name, x in self._named()]
        return np.concatenate(parts) if parts else np.zeros(0, bool)

    # -- the prior ----------------------------------------------------------------------------------------------------

    def tau2(self) -> Any:
        """The nugget, relative to the variance."""
        return type(self.kernel).nugget if self.nugget is None else self.nugget

    def covariance(self, x: Float[Array, "m d"]) -> Float[Array, "m m"]:
        """K of these inputs, nugget included."""
        return self.kernel.matrix(x, x) + self.tau2() * jnp.diag(self.kernel.diagonal(x))

    def with_structure(self, structure: Structure | Chain | None) -> "LatentGP":
        """The same target with the sparse prior of this pattern, or that of a Markov chain; None: the dense one."""
        return eqx.tree_at(lambda gp: gp.factors_of, self, structure, is_leaf=lambda x: x is None)

    def columns(self, structure: Structure) -> Float[Array, "n m"]:
        """U: the KL-optimal factor of the prior's precision on a pattern."""
        return prior_columns(self.covariance, jnp.asarray(self.X)[structure.order], structure.columns)

    def log_prior(self, u: Float[Array, " n"]) -> Float[Array, ""]:
        """Log N(f; μ, K), or log N(f; μ, (U Uᵀ)⁻¹)."""
        n, x = self.dim, jnp.asarray(self.X)
        r, constant = u - self.mean.at(x), 0.5 * self.dim * jnp.log(2 * jnp.pi)
        if isinstance(self.factors_of, Chain):
            return self.factors_of.log_prior(self, u)
        if self.factors_of is not None:
            factor = self.columns(self.factors_of)
            white = times_transpose(self.factors_of, factor, r[self.factors_of.order])
            return jnp.sum(jnp.log(factor[:, -1])) - 0.5 * jnp.sum(white**2) - constant
        if n > DENSE:
            raise NotAvailable(
                f"The density of a latent process at {n:,} points needs a sparse prior (dense: at most {DENSE:,}); fit "
                f"it with DoubleKL (or StateSpaceGP), whose posterior.target has one."
            )
        lower = jnp.linalg.cholesky(self.covariance(x))
        white = solve_triangular(lower, r, lower=True)
        return -jnp.sum(jnp.log(jnp.diagonal(lower))) - 0.5 * jnp.sum(white**2) - constant

    # -- a target -----------------------------------------------------------------------------------------------------

    @property
    def sites(self) -> tuple[Site, ...]:
        """The process at the rows of X."""
        return (Site(self.site, (self.dim,), size=self.dim),)

    @property
    def dim(self) -> int:
        """N."""
        return self.X.shape[0]

    @property
    def name(self) -> str:
        """Of kernel and likelihood."""
        return f"{type(self.kernel).__name__} process, {type(self.likelihood).__name__} likelihood"

    @property
    def observed(self) -> dict[str, Any]:
        """``y``."""
        return {"y": self.y}

    def structure(self) -> frozenset[str]:
        """See `Target.structure`."""
        return frozenset({"prior", "likelihood", "predictive", "latent_gp"})

    def initial(self, key: PRNGKeyArray) -> Float[Array, " n"]:
        """The likelihood's start, moved a little at random."""
        y = jnp.asarray(self.y)
        return self.likelihood.start(y) + 0.1 * jax.random.normal(key, y.shape, y.dtype)

    def log_density(self, u: Float[Array, " n"]) -> Float[Array, ""]:
        """Log N(f; μ, K) + Σ log p(y_i | f_i) at the hyper-parameters' values."""
        return self.log_prior(u) + jnp.sum(jax.vmap(self.likelihood.log_prob)(u, jnp.asarray(self.y)))

    def constrain(self, u: Float[Array, " n"]) -> dict[str, Array]:
        """The process by its name."""
        return {self.site: u}

    def unconstrain(self, values: dict[str, Any]) -> Float[Array, " n"]:
        """The process."""
        return jnp.asarray(values[self.site], float)

    def log_likelihood(self, values: dict[str, Array]) -> dict[str, Array]:
        """Log p(y_i | f_i) of each observation."""
        return {"y": jax.vmap(self.likelihood.log_prob)(values[self.site], jnp.asarray(self.y))}

    def predictive(self, key: PRNGKeyArray, values: dict[str, Array], *args: Any, **kwargs: Any) -> dict[str, Array]:
        """``y`` at the data, or ``f`` and ``y`` at new inputs, ``predictive(key, values, X)``.

        At a new input f is drawn given the values at the 32 nearest points of the data, for each new input by itself:
        draws are not coherent over new inputs.
        """
        if not args and not kwargs:
            return {"y": self.likelihood.distribution(values[self.site]).sample(key)}
        x = jnp.asarray(check_new(self, *args, **kwargs))
        shape = jax.ShapeDtypeStruct((x.shape[0], min(NEIGHBORS, self.dim)), jnp.int32)
        scale, data = self.kernel.scales(x.shape[1]), jnp.asarray(self.X)
        # A tree on the host, where draws are compiled too: sorting all distances would cost a hundred times as much.
        near = jax.pure_callback(nearest, shape, scale, data, x, vmap_method="sequential")
        weight, mean, variance = conditional(self, x, near)
        mu = self.mean.at(jnp.asarray(self.X))
        key_f, key_y = jax.random.split(key)
        f = mean + jnp.sum(weight * (values[self.site] - mu)[near], 1)
        f = f + jnp.sqrt(variance) * jax.random.normal(key_f, f.shape, f.dtype)
        return {self.site: f, "y": self.likelihood.distribution(f).sample(key_y)}

    def _identity(self) -> list[Any]:
        return [self.name, *jax.tree.leaves(self)]


def nearest(scale: Any, data: Any, new: Any, count: int = NEIGHBORS) -> Int[np.ndarray, "k c"]:
    """The ``count`` nearest rows of the data to each new input, in these length scales; on the host."""
    from scipy.spatial import KDTree

    scale, data, new = np.asarray(scale), np.asarray(data), np.asarray(new)
    return KDTree(data / scale).query(new / scale, np.arange(1, min(count, len(data)) + 1))[1].astype(np.int32)


def conditional(
    gp: LatentGP, x: Float[Array, "k d"], near: Int[Array, "k c"]
) -> tuple[Float[Array, "k c"], Float[Array, " k"], Float[Array, " k"]]:
    """F at each new input given f at its neighbours: weights of f − μ there, prior mean, variance (nugget included)."""
    one = lambda at: conditional_at(gp, *at)  # noqa: E731
    weight, variance = jax.lax.map(one, (x, near), batch_size=min(x.shape[0], NEW_AT_ONCE))
    return weight, gp.mean.at(x), variance


def conditional_at(
    gp: LatentGP, new: Float[Array, " d"], rows: Int[Array, " c"]
) -> tuple[Float[Array, " c"], Float[Array, ""]]:
    """Weights and variance of `conditional` at one new input."""
    at = jnp.asarray(gp.X)[rows]
    factor = jnp.linalg.cholesky(gp.covariance(at))
    cross = gp.kernel.matrix(at, new[None])[:, 0]
    weight = cho_solve((factor, True), cross)
    own = (1 + gp.tau2()) * gp.kernel.diagonal(new[None])[0]
    return weight, jnp.maximum(own - weight @ cross, 0.0)


def check_new(gp: LatentGP, X: Any) -> Any:
    """New inputs as an array (k, d).

    Raises
    ------
    InvalidArgument
        They have another number of columns than X.
    NonFinite
        They have NaN or infinity.
    """
    x = _inputs(X)
    if getattr(x, "ndim", 0) != 2 or x.shape[1] != gp.X.shape[1]:
        raise InvalidArgument(f"X has shape {np.shape(x)}; new inputs must have {gp.X.shape[1]} columns.")
    if not isinstance(x, jax.core.Tracer):
        _check_finite("X", x)
    return x


def _check_data(x: Any, y: Any) -> None:
    for name, value in (("X", x), ("y", y)):
        if not isinstance(value, np.ndarray):
            raise InvalidArgument(f"{name} must be an array of numbers, got {type(value).__name__}.")
    if x.ndim != 2 or x.shape[0] < 2:
        raise InvalidArgument(f"X must have shape (n, d) with at least two rows, got {x.shape}.")
    if y.shape != x.shape[:1]:
        raise InvalidArgument(f"y has shape {y.shape}; it must have one entry for each of the {len(x)} rows of X.")
    _check_finite("X", x)
    _check_finite("y", y)
    order = np.lexsort(x.T)
    same = np.flatnonzero((x[order[1:]] == x[order[:-1]]).all(1))
    if same.size:
        i, j = sorted((int(order[same[0]]), int(order[same[0] + 1])))
        raise InvalidArgument(
            f"X has {same.size} rows that repeat another one (rows {i} and {j} first); merge their observations into "
            f"one row, or move the inputs apart by a little noise."
        )


def _check_finite(name: str, value: np.ndarray) -> None:
    if not np.isfinite(value).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
        raise NonFinite(f"{name}{list(at)} is {value[at]}; leave such rows out, or impute them.")
