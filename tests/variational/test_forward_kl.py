"""Path gradients of the forward KL, from draws of the posterior and its density: exact, and quiet at the optimum."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flowjax import flows
from flowjax.distributions import StandardNormal
from jaxtyping import Array

import pushforward as pf
from pushforward.infer.linalg import Triangular
from pushforward.infer.train import Trainer
from pushforward.infer.variational.estimators import FastPath, FixedDraws, StickingTheLanding, check, split
from pushforward.infer.variational.objectives import ForwardKL

from .small_families import FlowjaxFlow, Normal


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


class Skewed(pf.Approximation):
    """u = m + s sinh(arsinh z + e): a map that no affine one is."""

    loc: Array
    log_scale: Array
    skew: Array

    def transport(self, z):
        slope = jnp.cosh(jnp.arcsinh(z) + self.skew) / jnp.sqrt(1 + z**2)
        u = self.loc + jnp.exp(self.log_scale) * jnp.sinh(jnp.arcsinh(z) + self.skew)
        return u, jnp.sum(self.log_scale + jnp.log(slope))

    def pull(self, u):
        return jnp.sinh(jnp.arcsinh((u - self.loc) * jnp.exp(-self.log_scale)) - self.skew)

    def log_prob(self, u):
        z = self.pull(u)
        return jnp.sum(-0.5 * z**2 - 0.5 * jnp.log(2 * jnp.pi)) - self.transport(z)[1]

    def sample_and_log_prob(self, key, n):
        u = jax.vmap(lambda z: self.transport(z)[0])(jax.random.normal(key, (n, self.loc.shape[0])))
        return u, jax.vmap(self.log_prob)(u)


def skewed():
    return Skewed(jnp.array([0.7]), jnp.array([-0.6]), jnp.array([0.3]))


def log_gamma_density(u):
    """Logarithm of a Gamma(3, 1) variable, unnormalised."""
    return jnp.sum(3 * u - jnp.exp(u))


NODES = np.linspace(-12, 4, 4001)
WEIGHTS = np.exp(3 * NODES - np.exp(NODES))
WEIGHTS /= WEIGHTS.sum()


def at_nodes(gradient):
    """Expectation under π of a gradient at one point, by quadrature."""
    found = jax.jit(jax.vmap(gradient))(NODES[:, None])
    return [np.tensordot(WEIGHTS, g, 1) for g in jax.tree.leaves(found)]


def test_its_expectation_is_the_gradient_of_the_divergence() -> None:
    q = skewed()
    exact = jax.tree.leaves(jax.jit(jax.grad(lambda q: jnp.asarray(WEIGHTS) @ jax.vmap(q.log_prob)(NODES[:, None])))(q))
    assert min(np.abs(g).min() for g in exact) > 0.05

    def estimated(estimator):
        def gradient(u):
            objective = ForwardKL(u[None], num_draws=1)
            return estimator.value_and_grad(objective, q, log_gamma_density, jax.random.key(0)).grads

        return gradient

    for estimator in (StickingTheLanding(), FixedDraws()):
        np.testing.assert_allclose(at_nodes(estimated(estimator)), exact, rtol=1e-7)

    def written(u, *, with_q=True, back=lambda q, held, u: held.pull(u)):
        """The estimate by hand, z = T⁻¹(u) held fixed; the options make wrong ones."""

        def surrogate(q):
            held = jax.lax.stop_gradient(q)
            g = jax.grad(log_gamma_density)(u) - with_q * jax.grad(held.log_prob)(u)
            return g @ q.transport(back(q, held, u))[0]

        return jax.grad(surrogate)(q)

    np.testing.assert_allclose(at_nodes(written), exact, rtol=1e-7)
    wrong = {
        "score of q left out": lambda u: written(u, with_q=False),
        "z not held": lambda u: written(u, back=lambda q, held, u: q.pull(u)),
        "z drawn afresh": lambda u: written(u, back=lambda q, held, u: 0 * u + 0.4),
    }
    for name, gradient in wrong.items():
        assert not np.allclose(at_nodes(gradient), exact, rtol=0.05), name


def test_no_noise_where_the_family_is_the_posterior() -> None:
    q = skewed()
    draws = q.sample_and_log_prob(jax.random.key(0), 400)[0]

    def gradients(estimator):
        def one(u):
            return estimator.value_and_grad(ForwardKL(u[None], 1), q, skewed().log_prob, jax.random.key(1)).grads

        return np.hstack(jax.tree.leaves(jax.jit(jax.vmap(one))(draws)))

    assert np.abs(gradients(StickingTheLanding())).max() < 1e-12
    assert gradients(FixedDraws()).var(0).min() > 0.1  # the Fisher information


def test_gaussian_families_have_it_too() -> None:
    mean, sd = np.array([1.0, -0.5]), np.array([0.8, 1.5])
    q = pf.GaussianApproximation(jnp.array([0.4, 0.2]), Triangular(jnp.array([[1.1, 0.0], [0.3, 0.7]])))
    draws = mean + sd * np.random.default_rng(0).normal(size=(400, 2))

    def loss(q):
        return jnp.mean(jax.vmap(q.log_prob)(draws))

    @jax.jit
    def path(q):
        one = lambda u: StickingTheLanding().value_and_grad(  # noqa: E731
            ForwardKL(u[None], 1), q, lambda u: -0.5 * jnp.sum(((u - mean) / sd) ** 2), jax.random.key(0)
        )
        return jax.vmap(lambda u: one(u).grads)(draws)

    for name, exact in (("loc", jax.grad(loss)(q).loc), ("scale", jnp.tril(jax.grad(loss)(q).factor.dense()))):
        found = path(q).loc if name == "loc" else jnp.tril(path(q).factor.dense())
        error = np.asarray(found).std(0) / np.sqrt(len(draws))
        # The two estimates have different noise; over these draws both are near the expectation.
        assert np.all(np.abs(np.mean(found, 0) - exact) < 5 * error + 0.15), name


def test_families_without_a_map_are_refused() -> None:
    objective = ForwardKL(np.zeros((3, 2)))
    with pytest.raises(pf.InvalidArgument, match=r"needs the draw of the base behind a point, which Normal lacks"):
        check(objective, StickingTheLanding(), Normal(jnp.zeros(2), jnp.zeros(2)))
    check(objective, FixedDraws(), Normal(jnp.zeros(2), jnp.zeros(2)))
    check(ForwardKL(np.zeros((3, 1))), StickingTheLanding(), skewed())


@pytest.mark.slow
def test_the_force_keeps_a_flow_from_learning_its_draws_by_heart() -> None:
    # Vaitl et al. (2024), toy: 16 draws of N(0.2, ½ I) in the plane, three couplings of 64 hidden units, 500 steps.
    rng = np.random.default_rng(0)
    train, test = 0.2 + np.sqrt(0.5) * rng.normal(size=(16, 2)), 0.2 + np.sqrt(0.5) * rng.normal(size=(2000, 2))
    made = flows.coupling_flow(
        jax.random.key(0), base_dist=StandardNormal((2,)), flow_layers=3, nn_width=64, nn_depth=1, invert=False
    )
    start, static = split(FlowjaxFlow(made.base_dist, made.bijection))
    trainer = Trainer(learning_rate=1e-3, num_steps=500, tolerance=None)

    def log_density(u):
        return -jnp.sum((u - 0.2) ** 2)

    def fitted(estimator):
        def step(state, t):
            q = eqx.combine(state.params, static)
            key = jax.random.fold_in(jax.random.key(1), t)
            found = estimator.value_and_grad(ForwardKL(train, num_draws=16), q, log_density, key)
            return trainer.update(state, found.value, found.grads, t)[0], None

        @jax.jit
        def run():
            state = jax.lax.scan(step, trainer.init(start), jnp.arange(500))[0]
            log_prob = jax.vmap(eqx.combine(state.params, static).log_prob)
            return -jnp.mean(log_prob(train)), -jnp.mean(log_prob(test))

        return [float(x) for x in run()]

    # On the draws that it saw, and on others; their entropy is 2.14. With the force it is worse on the first, and not
    # lost on the others (5.0 and 2e6 here).
    (likelihood, likelihood_test), (path, path_test) = fitted(FixedDraws()), fitted(FastPath())
    assert likelihood < path - 0.5
    assert path_test < 8
    assert likelihood_test > 100
