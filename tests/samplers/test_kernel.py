"""A user's BlackJAX algorithm through `Kernel`, and our methods in BlackJAX's own loop."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.samplers.kernel import Kernel, info_type, known_scalars

MEAN, SD = np.array([1.0, -2.0]), np.array([0.5, 2.0])


@cache
def gaussian() -> pf.Target:
    return pf.Target.from_log_density(lambda x: -0.5 * jnp.sum(((x - MEAN) / SD) ** 2), np.zeros(2))


@cache
def nuts():
    import blackjax

    return blackjax.nuts(gaussian().log_density, step_size=0.7, inverse_mass_matrix=np.array([0.25, 4.0]))


def assert_moments(draws: np.ndarray) -> None:
    flat = draws.reshape(-1, 2)
    # A thousand effective draws or more: five standard errors of a mean are 0.16 sd.
    assert np.all(np.abs(flat.mean(0) - MEAN) < 0.16 * SD)
    np.testing.assert_allclose(flat.std(0), SD, rtol=0.12)


def test_a_users_algorithm_is_sampled_and_diagnosed() -> None:
    posterior = pf.fit(gaussian(), Kernel(nuts()), key=0, num_warmup=50, num_samples=500, progress=False)
    assert_moments(posterior.draws()["x"])
    stats = posterior.data["sample_stats"]
    for name in ("acceptance_rate", "diverging", "energy", "n_steps", "tree_depth"):
        assert stats[name].shape == (4, 500)
    assert posterior.record["evaluations"] > int(stats["n_steps"].sum())
    assert "user's own" in str(posterior.diagnose())


def test_an_algorithm_whose_init_takes_a_key_and_a_users_info() -> None:
    import blackjax

    algorithm = blackjax.mclmc(gaussian().log_density, L=1.4, step_size=0.5, inverse_mass_matrix=SD**2)
    method = Kernel(
        algorithm,
        position=lambda state: state.position,
        info=lambda info: {"energy_error": info.energy_change, "num_evaluations": 2},
    )
    posterior = pf.fit(gaussian(), method, key=0, num_warmup=200, num_samples=4000, progress=False)
    assert_moments(posterior.draws()["x"])
    assert set(posterior.data["sample_stats"].data_vars) == {"energy_error", "num_evaluations"}
    assert posterior.record["evaluations"] == 2 * 4 * 4200


def test_known_scalars_and_their_type() -> None:
    info = info_type(("is_divergent", "energy", "momentum"))(np.bool_(True), 1.5, np.ones(3))
    assert known_scalars(info) == {"diverging": np.bool_(True), "energy": 1.5}
    assert info_type(("a", "b")) is info_type(("a", "b"))


def test_kernel_refusals() -> None:
    with pytest.raises(pf.InvalidArgument, match="must be a BlackJAX SamplingAlgorithm with init and step"):
        Kernel(object())
    import blackjax
    from blackjax.base import SamplingAlgorithm

    with pytest.raises(pf.InvalidArgument, match=r"step of rng_key, state, minibatch.*missing a required argument"):
        Kernel(blackjax.sgld(lambda x, batch: x))
    bare = SamplingAlgorithm(lambda x: (x,), lambda key, state: (state, ()))
    with pytest.raises(pf.InvalidArgument, match=r"state, a tuple: .* no attribute 'position'; pass position="):
        pf.fit(gaussian(), Kernel(bare), progress=False)
    with pytest.raises(pf.InvalidArgument, match=r"position gives an array of shape \(1,\)"):
        pf.fit(gaussian(), Kernel(nuts(), position=lambda s: s.position[:1]), progress=False)
    with pytest.raises(pf.InvalidArgument, match=r"wrap a BlackJAX SamplingAlgorithm as pushforward\.Kernel"):
        pf.fit(gaussian(), nuts(), progress=False)


@pytest.mark.parametrize(
    "method",
    [
        pf.NUTS(step_size=0.7, inverse_mass_matrix=SD**2),
        pf.HMC(step_size=0.4, num_leapfrog=5, inverse_mass_matrix=SD**2),
        pf.MCLMC(step_size=0.5, length=1.4, inverse_mass_matrix=SD**2),
    ],
    ids=lambda method: type(method).__name__,
)
def test_our_methods_in_blackjax_loop(method) -> None:
    from blackjax.util import run_inference_algorithm

    with jax.enable_x64(True):
        algorithm = pf.as_sampling_algorithm(method, gaussian())
        _, u = run_inference_algorithm(
            jax.random.key(0), algorithm, 4000, initial_position=jnp.asarray(MEAN),
            transform=lambda state, info: method.draw(state),
        )  # fmt: skip
    assert_moments(np.asarray(u))


def test_what_a_warm_up_learned_can_be_used() -> None:
    with jax.enable_x64(True):
        learned = {"step_size": 0.3, "inverse_mass_matrix": jnp.asarray(SD**2)}
        algorithm = pf.as_sampling_algorithm(pf.NUTS(metric="diagonal"), gaussian(), learned=learned)
        state = algorithm.init(MEAN)
        _, info = algorithm.step(jax.random.key(0), state)
        assert float(info.step_size) == pytest.approx(0.3)
        np.testing.assert_allclose(state.adaptation.metric, SD**2)


def test_adapter_refusals() -> None:
    with pytest.raises(pf.NotAvailable, match="needs a method of kind 'chains', and Pathfinder is of kind"):
        pf.as_sampling_algorithm(pf.Pathfinder(), gaussian())
    with pytest.raises(pf.InvalidArgument, match=r"position has shape \(3,\)"):
        pf.as_sampling_algorithm(pf.NUTS(), gaussian()).init(np.zeros(3))
    with pytest.raises(pf.InvalidArgument, match="target must be a Target"):
        pf.as_sampling_algorithm(pf.NUTS(), lambda x: x)
