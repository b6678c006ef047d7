"""`LastLayer`: a network with a Bayesian last layer, and its data, as a target.

What is inferred is the head's: the weights w of the last layer (and the noise precision of a `StudentTHead`, …). The
target's log density is that of the *present* features and noise, which any method samples (NUTS on frozen features is
the gold answer for a head). `pushforward.VBLL` learns features and head together; the target of its posterior is the
same with what was learned in it.

x and y are standardised with the means and standard deviations of the training rows (x where it is a table, y where it
is real), and everything that comes back is in the units of y: densities too, so that evidences of different
standardisations compare.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.errors import InvalidArgument, NonFinite
from ...infer.target.arguments import Layout, as_given, first_line, name_of, splits
from ...infer.target.base import Site
from ...infer.target.labelled import LabelledTarget
from ...infer.target.log_density import Coordinates, coordinates
from ...infer.target.static import Labels, check_labels
from ...infer.validate import check_fraction
from .classification import check_labels as check_classes
from .classification import entropy
from .head import AbstractHead
from .variational_features import VariationalFeatures, mixed

FEWEST = 2


class Units(NamedTuple):
    """Standardisation: x ↦ (x − x_loc)/x_scale, y ↦ (y − y_loc)/y_scale; None for an x that stays as it is."""

    x_loc: Any
    x_scale: Any
    y_loc: Any
    y_scale: Any


class Rows(NamedTuple):
    """Rows of data, as given: x of shape (n, …), y of shape (n,) or (n, K)."""

    x: Any
    y: Any


class LastLayer(LabelledTarget):
    """A network with a Bayesian last layer, and its data.

    Parameters
    ----------
    features
        The network: a function of *one* x that returns a vector φ of shape (D,), an `equinox.Module` or a module of
        flax NNX for instance; or a pair (params, apply) of a pytree and ``apply(params, x)``, for flax Linen and other
        libraries. Arrays wrapped in ``paramax.non_trainable`` are not learned; of `VariationalFeatures` a posterior is
        learned.
    head
        A `NormalHead`, `StudentTHead` or `HeteroscedasticHead`; a `SoftmaxHead`, `StudentTSoftmaxHead`,
        `HeteroscedasticSoftmaxHead` or `GenerativeHead`.
    x, y
        Data: arrays with a leading axis of rows. y of shape (n,) or (n, K) for regression, labels 0 … K − 1 for
        classification.
    validation
        What decides when training stops and which state is kept: the share of rows held out (default 0.2), a pair
        (x, y) of arrays, or None. The target's own density is of the other rows.
    seed
        Of the choice of the rows held out.
    standardise
        Whether to standardise.
    init
        ``init(key) -> features``: a network with new parameters, so that restarts begin differently.
    name
        Of the site of the weights.

    Raises
    ------
    InvalidArgument
        Shapes do not fit, labels are none, or the network does not return a vector.
    NonFinite
        NaN or infinity in the data or in their features.
    """

    params: list[Any]
    layout: Layout
    head: Any
    rows: Rows
    held: Rows | None
    units: Units
    where: Coordinates
    labels: Labels = eqx.field(static=True)
    init: Any = eqx.field(static=True)
    site: str = eqx.field(static=True)

    def __init__(
        self,
        features: Any,
        head: AbstractHead,
        x: Any,
        y: Any,
        *,
        validation: Any = 0.2,
        seed: int = 0,
        standardise: bool = True,
        init: Callable | None = None,
        name: str = "w",
    ) -> None:
        if not isinstance(head, AbstractHead):
            raise InvalidArgument(f"head must be a head of models.last_layer, such as NormalHead(), got {head!r}.")
        if init is not None and not callable(init):
            raise InvalidArgument(f"init must be a function of a key that returns the features, got {init!r}.")
        rows = _rows(x, y, head)
        if not head.built and getattr(head, "num_classes", 0) is None:  # of all rows: the largest may be held out
            head = dataclasses.replace(head, num_classes=max(2, int(rows.y.max()) + 1))  # type: ignore[call-arg]
        rows, held = _split(rows, validation, seed, head)
        self.layout, self.params = _as_features(features)
        self.rows, self.held, self.init, self.site = rows, held, init, name
        self.units = _units(rows, head, standardise)
        self.labels = Labels()
        with jax.enable_x64(True):
            dim = self._check_features()
            if not head.built:
                head = self._built(head, jax.random.key(seed), dim)
            elif head.num_features != dim:
                raise InvalidArgument(f"head is built for {head.num_features} features, and the network gives {dim}.")
            self.head = jax.tree.map(np.asarray, head)
            self.where = coordinates(*self._example())

    # -- of the target ------------------------------------------------------------------------------------------------

    @property
    def sites(self) -> tuple[Site, ...]:
        """The weights, and what else the head infers."""
        return self.where.sites

    @property
    def observed(self) -> dict[str, Any]:
        """The y of the training rows."""
        return {"y": self.rows.y}

    @property
    def num_data(self) -> int:
        """N, the number of training rows."""
        return self.rows.y.shape[0]

    def structure(self) -> frozenset[str]:
        """See `Target.structure`; ``"last_layer"`` is what `pushforward.VBLL` needs."""
        return frozenset({"prior", "proper_prior", "likelihood", "predictive", "support", "last_layer"})

    def supports(self) -> dict[str, Any]:
        """NumPyro constraint of each site."""
        return self.where.by_site()

    def constrain(self, u: Float[Array, " d"]) -> dict[str, Array]:
        """Values of the sites."""
        return self.where.constrain(u)[0]

    def unconstrain(self, values: dict[str, Any]) -> Float[Array, " d"]:
        """The ``u`` at which the sites have these values."""
        return self.where.unconstrain(values)

    def log_density(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log prior, log likelihood of the training rows in units of y, and the log-Jacobian."""
        values, log_det = self.where.constrain(u)
        return self.log_density_at(values) + log_det

    def log_density_at(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Log prior and log likelihood."""
        inner = self.to_head(values)
        return self.head.log_prior(inner) + jnp.sum(self._likelihoods(inner))

    def log_prior(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log prior density of ``u``, log-Jacobian included."""
        values, log_det = self.where.constrain(u)
        return self.head.log_prior(self.to_head(values)) + log_det

    def log_likelihood(self, values: dict[str, Array]) -> dict[str, Array]:
        """Log likelihood of each training row, in units of y."""
        return {"y": self._likelihoods(self.to_head(values))}

    def prior_densities(self, values: dict[str, Array]) -> dict[str, Array]:
        """The log prior as a whole, at one draw."""
        return {"prior": self.head.log_prior(self.to_head(values))}

    def sample_prior(self, key: PRNGKeyArray) -> dict[str, Array]:
        """A draw of the latents and of y at the training rows."""
        key_prior, key_y = jax.random.split(key)
        inner = self.head.sample_prior(key_prior)
        return self.from_head(inner) | {"y": self._simulate(key_y, self.rows.x, inner)}

    def predictive(self, key: PRNGKeyArray, values: dict[str, Array], *args: Any, **kwargs: Any) -> dict[str, Array]:
        """A draw of y at the training rows, or at another x."""
        return {"y": self._simulate(key, _covariates(self.rows.x, args, kwargs), self.to_head(values))}

    # -- features and head --------------------------------------------------------------------------------------------

    @property
    def features(self) -> Any:
        """The network, with its present parameters."""
        return self.layout.join(self.params)

    def phi(self, x: Any, net: Any = None) -> Array:
        """Features (n, D) of rows x (in units of the data), of the present network or of another one like it."""
        from paramax import unwrap

        net = unwrap(jax.tree.map(_as_float, self.layout.join(self.params) if net is None else net))
        return jax.vmap(net)(self.inputs(x))

    def inputs(self, x: Any) -> Array:
        """Rows x, standardised."""
        x = _as_float(x)
        return x if self.units.x_loc is None else (x - self.units.x_loc) / self.units.x_scale

    def targets(self, y: Any) -> Array:
        """Targets as the head has them: standardised, of shape (n, K); or labels."""
        if self.head.task == "classification":
            return jnp.asarray(y)
        y = jnp.reshape(jnp.asarray(y, float), (len(y), -1))
        return (y - self.units.y_loc) / self.units.y_scale

    def predict(self, x: Any, *, joint: bool = False, head: Any = None, net: Any = None) -> Any:
        """The predictive of y at rows x under a head, a NumPyro distribution in units of y.

        Of `VariationalFeatures` a mixture over draws of the network.
        """
        head, net = self.head if head is None else head, self.features if net is None else net
        options: dict[str, Any] = {} if head.task == "classification" else {"single": self._single}
        options |= {"loc": self.units.y_loc, "scale": self.units.y_scale, "joint": joint}
        if not isinstance(net, VariationalFeatures):
            return head.predict(self.phi(x, net), **options)
        if joint:
            raise InvalidArgument(f"joint={joint} has no closed form with variational features; use freeze().")
        phi = net.over_draws(lambda drawn: self.phi(x, drawn))
        return mixed(head.predict(jnp.reshape(phi, (-1, phi.shape[-1])), **options), net.num_draws)

    def moments(self, x: Any) -> tuple[Array, Array, Array]:
        """The head's `moments` at rows x; of `VariationalFeatures` those of the mixture over draws of the network."""
        net = self.features
        if not isinstance(net, VariationalFeatures):
            return self.head.moments(self.phi(x))
        phi = net.over_draws(lambda drawn: self.phi(x, drawn))
        mean, epistemic, aleatoric = jax.lax.map(self.head.moments, phi)
        if self.head.task == "classification":
            shares, within = jnp.mean(mean, 0), jnp.mean(aleatoric, 0)
            return shares, entropy(shares) - within, within
        return jnp.mean(mean, 0), jnp.mean(epistemic, 0) + jnp.var(mean, axis=0), jnp.mean(aleatoric, 0)

    def ood_score(self, x: Any) -> Float[Array, " n"]:
        """The head's `ood_score` at rows x; of `VariationalFeatures` its mean over draws of the network."""
        net = self.features
        if not isinstance(net, VariationalFeatures):
            return self.head.ood_score(self.phi(x))
        return jnp.mean(jax.lax.map(self.head.ood_score, net.over_draws(lambda drawn: self.phi(x, drawn))), 0)

    def log_scores(self, x: Any, y: Any, *, head: Any = None, net: Any = None) -> Float[Array, " n"]:
        """Log predictive density of y at each row x, in units of y."""
        predictive = self.predict(x, head=head, net=net)
        found = predictive.log_prob(jnp.asarray(y) if self.head.task == "classification" else jnp.asarray(y, float))
        return found if found.ndim == 1 else jnp.sum(found, -1)

    def first_head(self, key: PRNGKeyArray) -> Any:
        """The head as training begins, with weights of its own."""
        return self._built(self.head, key, self.head.num_features)

    def with_learned(self, net: Any, head: Any) -> Self:
        """The same target with these features and this head."""
        params = [leaf for leaf, rest in zip(jax.tree.leaves(net), self.layout.rest, strict=True) if rest is None]
        return self._with(params=params, head=head)

    def with_rows(self, x: Any, y: Any) -> Self:
        """The same features and head with other training rows, in the standardisation of the first."""
        return self._with(rows=_rows(x, y, self.head))

    def freeze(self) -> Self:
        """The same with features computed once: x becomes φ(x). For samplers, and to train the head alone."""
        identity, nothing = _as_features(_identity)
        with jax.enable_x64(True):
            program = jax.jit(lambda target, x: target.phi(x))
            rows = Rows(np.asarray(program(self, self.rows.x)), self.rows.y)
            held = None if self.held is None else Rows(np.asarray(program(self, self.held.x)), self.held.y)
        units = self.units._replace(x_loc=None, x_scale=None)
        return self._with(params=nothing, layout=identity, rows=rows, held=held, units=units, init=None)

    # -- between head and sites ---------------------------------------------------------------------------------------

    def to_head(self, values: dict[str, Array]) -> dict[str, Array]:
        """Values by site as the head has them: with an axis of outputs."""
        latents = self.head.latents()
        return {name: jnp.reshape(values[self._site(name)], shape) for name, (shape, _) in latents.items()}

    def from_head(self, inner: dict[str, Array]) -> dict[str, Array]:
        """The inverse of `to_head`."""
        shapes = {site.name: site.shape for site in self.sites}
        return {self._site(name): jnp.reshape(value, shapes[self._site(name)]) for name, value in inner.items()}

    # -- parts --------------------------------------------------------------------------------------------------------

    def _site(self, latent: str) -> str:
        return self.site if latent == "w" else latent

    @property
    def _single(self) -> bool:
        """Whether y is a vector of real numbers, so that no axis of outputs is shown."""
        return self.head.task == "regression" and np.ndim(self.rows.y) == 1

    def _example(self) -> tuple[dict[str, Any], dict[str, Any]]:
        latents = self.head.latents()
        shape = lambda shape: shape[1:] if self._single else shape  # noqa: E731
        example = {self._site(name): np.zeros(shape(s)) for name, (s, _) in latents.items()}
        return example, {self._site(name): support for name, (_, support) in latents.items()}

    def _likelihoods(self, inner: dict[str, Array]) -> Float[Array, " n"]:
        phi, y = self.phi(self.rows.x), self.targets(self.rows.y)
        found = self.head.log_likelihood(phi, y, inner)
        return found if self.units.y_scale is None else found - jnp.sum(jnp.log(self.units.y_scale))

    def _simulate(self, key: PRNGKeyArray, x: Any, inner: dict[str, Array]) -> Array:
        y = self.head.simulate(key, self.phi(x), inner)
        if self.head.task == "classification":
            return y
        y = self.units.y_loc + self.units.y_scale * y
        return y[:, 0] if self._single else y

    def _built(self, head: Any, key: PRNGKeyArray, num_features: int) -> Any:
        """The head as it begins, for targets as it sees them."""
        loc, scale = self.units.y_loc, self.units.y_scale
        if loc is None:
            return head.build(key, num_features, self.rows.y)
        return head.build(key, num_features, (self.rows.y.reshape(len(self.rows.y), -1) - loc) / scale, unit=scale)

    def _check_features(self) -> int:
        """D; raise unless the network turns a row into a vector of finite numbers."""
        try:
            phi = np.asarray(jax.jit(lambda params, x: self.phi(x, self.layout.join(params)))(self.params, self.rows.x))
        except (InvalidArgument, NonFinite):
            raise
        except Exception as error:
            raise InvalidArgument(
                f"features ({name_of(self.features)}) does not run on one x of shape {self.rows.x.shape[1:]}: "
                f"{first_line(error)}; it takes one row, without the leading axis."
            ) from error
        if phi.ndim != 2:
            raise InvalidArgument(f"features must return a vector for one x, got shape {phi.shape[1:]}.")
        if not np.isfinite(phi).all():
            bad = int((~np.isfinite(phi)).any(1).sum())
            raise NonFinite(f"features are not finite in {bad} of {len(phi)} rows; look at the network.")
        return phi.shape[1]

    def _with(self, **fields: Any) -> Self:
        new = object.__new__(type(self))
        for field in dataclasses.fields(self):
            object.__setattr__(new, field.name, fields.get(field.name, getattr(self, field.name)))
        return new

    def _relabel(self, options: Any) -> Self:
        dims = {k: (v,) if isinstance(v, str) else tuple(v) for k, v in options.get("dims", {}).items()}
        dims, coords = self.labels.dims | dims, self.labels.coords | dict(options.get("coords", {}))
        check_labels(self._shapes(), dims, coords)
        return self._with(labels=Labels(dims, coords))

    def _identity(self) -> list[Any]:
        return [*jax.tree.leaves(self), self.layout.fixed(), repr(self.head), self.site]


class Applied(eqx.Module):
    """A network of another library: ``apply(params, x)``."""

    params: Any
    apply: Any = eqx.field(static=True)

    def __call__(self, x: Any) -> Any:
        """φ of one x."""
        return self.apply(self.params, x)


def _identity(x: Array) -> Array:
    return x


def _as_features(features: Any) -> tuple[Layout, list[Any]]:
    if isinstance(features, tuple) and len(features) == 2 and callable(features[1]):
        features = Applied(*features)
    if not callable(features):
        raise InvalidArgument(
            f"features must be a function of one x, or a pair (params, apply), got {type(features).__name__}."
        )
    return next(splits(features))


def _as_float(leaf: Any) -> Any:
    """Arrays of floats in the precision of the scope; everything else as it is."""
    leaf = as_given(leaf)
    if not hasattr(leaf, "dtype"):
        return leaf
    return jnp.asarray(leaf, float) if jnp.issubdtype(leaf.dtype, jnp.inexact) else jnp.asarray(leaf)


def _rows(x: Any, y: Any, head: AbstractHead) -> Rows:
    """The data as arrays of one length, finite."""
    x, y = (np.array(as_given(a)) for a in (x, y))
    if x.ndim == 0 or y.ndim not in (1, 2) or len(x) != len(y) or len(x) < FEWEST:
        raise InvalidArgument(
            f"x and y must have the same number of rows, at least {FEWEST}, got shapes {x.shape} and {y.shape}."
        )
    if head.task == "classification":
        y, _ = check_classes(y, head.num_outputs if head.built else getattr(head, "num_classes", None))
    else:
        y = y.astype(float)
    for name, a in (("x", x), ("y", y)):
        if np.issubdtype(a.dtype, np.inexact) and not np.isfinite(a).all():
            raise NonFinite(f"{name} has {int((~np.isfinite(a)).sum())} values that are not finite; leave them out.")
    return Rows(x, y)


def _split(rows: Rows, validation: Any, seed: int, head: AbstractHead) -> tuple[Rows, Rows | None]:
    """Rows to learn from, and rows held out."""
    if validation is None:
        return rows, None
    if isinstance(validation, tuple):
        held = _rows(*validation, head)
        if held.x.shape[1:] != rows.x.shape[1:] or held.y.shape[1:] != rows.y.shape[1:]:
            raise InvalidArgument(
                f"validation has rows of shapes {held.x.shape[1:]} and {held.y.shape[1:]}, the data have "
                f"{rows.x.shape[1:]} and {rows.y.shape[1:]}."
            )
        return rows, held
    check_fraction("validation", validation)
    order = np.random.default_rng(seed).permutation(len(rows.y))
    held = max(1, round(validation * len(order)))
    first, last = order[held:], order[:held]
    if len(first) < FEWEST:
        raise InvalidArgument(f"validation={validation} leaves {len(first)} of {len(order)} rows; give fewer, or None.")
    return Rows(rows.x[first], rows.y[first]), Rows(rows.x[last], rows.y[last])


def _units(rows: Rows, head: AbstractHead, standardise: bool) -> Units:
    """Means and standard deviations of the training rows; of columns that do not vary the scale is 1."""

    def of(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sd = a.std(0)
        return a.mean(0), np.where(sd > 0, sd, 1.0)

    table = standardise and rows.x.ndim <= 2 and np.issubdtype(rows.x.dtype, np.inexact)
    x_loc, x_scale = of(rows.x.astype(float)) if table else (None, None)
    if head.task == "classification":
        return Units(x_loc, x_scale, None, None)
    y = rows.y.reshape(len(rows.y), -1)
    y_loc, y_scale = of(y) if standardise else (np.zeros(y.shape[1]), np.ones(y.shape[1]))
    return Units(x_loc, x_scale, y_loc, y_scale)


def _covariates(own: Any, args: tuple, kwargs: dict) -> Any:
    """The x to predict at."""
    given = [*args, *kwargs.values()]
    if not given:
        return own
    if len(given) > 1 or set(kwargs) - {"x"}:
        raise InvalidArgument(f"predict takes the rows x alone, got {len(args)} arguments and {sorted(kwargs)}.")
    if np.shape(given[0])[1:] != np.shape(own)[1:]:
        raise InvalidArgument(
            f"x must have rows of shape {np.shape(own)[1:]}, as the data have, got shape {np.shape(given[0])}."
        )
    return given[0]
