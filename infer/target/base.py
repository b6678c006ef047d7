"""`Target`: an unnormalised log density on R^d, with whatever structure a method can exploit."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from ..errors import InvalidArgument, NotAvailable, UnsupportedTarget
from .static import fingerprint


@dataclasses.dataclass(frozen=True)
class Site:
    """One named quantity of a target.

    Parameters
    ----------
    name
        Its name, as in the model.
    shape
        Shape of one value in constrained coordinates.
    dtype
        Name of its NumPy dtype in 64-bit mode, e.g. ``"float64"``.
    support
        The support in words, e.g. ``"positive"``, ``"simplex"``, ``"real"``; ``""`` for a deterministic site.
    kind
        ``"latent"`` (part of u), ``"deterministic"`` (computed from u) or ``"discrete"`` (drawn back given u).
    size
        Number of unconstrained coordinates that the site takes in u (0 unless latent).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float64"
    support: str = "real"
    kind: str = "latent"
    size: int = 0


class Target(eqx.Module):
    """An unnormalised log density of a flat vector ``u`` in R^d, a pytree whose leaves are the data.

    A target crosses ``jax.jit`` as an argument: new data of the same shape compile nothing. Its data are kept as NumPy
    arrays as given, so that making one starts no accelerator and loses no precision.

    Make one with `Target.from_numpyro`, `Target.from_log_density`, `Target.from_factors`, `Target.composite` or
    `Target.from_pymc`.

    Attributes
    ----------
    sites : tuple of Site
        Latent sites in the order in which they stand in ``u``, then deterministic, then discrete ones.
    dims : dict
        Name of a site → the names of its dimensions, for ArviZ. Sites without an entry get ArviZ's default names.
    coords : dict
        Name of a dimension → its labels, for ArviZ.
    """

    sites: eqx.AbstractVar[tuple[Site, ...]]
    dims: eqx.AbstractVar[dict[str, tuple[str, ...]]]
    coords: eqx.AbstractVar[dict[str, Any]]

    # -- ways to make one ---------------------------------------------------------------------------------------------

    @staticmethod
    def from_numpyro(model: Callable, /, *args: Any, **kwargs: Any) -> "Target":
        """The posterior of a NumPyro model.

        Parameters
        ----------
        model
            A function with NumPyro sites. Discrete latents are summed out by enumeration and drawn back afterwards.
        *args, **kwargs
            All go to the model. Arrays, also those in dicts, lists and tuples, are leaves of the target: new data of
            the same shape compile nothing. A model that looks at its data with Python or NumPy works too, and compiles
            once per data set.

        Raises
        ------
        InvalidArgument
            The data do not fit the model, or it has no continuous latent site.
        UnsupportedTarget
            A discrete latent that cannot be enumerated, or without funsor installed; a random subsample.
        NonFinite
            NaN in observed data which the model neither masks nor imputes.
        """
        from .numpyro_model import from_numpyro

        return from_numpyro(model, *args, **kwargs)

    @staticmethod
    def from_log_density(fn: Callable, example: Any, support: Any = None, *, data: Any = None) -> "Target":
        """A target with a given log density over a pytree of real arrays.

        Parameters
        ----------
        fn
            ``fn(params) -> scalar``: log density in constrained coordinates, up to a constant; with ``data``,
            ``fn(params, data)``.
        example
            A pytree (array, dict, named tuple, equinox module, …) with the structure and shapes of ``params``. Sites
            are named by their path, ``"a.b"``; a bare array is called ``x``.
        support
            Pytree of NumPyro constraints of the structure of ``example`` (None for a real leaf), or a dict of some
            sites' names; None for all real. The log-Jacobian of the bijection is added to ``fn``.
        data
            Pytree given to ``fn``; its arrays are leaves of the target.

        Raises
        ------
        InvalidArgument
            ``support`` does not match ``example``, or ``fn`` does not return a scalar.
        """
        from .log_density import from_log_density

        return from_log_density(fn, example, support, data=data)

    @staticmethod
    def from_factors(
        log_prior: Callable, log_likelihood: Callable, data: Any, example: Any, support: Any = None
    ) -> "Target":
        """A log prior plus one log likelihood per observation.

        Parameters
        ----------
        log_prior
            ``log_prior(params) -> scalar``, in constrained coordinates.
        log_likelihood
            ``log_likelihood(params, datum) -> scalar`` of one observation: an entry of ``data`` along axis 0.
        data
            Pytree of arrays with a common leading axis.
        example, support
            As in `Target.from_log_density`.

        Raises
        ------
        InvalidArgument
            The arrays of ``data`` differ in length, or a function does not return a scalar.
        """
        from .factors import from_factors

        return from_factors(log_prior, log_likelihood, data, example, support)

    @staticmethod
    def from_stream(
        log_prior: Callable,
        log_likelihood: Callable,
        source: Any,
        example: Any,
        support: Any = None,
        *,
        num_rows: int | None = None,
        block_rows: int | None = None,
        seed: int = 0,
    ) -> "Target":
        """A log prior plus one log likelihood per observation, of observations that do not fit in memory.

        For methods of mini-batches (`pushforward.SGLD`, `pushforward.SGHMC`). Blocks of shuffled rows are read on a
        thread while the block before is in use.

        Parameters
        ----------
        log_prior, log_likelihood, example, support
            As in `Target.from_factors`.
        source
            A pytree of arrays on disk with a common leading axis (NumPy memory maps, zarr arrays), or a zarr group of
            them; or a function that returns an iterator over blocks of rows, whose order stays the same: they are
            shuffled within what is in memory only.
        num_rows
            Number of rows that such an iterator gives.
        block_rows
            Rows in memory at a time; by default 32 MB of them. Up to four blocks are held.
        seed
            Of the shuffling.

        Raises
        ------
        InvalidArgument
            The arrays differ in length, rows are not alike, or an iterator ends before ``num_rows`` rows.
        NonFinite
            A row that is read has NaN or infinity.
        """
        from .stream import from_stream

        return from_stream(
            log_prior, log_likelihood, source, example, support, num_rows=num_rows, block_rows=block_rows, seed=seed
        )

    @staticmethod
    def from_local_rows(
        log_prior: Callable, log_likelihood: Callable, rows: Any, example: Any, support: Any = None
    ) -> "Target":
        """The same as `from_factors`, of the rows of all processes, each of which gives those that it has.

        Rows stay where they are; log likelihoods and gradients travel. All processes must call it; see
        `pushforward.distributed`. In one process the rows are shared out over its devices.

        Parameters
        ----------
        rows
            Pytree of arrays with a common leading axis: the observations of this process. Together they count in the
            order of the processes.
        log_prior, log_likelihood, example, support
            As in `Target.from_factors`, the same in all processes.

        Raises
        ------
        InvalidArgument
            See `Target.from_factors`.
        DistributedError
            Rows of other shapes or dtypes, or other functions, in another process.
        """
        from .spread import from_local_rows

        return from_local_rows(log_prior, log_likelihood, rows, example, support)

    @staticmethod
    def composite(smooth: Any, nonsmooth: Any, example: Any = None, support: Any = None) -> "Target":
        """A smooth target minus a nonsmooth convex term: log π = f − g, in unconstrained coordinates.

        Parameters
        ----------
        smooth
            A `Target`, or a log density as in `Target.from_log_density` (then with ``example`` and ``support``).
        nonsmooth
            Object with ``value(u) -> scalar`` and ``prox(u, step) -> u``, e.g. `pushforward.infer.geometry.L1`.

        Raises
        ------
        InvalidArgument
            ``nonsmooth`` lacks one of the methods, or does not fit the sites.
        """
        from .composite import composite

        return composite(smooth, nonsmooth, example, support)

    @staticmethod
    def from_pymc(model: Any) -> "Target":
        """The posterior of a PyMC model, with its coords and dims (extra ``pushforward[pymc]``).

        Parameters
        ----------
        model
            A ``pymc.Model``. Its data become constants of the compiled program.

        Raises
        ------
        UnsupportedTarget
            PyMC is not installed, or the model has discrete free variables.
        """
        from .pymc_model import from_pymc

        return from_pymc(model)

    # -- what every target has ------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Of the user's model or function, for titles; ``""`` where it has none."""
        return ""

    @property
    def dim(self) -> int:
        """Number of unconstrained coordinates, d."""
        return sum(site.size for site in self.sites)

    @abc.abstractmethod
    def log_density(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Unnormalised log density of the unconstrained ``u``, log-Jacobian of `constrain` included."""

    @abc.abstractmethod
    def constrain(self, u: Float[Array, " d"]) -> dict[str, Array]:
        """Named values of the latent and the deterministic sites at ``u``."""

    @abc.abstractmethod
    def unconstrain(self, values: dict[str, Any]) -> Float[Array, " d"]:
        """The ``u`` at which the latent sites have these values; entries of other names are ignored."""

    def initial(self, key: PRNGKeyArray) -> Float[Array, " d"]:
        """A random start: uniform on (-2, 2) in every unconstrained coordinate, as Stan and NumPyro do."""
        return jax.random.uniform(key, (self.dim,), minval=-2.0, maxval=2.0)

    def log_densities(self, u: Float[Array, " d"]) -> dict[str, Array]:
        """Parts of the log density by site, to say which one fails; empty where there are none."""
        del u
        return {}

    def prior_densities(self, values: dict[str, Array]) -> dict[str, Array]:
        """Log prior density of each latent site at one draw, in constrained coordinates, so without Jacobian."""
        raise NotAvailable(self._lacks("prior_densities", "prior"))

    def draw(self, key: PRNGKeyArray, u: Float[Array, " d"]) -> dict[str, Array]:
        """What is kept of ``u``: `constrain`, and whatever is drawn back given u (marginalised discrete sites)."""
        del key
        return self.constrain(u)

    # -- what some targets have -------------------------------------------------------------------------------------

    def structure(self) -> frozenset[str]:
        """Names of the optional structure present.

        Any of ``"prior"`` (log density = log prior + log likelihood), ``"proper_prior"`` (and the prior can be
        sampled), ``"likelihood"`` (pointwise), ``"predictive"``, ``"support"`` (of each site, and the density in
        constrained coordinates), ``"composite"``, ``"factors"`` (one log likelihood per observation, by row of the
        data), ``"shards"`` (these dealt out to agents), ``"stream"`` (read block by block), ``"numpyro"`` (the model
        itself, for guides), ``"last_layer"`` (a network with a Bayesian last layer).
        """
        return frozenset()

    def has(self, name: str) -> bool:
        """Whether ``name`` is in `structure`, without looking for what else there is."""
        return name in self.structure()

    def log_prior(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log prior density of ``u``, log-Jacobian included; `log_density` minus this is the log likelihood."""
        raise NotAvailable(self._lacks("log_prior", "prior"))

    def supports(self) -> dict[str, Any]:
        """NumPyro constraint of each latent site, as a `ByContent`; None where it depends on data or other sites."""
        raise NotAvailable(self._lacks("supports", "support"))

    def log_density_at(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Log density at values of the latent sites, in constrained coordinates: without log-Jacobian."""
        raise NotAvailable(self._lacks("log_density_at", "support"))

    def log_likelihood(self, values: dict[str, Array]) -> dict[str, Array]:
        """Pointwise log likelihood of each observed site at one draw (a dict as `draw` returns it)."""
        raise NotAvailable(self._lacks("log_likelihood", "likelihood"))

    def sample_prior(self, key: PRNGKeyArray) -> dict[str, Array]:
        """One draw of all sites from the prior, observed ones included (prior predictive)."""
        raise NotAvailable(self._lacks("sample_prior", "proper_prior"))

    def predictive(self, key: PRNGKeyArray, values: dict[str, Array], *args: Any, **kwargs: Any) -> dict[str, Array]:
        """One draw of the observed sites given one draw of the latents.

        ``args`` and ``kwargs`` replace the target's own covariates (any shapes); without them the target's data are
        used with the observed values removed.
        """
        raise NotAvailable(self._lacks("predictive", "predictive"))

    @property
    def observed(self) -> dict[str, Any]:
        """Observed data by site name; empty where the target does not know them."""
        return {}

    def replace(self, **options: Any) -> "Target":
        """The same target with other options (``coords``, ``dims``, …)."""
        names = {f.name for f in dataclasses.fields(self)}
        settable = sorted(names & {"dims", "coords"})
        for name in options:
            if name not in settable:
                raise InvalidArgument(f"replace got the unknown option {name!r}; it takes {', '.join(settable)}.")
        return dataclasses.replace(self, **options)

    def split(self, site: str) -> "Target":
        """The same target with the Laplace prior of ``site`` as its nonsmooth part g(x) = |x − loc| / scale.

        Raises
        ------
        UnsupportedTarget
            The site has another prior, or its scale depends on other latents.
        """
        raise UnsupportedTarget(
            f"split({site!r}) needs a target made with Target.from_numpyro, and this is a {type(self).__name__}; use "
            f"Target.composite(smooth, nonsmooth)."
        )

    def sharded(self, by: Any) -> "Target":
        """The same target with its observations dealt out to agents, for methods that never bring them together.

        Parameters
        ----------
        by
            A number of agents, which get blocks of (nearly) equal size in the order of the data; or, for shards of any
            size, the agent 0, 1, … of each observation, an integer array.

        Raises
        ------
        UnsupportedTarget
            The target has no log likelihood for each observation.
        InvalidArgument
            An agent has no observation, or the array has another length.
        """
        from .shards import sharded

        return sharded(self, by)

    # -- data that do not fit in memory -------------------------------------------------------------------------------

    def block_at(self, stage: int, t: int) -> Any:
        """Which rows of the data iteration ``t`` of a stage uses, for `with_block`; None where all are there."""
        del stage, t

    def block_ends(self, t: int) -> int | None:
        """The iteration at which the block of iteration ``t`` has served; None where all data are there."""
        del t

    def with_block(self, block: Any) -> "Target":
        """The same target with these rows in memory."""
        del block
        return self

    def check(self, num_starts: int = 3, key: int = 0) -> Any:
        """Per site shape, support, log density and gradient at several random starts, as a table.

        Parameters
        ----------
        num_starts
            Number of starts, drawn as `initial` does.
        key
            Seed of the starts.
        """
        from .check import check

        return check(self, num_starts, key)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the target's class, sites, dims, model and data: equal where a run may be resumed."""
        return fingerprint([type(self).__qualname__, self.sites, sorted(self.dims.items()), self._identity()])

    def _identity(self) -> list[Any]:
        """What tells this target from others with the same sites: names of its functions, and its data."""
        return jax.tree.leaves(self)

    def require(self, method_name: str, requires: tuple[str, ...], hints: dict[str, str]) -> None:
        """Raise `UnsupportedTarget` in one sentence unless all of ``requires`` is present."""
        for name in requires:
            if not self.has(name) and not (name == "shards" and self.has("factors")):  # which can be dealt out
                raise UnsupportedTarget(f"{method_name} needs a target with {name}; this one has none: {hints[name]}.")

    def __hash__(self) -> int:
        """By identity, so that `jax.jit` takes the bound methods of a target although its arrays have no hash."""
        return id(self)

    def _lacks(self, what: str, name: str) -> str:
        return f"{what} needs a target with {name}, and {type(self).__name__} has none; see Target's constructors."
