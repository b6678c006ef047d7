"""Where a flow begins: wider than the normal found if asked, as long as the log density is finite there."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.variational.flows.start import whitening

SD = np.array([0.1, 10.0])


def normal(u):
    return -0.5 * jnp.sum(((u - 1.0) / jnp.asarray(SD)) ** 2)


def within(u):
    """The same within 1.5 standard deviations of the second coordinate: where 38 of 100 wide draws are."""
    return jnp.where(jnp.abs(u[1] - 1.0) < 15.0, normal(u), jnp.nan)


@pytest.mark.parametrize(
    ("log_density", "asked", "wider"), [(normal, 1.0, 1.0), (normal, 3.0, 3.0), (within, 3.0, 1.0)]
)
def test_a_start_is_widened_where_the_density_is_finite(log_density: Callable, asked: float, wider: float) -> None:
    target = pf.Target.from_log_density(log_density, np.zeros(2))
    with jax.enable_x64(True):
        frame = whitening(jax.random.key(0), target, jnp.zeros(2), "laplace", asked)
        at_zero = frame.transform_and_log_det(jnp.zeros(2))[0]
        np.testing.assert_allclose(frame.standard_deviations(), wider * SD, rtol=1e-6)
    np.testing.assert_allclose(at_zero, 1.0, rtol=1e-6)


@pytest.mark.parametrize(("width", "num_steps", "wider"), [(1.0, 4000, 1.0), (3.0, 4000, 3.0), (3.0, 300, 1.4)])
def test_a_flow_begins_as_wide_as_asked_as_far_as_its_steps_can_take_it_back(
    width: float, num_steps: int, wider: float
) -> None:
    target = pf.Target.from_log_density(normal, np.zeros(2))
    with jax.enable_x64(True):
        method = pf.NormalizingFlow(
            "nice", num_layers=1, hidden=(4,), whiten="laplace", width=width, num_steps=num_steps
        )
        state = method.init(jax.random.key(0), target, jnp.zeros(2))
        frame = state.rest.bijection.bijections[-1]
        np.testing.assert_allclose(frame.standard_deviations(), wider * SD, rtol=1e-6)


def test_unit_scale_stays_unit_scale() -> None:
    target = pf.Target.from_log_density(normal, np.zeros(2))
    with jax.enable_x64(True):
        frame = whitening(jax.random.key(0), target, jnp.ones(2), None, 3.0)
        np.testing.assert_array_equal(frame.standard_deviations(), 1.0)
