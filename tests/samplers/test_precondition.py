"""Sampling in the coordinates of an approximation: NeuTra, and a Gaussian as its special case."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.approximation import Approximation
from pushforward.infer.linalg import Triangular
from pushforward.infer.variational.gaussian.approximation import GaussianApproximation
from tests.run.models import COVARIANCE, MEAN, gaussian


class Sinh(Approximation):
    """u = sinh(z), coordinate by coordinate; ``inverse`` says whether it can be undone."""

    inverse: bool = eqx.field(static=True, default=True)

    def sample_and_log_prob(self, key, n):
        z = jax.random.normal(key, (n, 2))
        return jnp.sinh(z), jnp.zeros(n)

    def transport(self, z):
        return jnp.sinh(z), jnp.sum(jnp.log(jnp.cosh(z)))

    def pull(self, u):
        return jnp.arcsinh(u) if self.inverse else super().pull(u)


def shifted():
    return pf.Target.from_log_density(lambda x: -0.5 * jnp.sum(((x - 1.0) / 2.0) ** 2), np.zeros(2))


@pytest.mark.parametrize("method", [pf.NUTS, pf.HMC, pf.MALA])
def test_a_map_with_a_log_determinant_leaves_the_posterior_as_it_is(method):
    """Without the log-determinant the standard deviation is 1.5 instead of 2, and with the other sign 1.2."""
    posterior = pf.fit(shifted(), method(precondition=Sinh()), num_samples=1500, key=1, progress=False)
    summary = posterior.summary()
    x = posterior.draws()["x"].reshape(-1, 2)
    assert np.abs((x.mean(0) - 1.0) / summary["mcse_mean"]).max() < 4
    assert np.abs(x.std(0) - 2.0).max() < 0.2
    learned = posterior._learned()
    assert set(learned) == {"base_step_size", "base_inverse_mass_matrix"}


def test_a_gaussian_whitens():
    with jax.enable_x64(True):
        q = GaussianApproximation(jnp.asarray(MEAN), Triangular(jnp.linalg.cholesky(jnp.asarray(COVARIANCE))))
    method = pf.NUTS(precondition=q)
    posterior = pf.fit(gaussian(), method, num_samples=500, key=2, progress=False)
    for chain in posterior._learned()["base_inverse_mass_matrix"]:
        np.testing.assert_allclose(chain, np.eye(3), atol=1e-6)
    x = posterior.draws()["x"].reshape(-1, 3)
    np.testing.assert_allclose((x.mean(0) - MEAN) / np.sqrt(np.diag(COVARIANCE)), 0.0, atol=0.15)
    # What was learned is of z: another run of the same coordinates takes it up, one of u does not.
    assert posterior.teaches(method)
    assert not posterior.teaches(pf.NUTS())
    again = pf.fit(gaussian(), method, num_samples=50, start=posterior, key=3, progress=False)
    np.testing.assert_allclose(again._learned()["base_inverse_mass_matrix"][0], np.eye(3), atol=1e-6)


def test_refusals():
    with pytest.raises(pf.InvalidArgument, match="precondition must be an Approximation or a posterior with one"):
        pf.NUTS(precondition=np.eye(3))
    chains = pf.fit(shifted(), pf.NUTS(), num_samples=10, num_warmup=30, progress=False)
    with pytest.raises(pf.InvalidArgument, match=r"precondition must .*, got Posterior by NUTS"):
        pf.NUTS(precondition=chains)
    with pytest.raises(pf.NotAvailable, match="Sinh has no inverse map"):
        pf.fit(shifted(), pf.NUTS(precondition=Sinh(inverse=False)), progress=False)
