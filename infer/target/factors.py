"""`FactorTarget`: log prior plus one log likelihood per observation, for mini-batches, shards and LOO."""

from collections.abc import Callable
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..errors import InvalidArgument
from .arguments import Layout, as_array, as_given, first_line, is_array, name_of, splits
from .base import Site
from .labelled import LabelledTarget
from .log_density import Coordinates, check_scalar, coordinates
from .minibatch import FactoredTarget
from .static import Labels

FACTORS = "factors"


class FactorTarget(LabelledTarget, FactoredTarget):
    """log π(x) = log prior(x) + Σᵢ log likelihood(x, dataᵢ). Make one with `Target.from_factors`.

    Attributes
    ----------
    data
        Arrays with a common leading axis of length n, one entry per observation.
    """

    data: Any
    functions: list[Any]
    layout: Layout
    coordinates: Coordinates
    labels: Labels = eqx.field(static=True)

    @property
    def sites(self) -> tuple[Site, ...]:
        """One site per leaf of the example, in its order."""
        return self.coordinates.sites

    @property
    def num_factors(self) -> int:
        """Number of observations, n."""
        return jax.tree.leaves(self.data)[0].shape[0]

    @property
    def rows(self) -> Any:
        """The data, one entry per observation on the leading axis."""
        return self.data

    def structure(self) -> frozenset[str]:
        """See `Target.structure`."""
        return frozenset({"prior", "likelihood", "factors", "support"})

    def supports(self) -> dict[str, Any]:
        """NumPyro constraint of each site."""
        return self.coordinates.by_site()

    def log_density_at(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Log prior and all log likelihoods."""
        params = self.coordinates.assemble(values)
        return self._prior(params) + jnp.sum(self._likelihoods(params, self.data))

    def log_density(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log prior, all log likelihoods, and the log-Jacobian."""
        values, log_det = self.coordinates.constrain(u)
        return self.log_density_at(values) + log_det

    def log_prior(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log prior density of ``u``, log-Jacobian included."""
        params, log_det = self._params(u)
        return self._prior(params) + log_det

    def factor_at(self, u: Float[Array, " d"], rows: Any) -> Float[Array, " b"]:
        """Log likelihood of each of some observations, given as `rows` has them."""
        return self._likelihoods(self._params(u)[0], rows)

    def prior_given(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Log prior density at values of the sites."""
        return self._prior(self.coordinates.assemble(values))

    def factor_given(self, values: dict[str, Array], rows: Any) -> Float[Array, " b"]:
        """`factor_at` at values of the sites."""
        return self._likelihoods(self.coordinates.assemble(values), rows)

    def restricted(self, rows: Any) -> Self:
        """The target of some of the observations alone, given as `rows` has them."""
        return self.replace(data=rows)

    def log_likelihood(self, values: dict[str, Array]) -> dict[str, Array]:
        """Log likelihood of each observation, under the name ``"factors"``."""
        return {FACTORS: self._likelihoods(self.coordinates.assemble(values), self.data)}

    def log_densities(self, u: Float[Array, " d"]) -> dict[str, Array]:
        """The prior with the log-Jacobian, and the likelihood."""
        params, log_det = self._params(u)
        return {"prior": self._prior(params) + log_det, FACTORS: jnp.sum(self._likelihoods(params, self.data))}

    def prior_densities(self, values: dict[str, Array]) -> dict[str, Array]:
        """The log prior as a whole, at one draw."""
        return {"prior": self._prior(self.coordinates.assemble(values))}

    def constrain(self, u: Float[Array, " d"]) -> dict[str, Array]:
        """Values of the leaves by their names."""
        return self.coordinates.constrain(u)[0]

    def unconstrain(self, values: dict[str, Any]) -> Float[Array, " d"]:
        """The ``u`` at which the sites have these values; entries of other names are ignored."""
        return self.coordinates.unconstrain(values)

    def replace(self, **options: Any) -> Self:
        """The same target with other ``coords``, ``dims`` or ``data``."""
        self._check_options(options, ("coords", "data", "dims"))
        target = self
        if "data" in options:
            functions = self.layout.join(self.functions)
            target = _build(*functions, options.pop("data"), self.coordinates, self.labels)
        return target._relabel(options) if options else target

    def _params(self, u: Float[Array, " d"]) -> tuple[Any, Array]:
        values, log_det = self.coordinates.constrain(u)
        return self.coordinates.assemble(values), log_det

    def _prior(self, params: Any) -> Array:
        return self.layout.join([as_array(leaf) for leaf in self.functions])[0](params)

    def _likelihoods(self, params: Any, data: Any) -> Float[Array, " n"]:
        log_likelihood = self.layout.join([as_array(leaf) for leaf in self.functions])[1]
        return jax.vmap(log_likelihood, in_axes=(None, 0))(params, jax.tree.map(as_array, data))

    def _identity(self) -> list[Any]:
        supports = [support.digest.hex() for support in self.coordinates.supports]
        names = [name_of(fn) for fn in self.layout.join(self.functions)]
        return [names, supports, self.data, self.functions, self.layout.fixed()]


def from_factors(
    log_prior: Callable, log_likelihood: Callable, data: Any, example: Any, support: Any = None
) -> FactorTarget:
    """See `Target.from_factors`."""
    for name, fn in (("log_prior", log_prior), ("log_likelihood", log_likelihood)):
        if not callable(fn):
            raise InvalidArgument(f"{name} must be a function, got {fn!r}.")
    return _build(log_prior, log_likelihood, data, coordinates(example, support), Labels())


def _build(
    log_prior: Callable, log_likelihood: Callable, data: Any, where: Coordinates, labels: Labels
) -> FactorTarget:
    data = _with_leading_axis(data)
    layout, functions = next(splits((log_prior, log_likelihood)))
    target = FactorTarget(data, functions, layout, where, labels)
    values = {site.name: jax.ShapeDtypeStruct(site.shape, np.float64) for site in where.sites}
    datum = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), data)
    for name, fn, args in (("log_prior", log_prior, ()), ("log_likelihood", log_likelihood, (datum,))):
        try:
            check_scalar(name, lambda values, *args, fn=fn: fn(where.assemble(values), *args), values, *args)
        except InvalidArgument:
            raise
        except Exception as error:
            raise InvalidArgument(
                f"{name} ({name_of(fn)}) does not run on parameters of the example's shapes"
                f"{' and one observation' if args else ''}: {first_line(error)}; write it with jax.numpy for "
                f"{'one entry of data, which has no leading axis' if args else 'such a pytree'}."
            ) from error
    return target


def _with_leading_axis(data: Any) -> Any:
    """The data as arrays, all of one length; raise otherwise."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(data)
    found: dict[str, int] = {}
    arrays = []
    for path, leaf in leaves:
        name = f"data{jax.tree_util.keystr(path)}"
        array = as_given(leaf)
        if not is_array(array) or np.ndim(array) == 0:
            raise InvalidArgument(f"{name} must be an array of numbers with one entry per observation, got {leaf!r}.")
        found[name] = array.shape[0]
        arrays.append(array)
    if not found:
        raise InvalidArgument(f"data must be a pytree of arrays with one entry per observation, got {data!r}.")
    if len(set(found.values())) > 1 or 0 in found.values():
        lengths = ", ".join(f"{name}: {length}" for name, length in found.items())
        raise InvalidArgument(f"all arrays of data must have one length above 0 along axis 0, got {lengths}.")
    return jax.tree.unflatten(treedef, arrays)
