"""What the samplers without a density to test share: Euclidean, at real sites, nothing learned in warm-up."""

from typing import ClassVar

import equinox as eqx
import numpy as np
from jaxtyping import Array

from ...infer.errors import InvalidArgument, UnsupportedTarget
from ...infer.geometry import Euclidean
from ...infer.geometry.mirror import AbstractMirror
from ...infer.target.primal import Primal
from .common import AbstractLangevin
from .curvature import FLAT, curvature
from .slope import term_step


class AbstractUnadjusted(AbstractLangevin):
    """Approximate by construction; see the concrete classes."""

    adjusted: bool = eqx.field(static=True, default=False)

    requires: ClassVar = ("support", "composite")
    exact: ClassVar[bool] = False
    has_ratio: ClassVar[bool] = False

    def __check_init__(self) -> None:
        if self.adjusted:
            raise InvalidArgument(
                f"adjusted must be False, got {self.adjusted!r}: {type(self).__name__} has no density to test; use "
                f"BregmanProximalLangevin()."
            )
        for name in ("scale", "target_acceptance"):
            if getattr(self, name) is not None:
                raise InvalidArgument(
                    f"{name}={getattr(self, name)!r} has no use: the warm-up of {type(self).__name__} learns nothing."
                )

    def check_step(self, target: Primal, x: Array) -> None:
        """Refuse to choose a step where neither part of the target has a scale.

        Raises
        ------
        InvalidArgument
            f is flat at ``x``, g has no slope that is known, and ``step_size`` is None.
        """
        if self.step_size is None and np.isinf(term_step(target.nonsmooth)) and curvature(target, x, None) <= FLAT:
            raise InvalidArgument(
                f"step_size=None needs a smooth part with a curvature, or a term with weights; at the start the smooth "
                f"part is flat, and {type(target.nonsmooth).__name__} has none: give step_size, e.g. a hundredth of "
                f"the variance that you expect."
            )

    def mirror_for(self, target: Primal, scale: Array) -> AbstractMirror:
        """Euclidean."""
        if not target.coordinates.real:
            site = next(block for block in target.coordinates.blocks if not block.is_real)
            raise UnsupportedTarget(
                f"{type(self).__name__} needs real sites, and {site.name!r} has the support {site.kind}; use "
                f"BregmanProximalLangevin()."
            )
        return Euclidean()

    def scales(self, target: Primal) -> bool:
        """None is learned."""
        return False
