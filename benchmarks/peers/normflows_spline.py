"""normflows' spline couplings by its reverse KL; run with the Python of an environment that has ``normflows`` (1.7).

``python normflows_spline.py GIVEN.json FOUND.npz``; given are ``name`` of the target, ``dim``, ``rates`` of all steps,
``look``, ``draws``, ``judged``, ``seed``, and ``points`` with their ``log_density``, where the density that is written
once more in torch must agree. Depth, width, bins and box are those of our flow. PyTorch has builds without CUDA for
Pythons other than ours, hence a process of its own.
"""

import json
import math
import sys
import time
import types

import normflows
import numpy as np
import torch


def twisted(u):
    normal = lambda x, scale: -0.5 * (x / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)  # noqa: E731
    a, b = u[:, :4], u[:, 4:]
    return torch.sum(normal(a, 1.0) + normal(b - a**2 + 1, 0.3), 1)


def eight_schools(u):
    """u = (μ, log τ, z): μ ~ N(0, 5²), τ ~ half-Cauchy(5), z ~ N(0, 1), θ = μ + τ z."""
    y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
    sigma = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])
    mu, log_tau, standard = u[:, 0], u[:, 1], u[:, 2:]
    normal = lambda x: -0.5 * x**2 - 0.5 * math.log(2 * math.pi)  # noqa: E731
    tau = torch.exp(log_tau)
    prior = torch.sum(normal(standard), 1) + normal(mu / 5) - math.log(5)
    prior = prior + math.log(2 / (5 * math.pi)) - torch.log1p((tau / 5) ** 2) + log_tau
    theta = mu[:, None] + tau[:, None] * standard
    return prior + torch.sum(normal((y - theta) / sigma) - torch.log(sigma), 1)


def main(given: str, written: str) -> None:
    with open(given) as f:
        g = json.load(f)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)  # idle threads spin, and would count as CPU seconds
    density, dim = {"twisted": twisted, "eight_schools": eight_schools}[g["name"]], g["dim"]
    np.testing.assert_allclose(density(torch.tensor(g["points"])).numpy(), g["log_density"], rtol=1e-9)
    torch.manual_seed(g["seed"])
    began = time.process_time(), time.perf_counter()
    spline = normflows.flows.CoupledRationalQuadraticSpline
    layers = [
        layer
        for i in range(8)
        for layer in (
            spline(dim, 1, 32, num_bins=8, tail_bound=5.0, reverse_mask=bool(i % 2)),
            normflows.flows.LULinearPermute(dim),
        )
    ]
    base = normflows.distributions.DiagGaussian(dim)
    flow = normflows.NormalizingFlow(base, layers, types.SimpleNamespace(log_prob=density))
    optimizer = torch.optim.Adam(flow.parameters(), lr=1.0)
    spent, values, times = [time.process_time() - began[0], time.perf_counter() - began[1]], [], []
    for first in range(0, len(g["rates"]), g["look"]):
        began = time.process_time(), time.perf_counter()
        for rate in g["rates"][first : first + g["look"]]:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            flow.reverse_kld(g["draws"], score_fn=False).backward()
            optimizer.step()
        spent[0] += time.process_time() - began[0]
        spent[1] += time.perf_counter() - began[1]
        with torch.no_grad():
            u, log_q = flow.sample(g["judged"])
            values.append(float(torch.mean(density(u) - log_q)))
        times.append(list(spent))
    np.savez(written, elbo=values, times=times)


if __name__ == "__main__":
    main(*sys.argv[1:])
