"""The benchmark's models in PyMC, the same densities as in `pushforward.models`, for nutpie."""

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt


def eight_schools(sigma, y):
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 5.0)
        tau = pm.HalfCauchy("tau", 5.0)
        z = pm.Normal("z", 0.0, 1.0, shape=len(y))
        theta = pm.Deterministic("theta", mu + tau * z)
        pm.Normal("y", theta, sigma, observed=y)
    return model


def diamonds(Xc, X_mean, Y):
    with pm.Model() as model:
        b = pm.Normal("b", 0.0, 1.0, shape=Xc.shape[1])
        intercept = pm.StudentT("Intercept", nu=3.0, mu=8.0, sigma=10.0)
        sigma = pm.HalfStudentT("sigma", nu=3.0, sigma=10.0)
        pm.Normal("Y", intercept + pt.dot(Xc, b), sigma, observed=Y)
        pm.Deterministic("b_Intercept", intercept - pt.dot(X_mean, b))
    return model


def gp_regr(x, y):
    with pm.Model() as model:
        rho = pm.Gamma("rho", alpha=25.0, beta=4.0)
        alpha = pm.HalfNormal("alpha", 2.0)
        sigma = pm.HalfNormal("sigma", 1.0)
        squares = (x[:, None] - x[None, :]) ** 2
        covariance = alpha**2 * pt.exp(-0.5 * squares / rho**2) + sigma * pt.eye(len(x))
        pm.MvNormal("y", mu=np.zeros(len(x)), cov=covariance, observed=y)
    return model


def lotka_volterra(ts, y_init, y):
    from pushforward.models.posteriordb.dynamics import _DRIFT, _KICK

    substeps = 3
    steps = np.repeat(np.diff(ts, prepend=0.0) / substeps, substeps)
    stages = (steps[:, None, None] * np.array([_DRIFT, _KICK]).T).reshape(-1, 2)
    with pm.Model() as model:
        theta = pm.TruncatedNormal("theta", mu=[1.0, 0.05, 1.0, 0.05], sigma=[0.5, 0.05, 0.5, 0.05], lower=0.0)
        sigma = pm.LogNormal("sigma", -1.0, 1.0, shape=2)
        z_init = pm.LogNormal("z_init", np.log(10.0), 1.0, shape=2)

        def stage(h, q, p, theta):
            q = q + h[0] * (theta[0] - theta[1] * pt.exp(p))
            p = p + h[1] * (theta[3] * pt.exp(q) - theta[2])
            return q, p

        start = pt.log(z_init)
        (q, p), _ = pytensor.scan(
            stage, sequences=[pt.as_tensor(stages)], outputs_info=[start[0], start[1]], non_sequences=[theta]
        )
        every = substeps * len(_DRIFT)
        log_z = pt.stack([q, p], axis=-1)[every - 1 :: every]
        pm.LogNormal("y_init", pt.log(z_init), sigma, observed=y_init)
        pm.LogNormal("y", log_z, sigma, observed=y)
    return model


def hmm_drive_0(u, v, alpha):
    with pm.Model() as model:
        theta1 = pm.Dirichlet("theta1", alpha[0])
        theta2 = pm.Dirichlet("theta2", alpha[1])
        phi = _positive_ordered("phi")
        lambda_ = _positive_ordered("lambda")
        emission = pt.log(phi) - u[:, None] * phi + pt.log(lambda_) - v[:, None] * lambda_
        log_transition = pt.log(pt.stack([theta1, theta2]))

        def step(emission, gamma, log_transition):
            return pm.math.logsumexp(gamma[:, None] + log_transition, axis=0).ravel() + emission

        gamma, _ = pytensor.scan(
            step, sequences=[emission[1:]], outputs_info=[emission[0]], non_sequences=[log_transition]
        )
        pm.Potential("forward", pm.math.logsumexp(gamma[-1]))
    return model


def _positive_ordered(name):
    """x_1 < x_2, both positive, with priors N(0, 1) and N(3, 1): logarithms of the first and of the increment."""
    logs = pm.Flat(f"{name}_log", shape=2)
    value = pm.Deterministic(name, pt.cumsum(pt.exp(logs)))
    pm.Potential(f"{name}_prior", pt.sum(logs) - 0.5 * pt.sum((value - np.array([0.0, 3.0])) ** 2))
    return value


MODELS = {
    "eight_schools_noncentered": eight_schools,
    "diamonds": diamonds,
    "gp_regr": gp_regr,
    "lotka_volterra": lotka_volterra,
    "hmm_drive_0": hmm_drive_0,
}
