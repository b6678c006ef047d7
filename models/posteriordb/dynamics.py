"""NumPyro models of posteriordb for sequences: autoregressions, a hidden Markov model, and an ODE.

A `lax.scan` of N cheap steps costs its N dispatches, not its arithmetic, in both directions of the gradient.
"""

import jax
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

    e_1 = y_1 - mu - phi mu, then e_t = c_t - theta e_{t-1} with c_t = y_t - mu - phi y_{t-1}. That is
    e = sum_k (-theta)^k S^k c with the shift S, or (1 + a S)(1 + a² S²)(1 + a⁴ S⁴)... c with a = -theta: log2 T
    multiply-adds of vectors instead of a loop of T steps, equal to rounding.
    """
    y = jnp.asarray(y)
    error = y - mu - phi * jnp.concatenate([jnp.reshape(mu, (1,)), y[:-1]])
    factor, shift = -theta, 1
    while shift < y.shape[0]:
        error = error + factor * jnp.pad(error[:-shift], (shift, 0))
        factor, shift = factor**2, 2 * shift
    return error


def arma11(y):
    """ARMA(1, 1): ``nu_t = mu + phi y_{t-1} + theta e_{t-1}``, ``e_t = y_t - nu_t ~ N(0, sigma)``; y is (T,)."""
    y = jnp.asarray(y)
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = numpyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = numpyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    with numpyro.plate("time", y.shape[0]):
        numpyro.sample("y", dist.Normal(y - arma_errors(y, mu, phi, theta), sigma), obs=y)


def log_chain(log_start, log_steps):
    """Log of ``start @ step_1 @ ... @ step_n`` for non-negative arrays given by their logs, shape (K,).

    Neighbours are multiplied in pairs until one matrix is left; an odd one out waits for the next round.

    Parameters
    ----------
    log_start
        Float array of shape (K,).
    log_steps
        Float array of shape (n, K, K).
    """
    while (n := log_steps.shape[0]) > 1:
        left, right = log_steps[0 : n - n % 2 : 2], log_steps[1::2]
        pairs = jax.nn.logsumexp(left[:, :, :, None] + right[:, None, :, :], axis=2)
        log_steps = jnp.concatenate([pairs, log_steps[n - 1 :]]) if n % 2 else pairs
    return jax.nn.logsumexp(log_start[:, None] + log_steps[0], axis=0)


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
    steps = jnp.log(jnp.stack([theta1, theta2])) + emission[1:, None, :]  # log P(k at t, u_t, v_t | j at t - 1)
    numpyro.factor("forward", jax.nn.logsumexp(log_chain(emission[0], steps)))


# Blanes and Moan (2002), "Practical symplectic partitioned Runge-Kutta and Runge-Kutta-Nystrom methods",
# J. Comput. Appl. Math. 142, 313-330, Table 2: order 6, 10 stages (S10). Symmetric: the first half is given.
_A = (0.0502627644003922, 0.413514300428344, 0.0450798897943977, -0.188054853819569, 0.541960678450780)
_B = (0.148816447901042, -0.132385865767784, 0.067307604692185, 0.432666402578175)
_SUBSTEPS = 4


def lotka_volterra_log_states(theta, z_init, ts, substeps=_SUBSTEPS):
    """Logs of the populations (u, v) at the times ``ts``, shape (N, 2), from ``z_init`` at time 0.

    In q = log u and p = log v the system dq/dt = theta1 - theta2 e^p, dp/dt = -theta3 + theta4 e^q is Hamiltonian and
    separable, and populations stay positive whatever the step. ``substeps`` steps of a symplectic splitting of order 6
    between two times leave a relative error below 1e-7 over the posterior of the Hudson Bay data, a tenth of what an
    adaptive solver is usually asked for, and unlike it a density that is smooth in the parameters.
    20 exponentials a step, each way.
    """
    drift = (*_A, 1.0 - 2.0 * sum(_A), *_A[::-1])
    half = (*_B, 0.5 - sum(_B))
    kick = (*half, *half[::-1])

    def step(state, h):
        q, p = state
        for a, b in zip(drift, kick, strict=False):
            q = q + a * h * (theta[0] - theta[1] * jnp.exp(p))
            p = p + b * h * (theta[3] * jnp.exp(q) - theta[2])
        q = q + drift[-1] * h * (theta[0] - theta[1] * jnp.exp(p))
        return (q, p), (q, p)

    ts = jnp.asarray(ts)
    start = jnp.log(z_init)
    sizes = jnp.repeat(jnp.diff(ts, prepend=jnp.zeros_like(ts[:1])) / substeps, substeps)
    _, (q, p) = lax.scan(step, (start[0], start[1]), sizes)
    return jnp.stack([q, p], -1)[substeps - 1 :: substeps]


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
    z_init = numpyro.sample("z_init", dist.LogNormal(jnp.log(10.0), 1.0).expand([2]).to_event(1))
    log_z = lotka_volterra_log_states(theta, z_init, ts)
    with numpyro.plate("species", 2):
        numpyro.sample("y_init", dist.LogNormal(jnp.log(z_init), sigma), obs=y_init)
        with numpyro.plate("time", log_z.shape[0]):
            numpyro.sample("y", dist.LogNormal(log_z, sigma), obs=y)
