"""nutpie on a PyMC model compiled with Numba, its normal use."""

import nutpie

from . import pymc_models


class Adapter:
    def __init__(self, reference, name, chains, warmup, draws):
        del name
        self.compiled = nutpie.compile_pymc_model(pymc_models.MODELS[reference.model_name](**reference.kwargs))
        self.options = {"chains": chains, "tune": warmup, "draws": draws, "progress_bar": False, "save_warmup": False}

    def run(self, seed):
        self.trace = nutpie.sample(self.compiled, seed=seed, **self.options)
        group = self.trace["posterior"].to_dataset()
        return {str(name): group[name].values for name in group.data_vars}, None

    def summary(self):
        import arviz_stats

        return str(arviz_stats.summary(self.trace))
