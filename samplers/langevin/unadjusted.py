"""What the samplers without a density to test share: Euclidean, at real sites, nothing learned in warm-up."""

from typing import ClassVar

import equinox as eqx
from jaxtyping import Array

from ...infer.errors import InvalidArgument, UnsupportedTarget
from ...infer.geometry import Euclidean
from ...infer.geometry.mirror import AbstractMirror
from ...infer.target.primal import Primal
from .common import AbstractLangevin


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
