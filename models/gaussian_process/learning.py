"""What all methods for a latent process share: hyper-parameters learned in stages, then q brought to its fixed point.

In a stage of learning each step has value and gradient of an objective of the hyper-parameters' logarithms, and `Climb`
says where next. Between stages, on the host, order and pattern (or inducing inputs) are found for the length scales
reached.
"""

import dataclasses
from typing import Any, ClassVar, cast

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from ...infer.errors import InvalidArgument
from ...infer.method import AbstractMethod, Budget, Stage
from ...infer.target import Target
from ...infer.validate import check_count, check_positive
from .latent import LatentGP

INNER = 3
"""Iterations of q per evaluation, unless the likelihood is Gaussian."""


def process_reached(method: Any, target: Target, start: Any) -> LatentGP:
    """The process at the hyper-parameters at which the last stage ended, or its own; on the host.

    Raises
    ------
    InvalidArgument
        The run is in 32 bits, and the method does not allow it.
    """
    bits = jnp.finfo(jnp.zeros(()).dtype).bits
    if bits < 64 and not method.allow_float32:
        raise InvalidArgument(
            f"precision={bits} leaves {type(method).__name__} too few digits for sums of logarithms and near-singular "
            f"blocks; use precision=64, or allow_float32=True with a nugget of at least 1e-4."
        )
    gp = cast("LatentGP", target)
    climb = getattr(start[0], "climb", None)
    if climb is None:
        return gp
    point = jnp.asarray(climb.point)
    return gp.with_free(point if point.ndim == 1 else point[0])


def unbounded(method: Any, infos: Any, cause: str) -> str | None:
    """The sentence of `AbstractMethod.alarm` where an ELBO is not finite."""
    if np.isfinite(np.asarray(infos.elbo)).all():
        return None
    return f"The ELBO of {type(method).__name__} is not finite: {cause}"


class AbstractLatentMethod(AbstractMethod):
    """Base of the methods for a `pushforward.models.LatentGP`.

    Attributes
    ----------
    learning
        Names of the stages in which hyper-parameters are learned.
    phase
        Number of the stage.
    """

    learn: eqx.AbstractVar[bool | str]
    num_steps: eqx.AbstractVar[int]
    gain: eqx.AbstractVar[float]
    max_iterations: eqx.AbstractVar[int]
    tolerance: eqx.AbstractVar[float]
    allow_float32: eqx.AbstractVar[bool]
    phase: eqx.AbstractVar[int]

    learning: ClassVar[tuple[str, ...]] = ("hyper-parameters",)
    kind: ClassVar = "approximation"
    requires: ClassVar[tuple[str, ...]] = ("latent_gp",)
    needs_start: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    density: ClassVar[bool] = True
    default_chains: ClassVar[int] = 1

    def __check_init__(self) -> None:
        for name in ("num_steps", "max_iterations"):
            check_count(name, getattr(self, name))
        for name in ("tolerance", "gain"):
            check_positive(name, getattr(self, name))

    @property
    def last(self) -> bool:
        """Whether this is the stage in which hyper-parameters stay."""
        return self.phase == len(self.learning)

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """Learning, then the fixed point."""
        del budget
        last = Stage("posterior", dataclasses.replace(self, phase=len(self.learning)), self.max_iterations)
        learning = [
            Stage(name, dataclasses.replace(self, phase=k), self.num_steps, keep=False)
            for k, name in enumerate(self.learning)
        ]
        return (*learning, last) if self.learn else (last,)

    def done(self, state: Any) -> Bool[Array, ""]:
        """In learning, once a step promises little; in the end, once means stand still."""
        if self.last:
            return state.change < self.tolerance
        return state.climb.arrived(self.gain) | (state.num_steps >= self.num_steps)

    def merit(self, infos: Any) -> dict[str, Array]:
        """The last ELBO."""
        return {"elbo": jnp.asarray(infos.elbo)[..., -1].max()}

    def standstill(self, change: float) -> dict[str, Any]:
        """The remark on whether the fixed point was reached."""
        threshold = float(self.tolerance)
        fine = change < threshold
        message = f"The last iteration moved a mean by {change:.2g} sd (threshold {threshold:g})."
        return {
            "level": "ok" if fine else "warning",
            "name": "fixed point",
            "message": message + ("" if fine else " Raise max_iterations."),
            "value": change,
            "threshold": threshold,
        }
