"""`fit` without a method: the choice of one."""

from .infer.method import AbstractMethod
from .infer.target import Target


def choose_method(target: Target) -> AbstractMethod:
    """NUTS, which suits every target with a differentiable log density."""
    del target
    from .samplers.hmc import NUTS

    return NUTS()
