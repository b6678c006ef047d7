"""`pf.fit` with NUTS and all defaults."""

import pushforward as pf


class Adapter:
    def __init__(self, reference, name, chains, warmup, draws):
        del name
        self.target = reference.target()
        self.options = {"num_chains": chains, "num_warmup": warmup, "num_samples": draws, "progress": False}

    def run(self, seed):
        self.posterior = pf.fit(self.target, pf.NUTS(), key=seed, **self.options)
        return self.posterior.draws(), self.posterior.record.get("evaluations")

    def summary(self):
        return str(self.posterior.summary())
