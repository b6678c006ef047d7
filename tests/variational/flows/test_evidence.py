"""Evidence from both sides: normals with a known answer, a mode that is missed, a density that is not there."""

import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.variational.flows.evidence import summarise, two_sided_evidence

from .cases import flow_of

LOG_Z = 2.3


def log_normal(x: np.ndarray, loc: float, scale: float) -> np.ndarray:
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)


def test_both_sides_of_two_normals() -> None:
    rng = np.random.default_rng(0)
    q, p = 1.2 * rng.normal(size=4000), 0.1 + rng.normal(size=4000)

    def log_w(x):
        return LOG_Z + log_normal(x, 0.1, 1.0) - log_normal(x, 0.0, 1.2)

    found = summarise(log_w(q), log_w(p))
    assert found.reliable
    for value in (found.log_evidence, found.from_approximation, found.from_posterior):
        assert value == pytest.approx(LOG_Z, abs=0.02)
    # KL(q‖p) and KL(p‖q) of the two normals are what the bounds leave.
    assert LOG_Z - found.lower == pytest.approx((1.44 + 0.01 - 1) / 2 - np.log(1.2), abs=0.01)
    assert found.upper - LOG_Z == pytest.approx((1 / 1.44 + 0.01 / 1.44 - 1) / 2 + np.log(1.2), abs=0.01)
    assert 0.8 < found.forward_ess < 1
    # Of the wrong sign the weights bound nothing.
    assert summarise(-log_w(q), -log_w(p)).log_evidence != pytest.approx(LOG_Z, abs=0.5)


def test_a_mode_that_was_missed_shows_from_the_other_side() -> None:
    rng = np.random.default_rng(1)
    p = np.where(rng.uniform(size=4000) < 0.5, -6.0, 6.0) + rng.normal(size=4000)
    q = 6.0 + rng.normal(size=4000)

    def log_w(x):
        mixture = np.logaddexp(log_normal(x, -6.0, 1.0), log_normal(x, 6.0, 1.0)) - np.log(2)
        return LOG_Z + mixture - log_normal(x, 6.0, 1.0)

    found = summarise(log_w(q), log_w(p))
    assert not found.k_hat > 0.5  # the weights of q's draws see nothing
    assert found.from_approximation == pytest.approx(LOG_Z - np.log(2), abs=0.05)
    assert found.forward_ess < 1e-6
    assert not found.reliable


def test_what_is_no_approximation_or_has_no_density() -> None:
    target = pf.Target.from_log_density(lambda u: -0.5 * jnp.sum(u**2), np.zeros(3))
    draws = np.random.default_rng(0).normal(size=(100, 3))
    with pytest.raises(pf.InvalidArgument, match="must be an Approximation or a Posterior with one, got int"):
        two_sided_evidence(target, 3, draws)
    flow = pf.Flow(flow_of("planar"))
    with pytest.raises(pf.NotAvailable, match="Planar has no inverse"):
        two_sided_evidence(target, flow, draws)
    found = two_sided_evidence(target, pf.Flow(flow_of("radial")), draws)
    assert found.log_evidence == pytest.approx(1.5 * np.log(2 * np.pi), abs=0.5)
