"""`NumPyroTarget`: a NumPyro model as a target, on NumPyro's own machinery.

One call of `log_density` traces the model once. Its arguments that are arrays are leaves of the target's pytree, so
that new data of the same shape find the compiled program; a model that looks at its data with Python or NumPy (say
``int(x.max())``) cannot be traced so, and gets its arguments as they are, at the price of compiling once per data set.

References
----------
.. [1] D. Phan, N. Pradhan, M. Jankowiak (2019). Composable effects for flexible and accelerated probabilistic
   programming in NumPyro. arXiv:1912.11554.
"""

import dataclasses
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..errors import InvalidArgument, NotAvailable, PushforwardError, UnsupportedTarget
from .arguments import Layout, as_array, first_line, first_that_traces, name_of, short_name, shown, unwrap_partial
from .base import Site, Target
from .discover import Plan, discover, unvalidated
from .forward import check_nan, check_supports, observed_values, simulate
from .labelled import LabelledTarget, check_inside, check_values, pack, unpack
from .minibatch import FactoredTarget
from .names import with_dotted_names
from .rows import Rows, find_rows, row_likelihoods
from .static import ByContent, Labels


class NumPyroTarget(LabelledTarget, FactoredTarget):
    """The posterior of a NumPyro model. Make one with `Target.from_numpyro`."""

    data: list[Any]
    layout: Layout
    reparam: tuple[tuple[str, ByContent], ...] = eqx.field(static=True)
    plan: Plan = eqx.field(static=True)
    seen: tuple[tuple[str, Any], ...] = eqx.field(static=True)
    labels: Labels = eqx.field(static=True)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Latent sites in the order of ``u``, deterministic, then discrete ones."""
        return self.plan.sites

    @property
    def name(self) -> str:
        """Of the model."""
        return short_name(self.layout.join(self.data)[0])

    # -- the density ----------------------------------------------------------------------------------------------

    def log_density(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log joint density of data and ``u``, log-Jacobian included, discrete latents summed out."""
        return _log_density(self, u)

    @unvalidated
    def log_prior(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log prior density of ``u``, log-Jacobian included; ``numpyro.factor`` terms count as likelihood."""
        from numpyro.infer.util import potential_energy

        model, args, kwargs = self._without_data()
        return -potential_energy(model, args, kwargs, unpack(u, self.plan.unconstrained), enum=self.plan.enumerated)

    def _without_data(self) -> tuple[Callable, tuple, dict]:
        """Model, args and kwargs with observed sites and factors left out."""
        from numpyro import handlers

        jacobians = {f"_{name}_log_det" for name, _ in self.plan.unconstrained}

        def is_data(site: dict[str, Any]) -> bool:
            return site["type"] == "sample" and site["is_observed"] and site["name"] not in jacobians

        return self.ready(lambda model: handlers.block(model, hide_fn=is_data))

    @unvalidated
    def log_densities(self, u: Float[Array, " d"]) -> dict[str, Array]:
        """Log density of each site, of latents with their log-Jacobian; empty where sites are summed out jointly."""
        from numpyro.infer.util import _unconstrain_params, compute_log_probs

        if self.plan.enumerated:
            return {}
        model, args, kwargs = self.ready()
        params = unpack(u, self.plan.unconstrained)
        parts, _ = compute_log_probs(_unconstrain_params(model, params), args, kwargs, {})
        for name in params:
            if f"_{name}_log_det" in parts:
                parts[name] = parts[name] + parts.pop(f"_{name}_log_det")
        return parts

    def supports(self) -> dict[str, Any]:
        """NumPyro constraint of each latent site."""
        return dict(zip((name for name, _ in self.plan.unconstrained), self.plan.supports, strict=True))

    def log_density_at(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Log joint density of data and latent sites, in constrained coordinates, discrete latents summed out."""
        return self._log_density_at(values, *self.ready())

    @unvalidated
    def _log_density_at(self, values: dict[str, Array], model: Callable, args: tuple, kwargs: dict) -> Float[Array, ""]:
        if self.plan.enumerated:
            from numpyro.contrib.funsor import log_density
        else:
            from numpyro.infer.util import log_density
        return log_density(model, args, kwargs, {name: values[name] for name, _ in self.plan.unconstrained})[0]

    @unvalidated
    def prior_densities(self, values: dict[str, Array]) -> dict[str, Array]:
        """Log prior density of each latent site at one draw, in constrained coordinates, so without Jacobian."""
        from numpyro.infer.util import compute_log_probs

        if self.plan.hidden:
            raise NotAvailable(
                f"prior_densities needs the values of all sites, and the discrete ones of this target "
                f"({name_of(self.model)}) are summed out without being drawn back."
            )
        model, args, kwargs = self.ready(enum=False)
        given = {s.name: values[s.name] for s in self.sites if s.kind in ("latent", "discrete")}
        parts, _ = compute_log_probs(model, args, kwargs, given)
        return {name: parts[name] for name in given}

    @unvalidated
    def constrain(self, u: Float[Array, " d"]) -> dict[str, Array]:
        """Named values of the latent and the deterministic sites.

        Where deterministic sites depend on discrete ones, these are drawn given u under a fixed key; `draw` draws them
        anew under its own.
        """
        from numpyro import handlers
        from numpyro.infer.util import constrain_fn

        if self.plan.enumerated and not self.plan.hidden:
            values = self.draw(jax.random.key(0), u)
            return {s.name: values[s.name] for s in self.sites if s.kind != "discrete"}
        model, args, kwargs = self.ready(enum=False)
        if self.plan.enumerated:
            model = handlers.seed(model, 0)  # what depends on the discrete sites is dropped
        values = constrain_fn(model, args, kwargs, unpack(u, self.plan.unconstrained), return_deterministic=True)
        return {site.name: jnp.asarray(values[site.name]) for site in self.sites}

    @unvalidated
    def unconstrain(self, values: dict[str, Any]) -> Float[Array, " d"]:
        """The ``u`` at which the latent sites have these values; entries of other names are ignored."""
        from numpyro import handlers
        from numpyro.infer.util import unconstrain_fn

        latent = {site.name: site.shape for site in self.sites if site.kind == "latent"}
        values = check_values(values, latent)
        model, args, kwargs = self.ready(enum=False)
        if self.plan.enumerated:
            model = handlers.seed(model, 0)  # supports do not depend on discrete sites
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # "will automatically enumerate": it is meant to
            u = unconstrain_fn(model, args, kwargs, values)
        check_inside({k: u[k] for k in latent}, {site.name: site.support for site in self.sites})
        return pack(u, self.plan.unconstrained)

    def draw(self, key: PRNGKeyArray, u: Float[Array, " d"]) -> dict[str, Array]:
        """`constrain`, with the discrete latents drawn from their posterior given u."""
        if not self.plan.enumerated or self.plan.hidden:
            return self.constrain(u)
        from .enumerate import draw_discrete

        return draw_discrete(self, key, u)

    # -- structure --------------------------------------------------------------------------------------------------

    def structure(self) -> frozenset[str]:
        """See `Target.structure`; the first call looks whether the model's data come in rows (see `Target.has`)."""
        return self._known_structure() | ({"factors"} if self.has("factors") else set())

    def _known_structure(self) -> frozenset[str]:
        names = {"numpyro", "prior", "support"}
        if not self.plan.improper:
            names.add("proper_prior")
        if (self.plan.observed or self.plan.factors) and not self.plan.hidden:
            names.add("likelihood")
        if self.plan.observed:
            names.add("predictive")
        return frozenset(names)

    def has(self, name: str) -> bool:
        """Whether the target has this structure; only ``"factors"`` takes evaluations of the model to find out."""
        return isinstance(find_rows(self), Rows) if name == "factors" else name in self._known_structure()

    def require(self, method_name: str, requires: tuple[str, ...], hints: dict[str, str]) -> None:
        """See `Target.require`."""
        for name in requires:
            if name == "factors" and isinstance(why := find_rows(self), str):
                raise UnsupportedTarget(
                    f"{method_name} needs a target with factors; this one has none: {why}. Or {hints[name]}."
                )
        super().require(method_name, requires, hints)

    # -- rows of the data -----------------------------------------------------------------------------------------

    @property
    def num_factors(self) -> int:
        """Number of rows of the data, n."""
        return self._rows_found().length

    @property
    def rows(self) -> tuple[Any, ...]:
        """The arrays among the arguments that have one entry per row, in their order, rows on the leading axis."""
        return self._rows_found().cut(self)

    def factor_at(self, u: Float[Array, " d"], rows: Any) -> Float[Array, " b"]:
        """Log likelihood of each of some rows, given as `rows` has them; discrete latents are summed out."""
        return _row_likelihoods(self, u, rows, found=self._rows_found())

    def restricted(self, rows: Any) -> "NumPyroTarget":
        """The target of some of the rows alone, given as `rows` has them."""
        found = self._rows_found()
        part = found.restrict(self, rows)
        coords = {name: labels for name, labels in self.labels.coords.items() if len(labels) != found.length}
        return _build(part.layout, part.data, self.reparam, Labels({}, coords))

    def prior_given(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Log prior density at values of the latent sites, in constrained coordinates."""
        return self._log_density_at(values, *self._without_data())

    def factor_given(self, values: dict[str, Array], rows: Any) -> Float[Array, " b"]:
        """`factor_at` at values of the latent sites."""
        return self.factor_at(self.unconstrain(values), rows)

    def likelihood_parts(self, u: Float[Array, " d"]) -> dict[str, Array]:
        """Log likelihood by site; all of it, under the name ``""``, where discrete sites are summed out."""
        if self.plan.enumerated:
            return {"": self.log_density(u) - self.log_prior(u)}
        parts = self.log_densities(u)
        return {name: parts[name] for name in (*self._observed_names(), *self.plan.factors)}

    def _rows_found(self) -> Rows:
        found = find_rows(self)
        if isinstance(found, str):
            raise UnsupportedTarget(f"this target has no log likelihood for each observation: {found}.")
        return found

    @unvalidated
    def log_likelihood(self, values: dict[str, Array]) -> dict[str, Array]:
        """Log likelihood of each datum by observed site; of ``numpyro.factor`` sites where nothing is observed."""
        from numpyro.infer.util import log_likelihood

        if not self.has("likelihood"):
            raise NotAvailable(self._lacks("log_likelihood", "likelihood"))
        model, args, kwargs = self.ready(enum=False)
        given = {s.name: values[s.name] for s in self.sites if s.kind != "deterministic" and s.name in values}
        found = log_likelihood(model, given, *args, batch_ndims=0, **kwargs)
        return {name: found[name] for name in (self._observed_names() or self.plan.factors)}

    def sample_prior(self, key: PRNGKeyArray) -> dict[str, Array]:
        """One draw of all sites from the prior, observed ones included (factors are ignored)."""
        if self.plan.improper:
            raise NotAvailable(
                f"sample_prior needs a proper prior, and the site {self.plan.improper[0]!r} has an improper one; give "
                f"it a distribution."
            )
        model, args, kwargs = self.ready(enum=False)
        return simulate(key, model, args, kwargs, {})

    def predictive(self, key: PRNGKeyArray, values: dict[str, Array], *args: Any, **kwargs: Any) -> dict[str, Array]:
        """One draw of the observed sites given one draw of the latents.

        Parameters
        ----------
        values
            One draw, as `draw` returns it.
        *args, **kwargs
            Arguments of the model that replace the target's own, of any shapes; deterministic sites are then
            returned too. Latents whose shape changes with the new data, and discrete ones inside a plate, are drawn
            from their prior.
        """
        if not self.plan.observed:
            raise NotAvailable(self._lacks("predictive", "predictive"))
        fresh = bool(args or kwargs)
        model, own_args, own_kwargs = self.ready(enum=False)
        given = {s.name: values[s.name] for s in self.sites if s.kind != "deterministic" and s.name in values}
        if fresh:
            own_args, own_kwargs = jax.tree.map(as_array, (args, kwargs))
            given = {k: v for k, v in given.items() if k not in self.plan.local}

        keep = set(self._observed_names())
        if fresh:
            keep |= {site.name for site in self.sites if site.kind == "deterministic"}
        try:
            drawn = simulate(key, model, own_args, own_kwargs, given)
        except PushforwardError:
            raise
        except Exception as error:
            if not fresh:
                raise
            raise InvalidArgument(
                f"the model does not run on the new arguments ({shown(own_args, own_kwargs)}): {first_line(error)}; "
                f"pass what the model takes, without the observed values."
            ) from error
        return {name: value for name, value in drawn.items() if name in keep}

    # -- data -----------------------------------------------------------------------------------------------------

    @property
    def observed(self) -> dict[str, Any]:
        """Observed data by site, as NumPy arrays."""
        seen = dict(self.seen)
        if any(name not in seen for name in self._observed_names()):
            with jax.enable_x64(True):
                computed = {k: np.asarray(v) for k, v in observed_values(self).items()}
        else:
            computed = {}
        found = {}
        for name in self._observed_names():
            value = seen.get(name)
            if value is None:
                found[name] = computed[name]
            else:
                found[name] = np.asarray(self.data[value]) if isinstance(value, int) else value.value
        return found

    @property
    def model(self) -> Callable:
        """The model, reparameterised as asked."""
        return self.ready(enum=False)[0]

    @property
    def model_args(self) -> tuple[tuple, dict]:
        """Positional and keyword arguments of the model."""
        return self.ready(enum=False)[1:]

    def split(self, site: str) -> Target:
        """See `Target.split`."""
        from .composite import split

        return split(self, site)

    def replace(self, **options: Any) -> Self:
        """The same target with other options.

        Parameters
        ----------
        coords, dims
            Added to those there are; see `Target`.
        reparam
            Dict of site → NumPyro reparameterisation (``numpyro.infer.reparam``), e.g. ``LocScaleReparam(0)``.
        """
        self._check_options(options, ("coords", "dims", "reparam"))
        target = self
        if "reparam" in options:
            target = self._reparameterise(options.pop("reparam"))
        return target._relabel(options) if options else target

    def _reparameterise(self, config: Any) -> Self:
        if not isinstance(config, dict):
            raise InvalidArgument(f"reparam must be a dict of site → reparameterisation, got {config!r}.")
        latent = [site.name for site in self.sites if site.kind == "latent"]
        for name in config:
            if name not in latent:
                raise InvalidArgument(f"reparam names the site {name!r}; the latent sites are {', '.join(latent)}.")
        reparam = dict(self.reparam) | {name: ByContent(how) for name, how in config.items()}
        return _build(self.layout, self.data, tuple(reparam.items()), self.labels)

    def _identity(self) -> list[Any]:
        model, _, _ = self.layout.join(self.data)
        reparam = [(name, how.digest.hex()) for name, how in self.reparam]
        return [name_of(model), reparam, *self.data, *self.layout.fixed()]

    def _observed_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.plan.observed)

    def ready(self, wrap: Callable | None = None, *, enum: bool = True) -> tuple[Callable, tuple, dict]:
        """Model, args and kwargs as a computation needs them; ``wrap`` is applied inside of the enumeration."""
        from numpyro.infer.util import _substitute_default_key

        model, args, kwargs = self.layout.join([as_array(leaf) for leaf in self.data])
        model = _substitute_default_key(_reparameterised(model, self.reparam))
        if wrap is not None:
            model = wrap(model)
        if enum and self.plan.enumerated:
            from numpyro.contrib.funsor import config_enumerate
            from numpyro.contrib.funsor import enum as enumerated

            model = enumerated(config_enumerate(model), self.plan.enum_dim)
        return model, args, kwargs


def from_numpyro(model: Callable, /, *args: Any, **kwargs: Any) -> NumPyroTarget:
    """See `Target.from_numpyro`."""
    if not callable(model):
        raise InvalidArgument(f"model must be a function with NumPyro sites, got {model!r}.")
    model, args, kwargs = unwrap_partial(model, args, kwargs)

    def explain(error: Exception) -> str:
        return (
            f"the model {name_of(model)} does not run on the arguments given ({shown(args, kwargs)}): "
            f"{first_line(error)}; {_remedy(error)}."
        )

    return first_that_traces((model, args, kwargs), lambda layout, data: _build(layout, data, (), Labels()), explain)


def _build(layout: Layout, data: list[Any], reparam: tuple, labels: Labels) -> NumPyroTarget:
    def call(leaves: list[Any]) -> tuple[Callable, tuple, dict]:
        model, args, kwargs = layout.join(leaves)
        return _reparameterised(model, reparam), args, kwargs

    found = discover(call, data)
    seen = tuple((k, v if isinstance(v, int) else ByContent(v)) for k, v in found.seen.items())
    labels = Labels(dict(found.plan.dims) | labels.dims, labels.coords)
    target = NumPyroTarget(data, layout, reparam, found.plan, seen, labels)
    if target.plan.enumerated:
        with jax.enable_x64(True):  # what cannot be summed out is said here, not in a run
            jax.eval_shape(target.log_density, jax.ShapeDtypeStruct((target.dim,), np.float64))
    if target.plan.scanned and not _drawable(target):
        target = dataclasses.replace(target, plan=target.plan.without_discrete())
    check_nan(target, found.masks)
    check_supports(target, found.supports)
    return target


def _drawable(target: NumPyroTarget) -> bool:
    from .enumerate import NotDrawable

    try:
        with jax.enable_x64(True):
            jax.eval_shape(lambda u: target.draw(jax.random.key(0), u), jax.ShapeDtypeStruct((target.dim,), np.float64))
    except NotDrawable:
        return False
    return True


@partial(jax.jit, inline=True)  # the model runs once for each shape of its data, however often methods trace it
@unvalidated
def _log_density(target: NumPyroTarget, u: Array) -> Array:
    from numpyro.infer.util import potential_energy

    model, args, kwargs = target.ready()
    return -potential_energy(model, args, kwargs, unpack(u, target.plan.unconstrained), enum=target.plan.enumerated)


@partial(jax.jit, static_argnames="found", inline=True)
def _row_likelihoods(target: NumPyroTarget, u: Array, rows: Any, *, found: Rows) -> Array:
    return row_likelihoods(target, found, u, rows)


def _reparameterised(model: Callable, reparam: tuple[tuple[str, ByContent], ...]) -> Callable:
    model = with_dotted_names(model)
    if not reparam:
        return model
    from numpyro import handlers

    return handlers.reparam(model, config={name: how.value for name, how in reparam})


def _remedy(error: Exception) -> str:
    if isinstance(error, jax.errors.ConcretizationTypeError | jax.errors.TracerArrayConversionError):
        return "the model branches on a latent or gives one to NumPy: write it with jnp.where, lax.cond and jax.numpy"
    return "make shapes and names of the data match the model"
