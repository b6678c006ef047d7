"""NumPyro's `MCMC(NUTS)`; the same object runs again and again.

Chains are sequential (what its default comes to on a machine with one XLA device), vectorised, or parallel, one XLA
device each, for which the user sets the number of devices before anything else. No progress bar.
"""

import jax
import numpy as np
import numpyro
from numpyro.infer import MCMC, NUTS


class Adapter:
    def __init__(self, reference, name, chains, warmup, draws):
        method = name.partition("-")[2]
        if method == "parallel":
            numpyro.set_host_device_count(chains)
        self.kwargs = reference.kwargs
        self.mcmc = MCMC(
            NUTS(reference.model),
            num_warmup=warmup, num_samples=draws, num_chains=chains, chain_method=method, progress_bar=False,
        )  # fmt: skip

    def run(self, seed):
        self.mcmc.run(jax.random.key(seed), **self.kwargs)
        draws = self.mcmc.get_samples(group_by_chain=True)
        return {name: np.asarray(value) for name, value in draws.items()}, None

    def summary(self):
        self.mcmc.print_summary()
