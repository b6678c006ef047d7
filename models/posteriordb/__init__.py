"""Posteriors with known answers: NumPyro models, a loader for any posteriordb clone, and the comparison with it.

>>> reference = load("eight_schools-eight_schools_noncentered", "path/to/posteriordb")  # doctest: +SKIP
>>> posterior = pf.fit(reference.target())  # doctest: +SKIP
>>> compare(posterior, reference).table  # doctest: +SKIP
"""

from .compare import Comparison, compare
from .reference import Reference, load, names

__all__ = ["Comparison", "Reference", "compare", "load", "names"]
