"""A fitted posterior given an event: probabilities in closed form, with a right and a wrong score."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import pushforward as pf
from pushforward.infer.errors import InvalidArgument, NonFinite
from pushforward.samplers.diffusion.condition import condition
from pushforward.samplers.diffusion.scores import GaussianScore

COVARIANCE = np.array([[1.0, 0.6], [0.6, 1.0]])
PRECISION = np.linalg.inv(COVARIANCE)


def log_density(u):
    return 3.0 - 0.5 * u @ PRECISION @ u


@pytest.fixture(scope="module", params=[pytest.param(1.0, marks=pytest.mark.slow), 1.3], ids=["right", "wrong"])
def posterior(request):
    """Of N(0, C), from the score of N(0, C) or of a wider one."""
    target = pf.Target.from_log_density(log_density, np.zeros(2))
    score = GaussianScore(jnp.zeros(2), *_spectrum(request.param * COVARIANCE))
    return pf.fit(target, pf.ProbabilityFlow(denoiser=score), num_samples=2000, progress=False)


def _spectrum(covariance):
    values, axes = np.linalg.eigh(covariance)
    return values, axes


def test_probability_of_an_event(posterior):
    """P(3 u₁ − u₂ > 8), 1.3e-3: no draw of 2,000 need be there."""
    given = condition(posterior, lambda values: 3 * values["x"][0] - values["x"][1] - 8, 1000)
    truth = stats.norm.sf(8 / np.sqrt(9 + 1 - 6 * 0.6))
    assert given.probability == pytest.approx(truth, abs=4 * given.error)
    assert given.error < 0.1 * truth
    assert given.inside > 0.8
    assert given.k_hat < 0.7
    # The mean of what the event is about, given the event: by weights.
    w = np.exp(given.log_weights - given.log_weights.max())
    sd = np.sqrt(6.4)
    wanted = sd * stats.norm.pdf(8 / sd) / stats.norm.sf(8 / sd)
    found = w @ (3 * given.draws["x"][:, 0] - given.draws["x"][:, 1]) / w.sum()
    assert found == pytest.approx(wanted, rel=0.02)


def test_bad_events(posterior):
    with pytest.raises(InvalidArgument, match="event must return one real number"):
        condition(posterior, lambda values: values["x"])
    with pytest.raises(InvalidArgument, match=r"posterior must be one of ProbabilityFlow .*, got ndarray"):
        condition(np.zeros((3, 2)), lambda values: values["x"][0])
    with pytest.raises(NonFinite, match="20 of 20 draws given the event go through steps that fold the map: raise"):
        condition(posterior, lambda values: -1.0 - values["x"][0] ** 2, 20)
