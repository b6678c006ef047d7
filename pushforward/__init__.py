"""Probabilistic inference and sampling on JAX: a target, a method, a fit, a posterior.

Names are imported when they are first used, so that ``import pushforward`` is immediate and starts no JAX backend.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
