"""NumPyro models of posteriordb for sequences: autoregressions, a hidden Markov model, and an ODE.

The recursions are plain `lax.scan`s with a small body. Reductions of logarithmic depth (doubling for the ARMA errors, a
tree of matrix products for the hidden Markov model) and unrolled bodies were measured too: on CPU they run no faster,
and they compile two to five times as long, which a cold start pays.
"""

import math

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import lax
from numpyro.distributions import constraints

from .latent import Restricted


def arK(y, K=5):
    """Autoregression of order K: ``y_t ~ N(alpha + sum_k beta_k y_{t-k}, sigma)`` for t = K + 1..T; y is (T,)."""
    y = jnp.asarray(y)
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([K]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    size = y.shape[0] - K
    mean = alpha + sum(beta[k] * y[K - k - 1 : K - k - 1 + size] for k in range(K))
    with numpyro.plate("time", size):
        numpyro.sample("y", dist.Normal(mean, sigma), obs=y[K:])


def arma_errors(y, mu, phi, theta):
    """One-step errors of an ARMA(1, 1), shape (T,).

    e_1 = y_1 - mu - phi mu, then e_t = y_t - mu - phi y_{t-1} - theta e_{t-1}.
    """
    y = jnp.asarray(y)
    autoregressive = y - mu - phi * jnp.concatenate([jnp.reshape(mu, (1,)), y[:-1]])

    def step(error, rest):
        error = rest - theta * error
        return error, error

    return lax.scan(step, jnp.zeros_like(autoregressive[0]), autoregressive)[1]


def arma11(y):
    """ARMA(1, 1): ``nu_t = mu + phi y_{t-1} + theta e_{t-1}``, ``e_t = y_t - nu_t ~ N(0, sigma)``; y is (T,)."""
    y = jnp.asarray(y)
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = numpyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = numpyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    with numpyro.plate("time", y.shape[0]):
        numpyro.sample("y", dist.Normal(y - arma_errors(y, mu, phi, theta), sigma), obs=y)


def log_forward(log_transition, log_emission):
    """Log likelihood of a hidden Markov model by the forward algorithm, without a term for the first state.

    gamma_1(k) = e_1(k), gamma_t(k) = e_t(k) + log sum_j exp(gamma_{t-1}(j) + log P_jk), and log sum_k exp gamma_T(k).

    Parameters
    ----------
    log_transition
        Float array of shape (K, K): row j is log P(next state | state j).
    log_emission
        Float array of shape (T, K): e_t(k), log density of what was seen at t given state k.
    """

    def step(gamma, emission):
        return logsumexp(gamma[:, None] + log_transition) + emission, None

    return logsumexp(lax.scan(step, log_emission[0], log_emission[1:])[0])


def logsumexp(x):
    """Log sum exp over the first axis, without `jax.nn.logsumexp`'s guards against infinite terms."""
    top = lax.stop_gradient(jnp.max(x, axis=0))
    return top + jnp.log(jnp.sum(jnp.exp(x - top), axis=0))


def hmm_drive_0(u, v, alpha):
    """Two-state hidden Markov model of a basketball drive, its states summed out; no initial-state term.

    Parameters
    ----------
    u, v
        Float arrays of shape (N,): two distances, each Exponential given the state, with rates phi and lambda.
    alpha
        Float array of shape (2, 2): concentrations of the Dirichlet priors of the transition rows theta1 and theta2.
    """
    u, v, alpha = jnp.asarray(u), jnp.asarray(v), jnp.asarray(alpha)
    ordered = constraints.positive_ordered_vector
    means = dist.Normal(jnp.array([0.0, 3.0]), 1.0).to_event(1)
    theta1 = numpyro.sample("theta1", dist.Dirichlet(alpha[0]))
    theta2 = numpyro.sample("theta2", dist.Dirichlet(alpha[1]))
    phi = numpyro.sample("phi", Restricted(means, ordered))
    lambda_ = numpyro.sample("lambda", Restricted(means, ordered))
    emission = jnp.log(phi) - u[:, None] * phi + jnp.log(lambda_) - v[:, None] * lambda_  # (N, K)
    numpyro.factor("forward", log_forward(jnp.log(jnp.stack([theta1, theta2])), emission))


# Blanes and Moan (2002), "Practical symplectic partitioned Runge-Kutta and Runge-Kutta-Nystrom methods",
# J. Comput. Appl. Math. 142, 313-330: the splitting S10 of order 6, ABA...BA. Symmetric, so half of it is given; the
# middle coefficients make each kind sum to 1, and a last kick of 0 pairs them.
_A = (0.0502627644003922, 0.413514300428344, 0.0450798897943977, -0.188054853819569, 0.541960678450780)
_B = (0.148816447901042, -0.132385865767784, 0.067307604692185, 0.432666402578175)
_DRIFT = (*_A, 1.0 - 2.0 * sum(_A), *_A[::-1])
_KICK = (*_B, 0.5 - sum(_B), 0.5 - sum(_B), *_B[::-1], 0.0)


def lotka_volterra_log_states(theta, z_init, ts, substeps=3):
    """Logs of the populations (u, v) at the times ``ts``, shape (N, 2), from ``z_init`` at time 0.

    In q = log u and p = log v the system dq/dt = theta1 - theta2 e^p, dp/dt = -theta3 + theta4 e^q is Hamiltonian and
    separable, and populations stay positive whatever the step. ``substeps`` steps of a symplectic splitting of order 6
    between two times leave a relative error of about 1e-7 over the posterior of the Hudson Bay data, a tenth of what an
    adaptive solver is usually asked for, and unlike it a density that is smooth in the parameters. 22 exponentials a
    step; the backward pass reuses them.
    """
    ts = jnp.asarray(ts)
    steps = jnp.repeat(jnp.diff(ts, prepend=jnp.zeros_like(ts[:1])) / substeps, substeps)
    stages = steps[:, None, None] * jnp.array([_DRIFT, _KICK]).T  # (steps, stages, 2)

    def stage(state, h):
        q, p = state
        q = q + h[0] * (theta[0] - theta[1] * jnp.exp(p))
        p = p + h[1] * (theta[3] * jnp.exp(q) - theta[2])
        return (q, p), (q, p)

    start = jnp.log(z_init)
    _, (q, p) = lax.scan(stage, (start[0], start[1]), stages.reshape(-1, 2))
    every = substeps * len(_DRIFT)
    return jnp.stack([q, p], -1)[every - 1 :: every]


def lotka_volterra(ts, y_init=None, y=None):
    """Hudson Bay's lynx and hare: Lotka-Volterra dynamics seen with log-normal error.

    Parameters
    ----------
    ts
        Float array of shape (N,): increasing times above 0, about a year apart.
    y_init
        Float array of shape (2,): pelts of hare and lynx at time 0, or None to sample them.
    y
        Float array of shape (N, 2): pelts at ``ts``, or None to sample them.
    """
    loc, scale = jnp.array([1.0, 0.05, 1.0, 0.05]), jnp.array([0.5, 0.05, 0.5, 0.05])
    theta = numpyro.sample("theta", dist.TruncatedNormal(loc, scale, low=0.0).to_event(1))
    sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))
    z_init = numpyro.sample("z_init", dist.LogNormal(math.log(10.0), 1.0).expand([2]).to_event(1))
    log_z = lotka_volterra_log_states(theta, z_init, ts)
    with numpyro.plate("species", 2):
        numpyro.sample("y_init", dist.LogNormal(jnp.log(z_init), sigma), obs=y_init)
        with numpyro.plate("time", log_z.shape[0]):
            numpyro.sample("y", dist.LogNormal(log_z, sigma), obs=y)
