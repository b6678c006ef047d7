"""`PyMCTarget`: a PyMC model as a target, compiled by PyTensor to JAX; PyMC is an optional extra.

PyMC's own transforms map to the real line. Its data and constants are part of the compiled program, so new data compile
anew. Where a transform is the bijection that NumPyro has for a support too (log, log odds, and intervals with constant
ends), the support is known, and samplers in constrained coordinates can be used.
"""

import contextlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..errors import InvalidArgument, NotAvailable, UnsupportedTarget
from .base import Site
from .labelled import LabelledTarget, check_inside, check_values, pack, unpack
from .static import ByContent, Labels, fingerprint
from .words import describe

PYMC_INSTALL = 'pip install "pushforward[pymc]"'


class Programs(eqx.Module):
    """The JAX functions of one PyMC model; compared by identity.

    Each takes the unconstrained values in the order of ``u``, `unconstrain` the constrained ones; ``log_density_at``
    and ``prior_densities`` are without the log-Jacobian, ``parts`` of the log density are with it.
    """

    log_density: Callable = eqx.field(static=True)
    log_prior: Callable = eqx.field(static=True)
    log_likelihood: Callable | None = eqx.field(static=True)
    constrain: Callable = eqx.field(static=True)
    unconstrain: Callable = eqx.field(static=True)
    log_density_at: Callable = eqx.field(static=True)
    prior_densities: Callable = eqx.field(static=True)
    parts: Callable = eqx.field(static=True)
    digest: str = eqx.field(static=True)


