"""Any family of ours as the guide of a NumPyro model, for NumPyro's own SVI: mini-batched plates, any of its ELBOs.

The family is one of all latent values side by side, unconstrained, in the order of NumPyro's continuous guides. A plate
with a ``subsample_size`` scales the likelihood of its mini-batch, so that each step costs the mini-batch; the latent
values must be global, outside of such plates, as for every guide of that kind. For latent values per observation see
`amortised.amortised`.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..approximation import Approximation
from ..errors import InvalidArgument
from .estimators import split


def numpyro_guide(model: Callable, family: Any, **options: Any) -> Any:
    """A NumPyro guide made of a family.

    Parameters
    ----------
    model
        A NumPyro model with continuous, global latent sites.
    family
        An `Approximation` of the model's dimension, or a function (number of dimensions) ↦ one, called when the guide
        first sees the model. Its parameters become NumPyro parameters ``auto_q0``, ``auto_q1``, ….
    options
        Of NumPyro's ``AutoContinuous``: ``prefix``, ``init_loc_fn``.

    Returns
    -------
    AutoContinuous
        With one method more, ``family(params)``: the family with the parameters of ``svi.get_params``.

    Raises
    ------
    InvalidArgument
        ``family`` is neither, or draws points of another dimension than the model has.
    """
    if not (isinstance(family, Approximation) or callable(family)):
        raise InvalidArgument(f"family must be an Approximation or a function of the dimension, got {family!r}.")
    return _guide_class()(model, family, **options)


@functools.cache
def _guide_class() -> type:
    """The guide's class; made late, since NumPyro is imported late."""
    import numpyro
    from numpyro.infer.autoguide import AutoContinuous

    class FamilyGuide(AutoContinuous):
        def __init__(self, model: Callable, family: Any, **options: Any) -> None:
            super().__init__(model, **options)
            self._given = family

        def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
            super()._setup_prototype(*args, **kwargs)
            made = self._given if isinstance(self._given, Approximation) else self._given(int(self.latent_dim))
            shape = jax.eval_shape(lambda key: made.sample_and_log_prob(key, 1)[0], jax.random.key(0)).shape
            if shape != (1, self.latent_dim):
                raise InvalidArgument(
                    f"family draws points of shape {shape[1:]}; the model has {self.latent_dim} unconstrained latent "
                    f"values, so it must be of that dimension."
                )
            params, self._static = split(made)
            self._leaves, self._tree = jax.tree.flatten(params)

        def _get_posterior(self) -> Any:
            names = [f"{self.prefix}_q{i}" for i in range(len(self._leaves))]
            leaves = [numpyro.param(name, leaf) for name, leaf in zip(names, self._leaves, strict=True)]
            return _distribution_class()(self._join(leaves), int(self.latent_dim))

        def family(self, params: dict[str, Any]) -> Approximation:
            """The family at the parameters that ``svi.get_params`` returned."""
            return self._join([params[f"{self.prefix}_q{i}"] for i in range(len(self._leaves))])

        def _join(self, leaves: list[Any]) -> Approximation:
            return eqx.combine(jax.tree.unflatten(self._tree, leaves), self._static)

    return FamilyGuide


@functools.cache
def _distribution_class() -> type:
    """A family as a NumPyro distribution, whose draws bring their density with them."""
    from numpyro.distributions import Distribution, constraints

    class FamilyDistribution(Distribution):
        support: Any = constraints.real_vector
        pytree_data_fields: Any = ("q",)
        reparametrized_params: Any = ("q",)

        def __init__(self, q: Approximation, dim: int) -> None:
            self.q = q
            super().__init__(batch_shape=(), event_shape=(dim,))

        def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
            return self.sample_with_intermediates(key, sample_shape)[0]

        def sample_with_intermediates(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
            n = int(jnp.prod(jnp.asarray(sample_shape, int))) if sample_shape else 1
            u, log_q = self.q.sample_and_log_prob(key, n)
            return u.reshape(*sample_shape, -1), [log_q.reshape(sample_shape)]

        def log_prob(self, value: Any, intermediates: Any = None) -> Any:
            if intermediates:
                return intermediates[0]
            return jnp.vectorize(self.q.log_prob, signature="(d)->()")(value)

    return FamilyDistribution
