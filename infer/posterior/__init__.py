"""`Posterior`, and what its methods do: how one is made, densities, groups computed from draws, going on, saving."""

from .posterior import Posterior as Posterior
