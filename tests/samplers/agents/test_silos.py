"""Split Gibbs between a server and silos, against the law of its augmented target."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.distributed import InProcess, federate
from pushforward.samplers.agents.silos import SplitGibbsServer, split_gibbs_step

from .regression import LAMBDA, XI, regression

RHO = 0.5


def load(silo: int) -> pf.Target:
    """One agent's observations, with the whole prior."""
    _, x, y = regression(5, 50)
    return pf.Target.from_factors(
        lambda b: -jnp.sum(b**2) / (2 * LAMBDA),
        lambda b, datum: -((datum["y"] - datum["x"] @ b) ** 2) / (2 * XI**2),
        {"x": x[silo], "y": y[silo]},
        np.zeros(2),
    )


@pytest.mark.slow
def test_split_gibbs_over_silos_has_the_law_of_its_target():
    make = partial(split_gibbs_step, load, 5, RHO)
    server = SplitGibbsServer(2, 5, RHO)
    run = federate(server, InProcess(make, 5), num_rounds=3000, seed=1)
    theta = run.draws["theta"][100:]
    _, x, y = regression(5, 50)
    hessians = np.array([one.T @ one / XI**2 + np.eye(2) / (5 * LAMBDA) for one in x])
    linear = np.array([one.T @ z / XI**2 for one, z in zip(x, y, strict=True)])
    tied = np.linalg.inv(np.linalg.inv(hessians) + RHO**2 * np.eye(2))
    covariance = np.linalg.inv(tied.sum(0))
    mean = covariance @ np.einsum("nij,njk,nk->i", tied, np.linalg.inv(hessians), linear)
    sd = np.sqrt(np.diag(covariance))
    # ρ²h is about 0.8: some 1,000 of the draws are independent.
    np.testing.assert_allclose(theta.mean(0), mean, atol=0.11 * sd.max())
    np.testing.assert_allclose(theta.std(0), sd, rtol=0.08)
    again = federate(server, InProcess(make, 5), num_rounds=50, seed=1)
    np.testing.assert_array_equal(again.draws["theta"], run.draws["theta"][:50])


def test_settings_that_are_wrong_are_refused():
    with pytest.raises(pf.InvalidArgument, match="rho must be a finite number > 0, got 0"):
        SplitGibbsServer(2, 5, 0)
