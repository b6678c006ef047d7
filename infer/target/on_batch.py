"""`OnBatch`: the log density as a mini-batch estimates it, for methods that ask a target for log densities."""

from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int

from .base import Target
from .wrapped import WrappedTarget


class Anchor(NamedTuple):
    """A point c with the log likelihood of all data there, L(c), and its gradient."""

    point: Float[Array, " d"]
    value: Float[Array, ""]
    gradient: Float[Array, " d"]


def anchor_at(target: Target, point: Float[Array, " d"]) -> Anchor:
    """With all data, in one evaluation."""
    value, gradient = jax.value_and_grad(lambda u: target.log_density(u) - target.log_prior(u))(point)
    return Anchor(point, value, gradient)


class OnBatch(WrappedTarget):
    """log π(u) from the observations of a mini-batch.

    Without an anchor, log prior(u) + L_B(u) with L_B(u) = (n/b) Σ_{i ∈ B} log likelihood(u, rowᵢ). With one at c its
    noise is that of the remainder alone, which near c is small whatever n is,

        log prior(u) + L_B(u) − L_B(c) − ∇L_B(c)·(u − c) + L(c) + ∇L(c)·(u − c),

    the control variate of Baker, Fearnhead, Fox & Nemeth (2019) for values as well as for gradients. Both are unbiased.

    Attributes
    ----------
    target
        A target with one log likelihood per observation.
    batch
        Indices of observations, shape (b,), drawn uniformly with replacement.
    anchor
        c, and what is known there of all data; or None.
    """

    target: Target
    batch: Int[Array, " b"]
    anchor: Anchor | None = None

    def structure(self) -> frozenset[str]:
        """Prior and support of the target within."""
        return self.target.structure() & {"prior", "proper_prior", "support"}

    def log_density(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """The estimate."""
        whole: Any = self.target
        if self.anchor is None:
            return whole.log_density_minibatch(u, self.batch)
        point, value, gradient = self.anchor
        part = lambda u: whole.log_density_minibatch(u, self.batch) - whole.log_prior(u)  # noqa: E731
        there, slope = jax.value_and_grad(part)(point)
        return whole.log_density_minibatch(u, self.batch) + value - there + (gradient - slope) @ (u - point)


def on_batch(target: Target, key: Any, t: Any, size: int | None, anchor: Anchor | None = None) -> Target:
    """The target as the mini-batch of iteration ``t`` sees it; itself where ``size`` is None."""
    if size is None:
        return target
    return OnBatch(target, target.minibatch(jax.random.fold_in(key, BATCH), t, size), anchor)  # type: ignore[attr-defined]


BATCH = 0x6D62
"""Folded into an iteration's key, so that what else is drawn with it is the same with and without mini-batches."""
