"""Whether to believe a posterior; the modules of the face are imported when they are first used."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["discrepancies"])
