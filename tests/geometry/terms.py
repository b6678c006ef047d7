"""Examples of every term, over six coordinates; a class without one fails `test_every_class_has_an_entry`."""

import jax.numpy as jnp
import numpy as np

from pushforward.infer.geometry.compose import Blocks, Sum
from pushforward.infer.geometry.indicators import BoxIndicator, NonNegative, SimplexIndicator
from pushforward.infer.geometry.prox import L1, ElasticNet, GroupL2, NuclearNorm, UserTerm
from pushforward.infer.geometry.tv import TotalVariation

D = 6
W = np.array([0.5, 2.0, 0.0, 1.0, 0.3, 1.5])
LOC = np.array([0.0, 1.0, -0.5, 0.0, 0.2, -1.0])
GROUPS = np.array([0, 1, 0, -1, 1, 2])
EXACT = {"tolerance": 1e-10, "max_steps": 3000}

TERMS = {
    "L1": L1(W, LOC),
    "L1 number": L1(0.7),
    "ElasticNet": ElasticNet(W, np.array([0.0, 0.5, 2.0, 1.0, 3.0, 0.1]), LOC),
    "GroupL2": GroupL2(np.array([0.5, 1.5, 1.0]), GROUPS),
    "GroupL2 number": GroupL2(0.8, [0, 0, 0, 1, 1, 1]),
    "NuclearNorm": NuclearNorm(0.8, (2, 3)),
    "BoxIndicator": BoxIndicator(np.array([-1.0, 0, -np.inf, -2, -0.1, 0.5]), np.array([1.0, 0, 1, np.inf, 0.1, 2])),
    "NonNegative": NonNegative(),
    "SimplexIndicator": SimplexIndicator(),
    "SimplexIndicator d": SimplexIndicator(full=False),
    "UserTerm": UserTerm(lambda x: jnp.sum(x**2), lambda x, step: x / (1 + 2 * step)),
    "Sum": Sum(L1(W, LOC), BoxIndicator(-0.3, 0.8)),
    "Sum net": Sum(ElasticNet(0.4, 1.0), NonNegative()),
    "Blocks": Blocks([L1(0.5), None, TotalVariation(1.0, (3,), **EXACT)], [2, 1, 3]),
    "TotalVariation 1-D": TotalVariation(0.6, (6,), **EXACT),
    "TotalVariation 2-D": TotalVariation(0.6, (2, 3), **EXACT),
    "TotalVariation 2-D anisotropic": TotalVariation(0.6, (3, 2), isotropic=False, **EXACT),
    "TotalVariation 3-D": TotalVariation(0.4, (1, 2, 3), **EXACT),
}
