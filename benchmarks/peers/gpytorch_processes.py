"""GPyTorch's SVGP or VNNGP on a latent process, run by a Python that has PyTorch and GPyTorch, for so many seconds.

python gpytorch_processes.py (svgp | vnngp) GIVEN.npz FOUND.npz

Matérn-3/2 with a length scale per input, zero mean, 64 bits, Adam on everything at once, batches of 256. SVGP has 500
inducing inputs, at first a random subset of the data; VNNGP 20 neighbours and the data in random order. Binary
responses go through the logistic function, for which GPyTorch has no likelihood: twenty nodes of Gauss and Hermite, as
its others.
"""

import sys
import time

import gpytorch
import numpy as np
import torch

BATCH, RATE = 256, 0.02


class Logistic(gpytorch.likelihoods.likelihood._OneDimensionalLikelihood):
    """P(y = 1) = 1 / (1 + exp(−f))."""

    def forward(self, function_samples, *args, **kwargs):
        return torch.distributions.Bernoulli(logits=function_samples)


class Process(gpytorch.models.ApproximateGP):
    """Zero mean, scaled Matérn-3/2."""

    def __init__(self, strategy, inputs, scale):
        super().__init__(strategy(self))
        self.mean_module = gpytorch.means.ZeroMean()
        kernel = gpytorch.kernels.MaternKernel(nu=1.5, ard_num_dims=inputs)
        kernel.lengthscale = scale
        self.covar_module = gpytorch.kernels.ScaleKernel(kernel)
        self.covar_module.outputscale = 0.5

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def strategy_of(name, x):
    """The variational strategy of a name."""
    variational = gpytorch.variational
    if name == "svgp":
        inducing = x[torch.randperm(len(x))[:500]].clone()
        q = variational.CholeskyVariationalDistribution(len(inducing))
        return lambda model: variational.VariationalStrategy(model, inducing, q, learn_inducing_locations=True)
    q = variational.MeanFieldVariationalDistribution(len(x))
    return lambda model: variational.NNVariationalStrategy(model, x, q, k=20, training_batch_size=BATCH)


def main():
    name, given = sys.argv[1], np.load(sys.argv[2])
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    x, y, new = (torch.as_tensor(given[k]) for k in ("x", "y", "new"))
    order = torch.randperm(len(x))
    x, y, seconds = x[order], y[order], float(given["seconds"])
    began, cpu = time.perf_counter(), time.process_time()
    model = Process(strategy_of(name, x), x.shape[1], float(given["scale"]))
    likelihood = Logistic() if given["response"].item() == "logit" else gpytorch.likelihoods.GaussianLikelihood()
    if given["response"].item() != "logit":
        likelihood.noise = 0.25
    bound = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=len(x))
    adam = torch.optim.Adam([*model.parameters(), *likelihood.parameters()], lr=RATE)
    model.train()
    likelihood.train()
    steps, last = 0, False
    while not last:
        spent = time.perf_counter() - began
        last = spent > seconds
        for group in adam.param_groups:  # down to a hundredth over the last half
            group["lr"] = RATE * 0.01 ** max(0.0, min(1.0, 2 * spent / seconds - 1))
        adam.zero_grad()
        if name == "vnngp":
            output = model.variational_strategy(x=None)
            rows = model.variational_strategy.current_training_indices
        else:
            rows = torch.randint(len(x), (BATCH,))
            output = model(x[rows])
        (-bound(output, y[rows])).backward()
        adam.step()
        steps += 1
    fitted = time.perf_counter()
    spent = time.process_time() - cpu
    model.eval()
    with torch.no_grad():
        parts = [model(part) for part in new.split(500)]
    found = {k: torch.cat([getattr(part, k) for part in parts]).numpy() for k in ("mean", "variance")}
    scales = model.covar_module.base_kernel.lengthscale.detach().numpy().ravel()
    predicted = time.perf_counter() - fitted
    np.savez(sys.argv[3], **found, scales=scales, steps=steps, seconds=fitted - began, cpu=spent, predicted=predicted)


if __name__ == "__main__":
    main()