class PyMCTarget(LabelledTarget):
    """The posterior of a PyMC model. Make one with `Target.from_pymc`."""

    programs: Programs
    sites: tuple[Site, ...] = eqx.field(static=True)
    unconstrained: tuple[tuple[str, tuple[int, ...]], ...] = eqx.field(static=True)
    constraints: tuple[tuple[str, ByContent | None], ...] = eqx.field(static=True)
    likelihoods: tuple[str, ...] = eqx.field(static=True)
    parts: tuple[str, ...] = eqx.field(static=True)
    data: dict[str, Any]
    labels: Labels = eqx.field(static=True)

    @property
    def observed(self) -> dict[str, Any]:
        """Observed data by variable."""
        return dict(self.data)

    def structure(self) -> frozenset[str]:
        """See `Target.structure`."""
        return frozenset({"prior", "support", *(["likelihood"] if self.likelihoods else [])})

    def supports(self) -> dict[str, Any]:
        """NumPyro constraint of each free variable; None where PyMC's transform has no counterpart."""
        return dict(self.constraints)

    def log_density_at(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Log probability of model and data at constrained values, without a log-Jacobian."""
        return jnp.asarray(self.programs.log_density_at(*self._values(self.unconstrain(values)))[0])

    def log_density(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """PyMC's log probability of model and data, log-Jacobian included."""
        return jnp.asarray(self.programs.log_density(*self._values(u))[0])

    def log_prior(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log prior density of ``u``, log-Jacobian included; potentials count as likelihood."""
        return jnp.asarray(self.programs.log_prior(*self._values(u))[0])

    def log_densities(self, u: Float[Array, " d"]) -> dict[str, Array]:
        """Log density of each free and observed variable and of each potential, log-Jacobian included."""
        return dict(zip(self.parts, map(jnp.asarray, self.programs.parts(*self._values(u))), strict=True))

    def prior_densities(self, values: dict[str, Array]) -> dict[str, Array]:
        """Log prior density of each free variable at one draw, without log-Jacobian."""
        found = self.programs.prior_densities(*self._values(self.unconstrain(values)))
        return {name: jnp.asarray(value) for (name, _), value in zip(self.unconstrained, found, strict=True)}

    def constrain(self, u: Float[Array, " d"]) -> dict[str, Array]:
        """Values of free and deterministic variables."""
        found = self.programs.constrain(*self._values(u))
        return {site.name: jnp.asarray(value) for site, value in zip(self.sites, found, strict=True)}

    def unconstrain(self, values: dict[str, Any]) -> Float[Array, " d"]:
        """The ``u`` at which the free variables have these values; entries of other names are ignored."""
        latent = {site.name: site for site in self.sites if site.kind == "latent"}
        values = check_values(values, {name: site.shape for name, site in latent.items()})
        found = self.programs.unconstrain(*values.values())
        u = {name: jnp.asarray(value) for (name, _), value in zip(self.unconstrained, found, strict=True)}
        check_inside(u, {name: site.support for name, site in latent.items()})
        return pack(u, self.unconstrained)

    def log_likelihood(self, values: dict[str, Array]) -> dict[str, Array]:
        """Log likelihood of each datum by observed variable."""
        if self.programs.log_likelihood is None:
            raise NotAvailable(self._lacks("log_likelihood", "likelihood"))
        found = self.programs.log_likelihood(*self._values(self.unconstrain(values)))
        return {name: jnp.asarray(value) for name, value in zip(self.likelihoods, found, strict=True)}

    def _values(self, u: Float[Array, " d"]) -> list[Array]:
        return list(unpack(u, self.unconstrained).values())

    def _identity(self) -> list[Any]:
        return [self.programs.digest, self.data]


def from_pymc(model: Any) -> PyMCTarget:
    """See `Target.from_pymc`."""
    if importlib.util.find_spec("pymc") is None:
        raise UnsupportedTarget(f"Target.from_pymc needs PyMC, which is not installed: {PYMC_INSTALL}.")
    with _quiet():
        import pymc

        if not isinstance(model, pymc.Model):
            raise InvalidArgument(f"model must be a pymc.Model, got {model!r}; pass the model, not its draws.")
        for variable in model.free_RVs:
            if "int" in str(variable.dtype) or "bool" in str(variable.dtype):
                raise UnsupportedTarget(
                    f"the free variable {variable.name!r} of the PyMC model is discrete; sum it out with pm.Mixture or "
                    f"pymc_extras.marginalize."
                )
        if not model.free_RVs:
            raise InvalidArgument(f"the PyMC model {model.name!r} has no free variable, so there is nothing to infer.")
        return _build(model)


def _build(model: Any) -> PyMCTarget:
    from pymc.sampling.jax import get_jaxified_graph
    from pymc.util import get_default_varnames

    kept = get_default_varnames([*model.free_RVs, *model.deterministics], include_transformed=False)
    by_variable = {variable.name: variable for variable in kept}
    at_values = model.replace_rvs_by_values([by_variable[name] for name in by_variable])
    terms = [*model.basic_RVs, *model.potentials]
    programs = Programs(
        log_density=get_jaxified_graph(model.value_vars, [model.logp()]),
        log_prior=get_jaxified_graph(model.value_vars, [model.logp(vars=model.free_RVs)]),
        log_likelihood=get_jaxified_graph(model.value_vars, model.logp(vars=model.observed_RVs, sum=False))
        if model.observed_RVs
        else None,
        constrain=get_jaxified_graph(model.value_vars, at_values),
        unconstrain=_unconstrain_program(model),
        log_density_at=get_jaxified_graph(model.value_vars, [model.logp(jacobian=False)]),
        prior_densities=get_jaxified_graph(
            model.value_vars, model.logp(vars=model.free_RVs, jacobian=False, sum=False)
        ),
        parts=get_jaxified_graph(model.value_vars, [part.sum() for part in model.logp(vars=terms, sum=False)]),
        digest=_digest(model, [model.logp(), *at_values]),
    )
    point = model.initial_point()
    unconstrained = tuple((rv.name, tuple(np.shape(point[model.rvs_to_values[rv].name]))) for rv in model.free_RVs)
    with jax.enable_x64(True):
        start = [jax.ShapeDtypeStruct(shape, np.float64) for _, shape in unconstrained]
        shapes = [(out.shape, out.dtype.name) for out in jax.eval_shape(programs.constrain, *start)]
    free = dict(unconstrained)
    constraints = tuple((rv.name, _constraint(model, rv)) for rv in model.free_RVs)
    sites = tuple(
        Site(
            name,
            shape,
            dtype,
            _support(model, by_variable[name], dict(constraints)[name]),
            "latent",
            int(np.prod(free[name])),
        )
        if name in free
        else Site(name, shape, dtype, "", "deterministic")
        for name, (shape, dtype) in zip(by_variable, shapes, strict=True)
    )
    data = {rv.name: np.asarray(model.rvs_to_values[rv].eval()) for rv in model.observed_RVs}
    named = {*by_variable, *data}
    dims = {
        site: tuple(f"{site}_dim_{i}" if name is None else name for i, name in enumerate(names))
        for site, names in model.named_vars_to_dims.items()
        if site in named
    }
    used = {name for names in dims.values() for name in names}
    coords = {name: np.asarray(c) for name, c in model.coords.items() if c is not None and name in used}
    likelihoods = tuple(rv.name for rv in model.observed_RVs)
    parts = tuple(term.name for term in terms)
    return PyMCTarget(programs, sites, unconstrained, constraints, likelihoods, parts, data, Labels(dims, coords))


def _digest(model: Any, graph: list[Any]) -> str:
    """What tells the model from others: its text, and all the numbers in its graph, which the text does not have."""
    roots = _roots(graph)
    constants = [root.data for root in roots if hasattr(root, "data")]
    replaceable = [root.get_value() for root in roots if hasattr(root, "get_value")]
    return fingerprint([model.str_repr(), constants, replaceable])


def _roots(graph: list[Any]) -> list[Any]:
    """Constants, data and free values that these variables are computed from."""
    try:
        from pytensor.graph.traversal import graph_inputs
    except ImportError:  # where older releases have it
        from pytensor.graph.basic import graph_inputs

    return list(graph_inputs(graph))


def _unconstrain_program(model: Any) -> Callable:
    """Free variables → their unconstrained values, by the model's own transforms."""
    from pymc.sampling.jax import get_jaxified_graph
    from pytensor.graph.replace import clone_replace

    inputs = [rv.type(name=f"{rv.name}_constrained") for rv in model.free_RVs]
    outputs = []
    for rv, value in zip(model.free_RVs, inputs, strict=True):
        transform = model.rvs_to_transforms[rv]
        outputs.append(value if transform is None else transform.forward(value, *rv.owner.inputs))
    return get_jaxified_graph(inputs, clone_replace(outputs, dict(zip(model.free_RVs, inputs, strict=True))))


def _constraint(model: Any, variable: Any) -> ByContent | None:
    """The support whose bijection in NumPyro is the variable's transform, if there is one."""
    from numpyro.distributions import constraints
    from pytensor.graph.basic import Constant

    transform = model.rvs_to_transforms[variable]
    plain = {None: constraints.real, "log": constraints.positive, "logodds": constraints.unit_interval}
    name = None if transform is None else transform.name
    if name in plain:
        return ByContent(plain[name])
    if transform is None or name != "interval":
        return None
    ends = transform.args_fn(*variable.owner.inputs)
    if not all(isinstance(root, Constant) for root in _roots([end for end in ends if end is not None])):
        return None  # it depends on other variables, or on data that may be replaced
    lower, upper = (None if end is None else np.asarray(end.eval(), float) for end in ends)
    if lower is None:
        return ByContent(constraints.less_than(upper)) if upper is not None else ByContent(constraints.real)
    return ByContent(constraints.greater_than(lower) if upper is None else constraints.interval(lower, upper))


def _support(model: Any, variable: Any, known: ByContent | None) -> str:
    if known is not None:
        return describe(known.value)
    name = model.rvs_to_transforms[variable].name
    return {"ordered": "ordered_vector"}.get(name, name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """PyTensor sets JAX's 64-bit mode for the process when imported: put it back. Its warnings concern its users."""
    before = jax.config.jax_enable_x64
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if jax.config.jax_enable_x64 != before:
            jax.config.update("jax_enable_x64", before)
