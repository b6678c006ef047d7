"""NPE and NPSE of sbi with its defaults, from given simulations: run by a Python that has PyTorch and sbi.

python sbi_posteriors.py (NPE | NPSE) GIVEN.npz FOUND.npz
"""

import json
import sys
import time

import numpy as np
import torch
from sbi.inference import NPE, NPSE
from sbi.utils import BoxUniform


def prior_of(told):
    """A PyTorch distribution."""
    if told["kind"] == "box":
        bound = told["bound"] * torch.ones(told["dim"])
        return BoxUniform(-bound, bound)
    if told["kind"] == "normal":
        return torch.distributions.MultivariateNormal(
            torch.tensor(told["loc"]), precision_matrix=torch.tensor(told["precision"])
        )
    normal = torch.distributions.LogNormal(torch.tensor(told["loc"]), torch.tensor(told["sd"]))
    return torch.distributions.Independent(normal, 1)


def main():
    kind, given = {"NPE": NPE, "NPSE": NPSE}[sys.argv[1]], np.load(sys.argv[2])
    prior, count = prior_of(json.loads(str(given["prior"]))), int(given["draws"])
    theta, x, observations = (
        torch.as_tensor(given[name], dtype=torch.float32) for name in ("theta", "x", "observations")
    )
    torch.manual_seed(0)
    torch.set_num_threads(1)  # its networks are small, and threads that wait for each other are slower
    began = time.perf_counter()
    inference = kind(prior=prior, show_progress_bars=False)
    network = inference.append_simulations(theta, x).train()
    trained = time.perf_counter()
    posterior = inference.build_posterior(network)
    draws = [posterior.sample((count,), x=o[None], show_progress_bars=False).numpy() for o in observations]
    drawn = time.perf_counter()
    np.savez(sys.argv[3], draws=np.stack(draws), training=trained - began, drawing=drawn - trained)


if __name__ == "__main__":
    main()
