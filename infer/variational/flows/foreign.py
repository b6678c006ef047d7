"""`Foreign`: a bijection of flowjax, or of its interface, as one of ours."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from ...errors import InvalidArgument, NotAvailable
from .. import score_recursion as recursion
from .bijection import Bijection


class Foreign(Bijection):
    """A bijection of flowjax, or of the user's with its interface, with what is no array set aside.

    Parameters
    ----------
    arrays
        Its array leaves.
    rest
        Its other leaves with None in place of arrays, and the structure of both; static.
    """

    arrays: tuple[Array, ...]
    rest: Any = eqx.field(static=True)
    dim: int = eqx.field(static=True)

    @classmethod
    def wrap(cls, bijection: Any) -> Bijection:
        """Take a bijection of shape (d,) without condition; one of ours is left as it is.

        Raises
        ------
        InvalidArgument
            It lacks the interface, has another shape, or needs a condition.
        """
        if isinstance(bijection, Bijection):
            return bijection
        if not (hasattr(bijection, "transform_and_log_det") and hasattr(bijection, "shape")):
            raise InvalidArgument(
                f"bijection must have shape and transform_and_log_det (flowjax's interface), got {bijection!r}."
            )
        shape, condition = tuple(bijection.shape), getattr(bijection, "cond_shape", None)
        if len(shape) != 1 or condition is not None:
            raise InvalidArgument(
                f"bijection has shape {shape} and condition shape {condition}; shape (d,) and none are needed."
            )
        leaves, treedef = jax.tree.flatten(bijection)
        # Python numbers stay what they are: flowjax has sizes among its leaves.
        is_array = lambda x: isinstance(x, np.ndarray) or eqx.is_array(x)  # noqa: E731
        arrays = tuple(np.asarray(x) for x in leaves if is_array(x))
        return cls(arrays, (tuple(None if is_array(x) else (x,) for x in leaves), treedef), shape[0])

    @property
    def bijection(self) -> Any:
        """The bijection as it was given, with the present arrays."""
        others, treedef = self.rest
        arrays = iter(self.arrays)
        return jax.tree.unflatten(treedef, [next(arrays) if other is None else other[0] for other in others])

    def transform_and_log_det(self, x: Array, condition: Any = None) -> tuple[Array, Array]:
        """The bijection's own."""
        return self.bijection.transform_and_log_det(x, condition)

    def push_score(self, x: Array, g: Array) -> tuple[Array, Array, Array]:
        """By the rule for flowjax's class, else by the dense Jacobian."""
        from paramax import unwrap

        return recursion.push(unwrap(self.bijection), x, g)

    def inverse_and_log_det(self, y: Array, condition: Any = None) -> tuple[Array, Array]:
        """The bijection's own, where it has one."""
        try:
            return self.bijection.inverse_and_log_det(y, condition)
        except NotImplementedError as error:
            raise NotAvailable(
                f"{type(self.bijection).__name__} has no inverse ({error}); use sample_and_log_prob, or flowjax's "
                f"NumericalInverse."
            ) from None
