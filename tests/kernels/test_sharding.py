"""One cloud over several devices gives what it gives on one, to rounding: a child process with eight of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import pushforward as pf
from pushforward.infer.diagnostics.discrepancies import energy_distance, ksd, mksd, mmd
from pushforward.infer.distributed.mesh import data_mesh, num_shards, particle_mesh
from pushforward.infer.distributed.rows import row_terms, vmap_rows
from pushforward.infer.geometry import SimplexEntropy
from pushforward.infer.kernels.metric import Diagonal, Identity, RankOne
from pushforward.infer.kernels.velocity import velocity
from pushforward.infer.target.spread import spread_rows
from pushforward.infer.variational.mode import expansion

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import json, jax
from tests.kernels.test_sharding import agents, cloud, discrepancies, spread, velocities
assert jax.local_device_count() == 8
found = {f.__name__: {k: f(k).tolist() for k in (1, 2, 8)} for f in (velocities, discrepancies, agents, spread)}
print(json.dumps(found | {"cloud": cloud().tolist()}))
"""


def velocities(devices: int) -> np.ndarray:
    """Of 333 particles, which neither tiles nor devices divide, with both kernels and all forms of P."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True), jax.set_mesh(particle_mesh(jax.devices()[:devices])):
        assert num_shards() == devices
        x, drift = rng.standard_normal((2, 333, 6))
        p = rng.uniform(0.5, 1, (333, 2))
        metric = (Identity(2), Diagonal(p), RankOne(p, p, p))
        compute = jax.jit(velocity, static_argnames=("kernel", "tile"))
        found = [compute(kernel, x, drift, 2.0, metric, tile=32) for kernel in ("rbf", "imq")]
        if devices == 8:
            assert len(found[0].sharding.device_set) == 8
        return np.stack(found)


def discrepancies(devices: int) -> np.ndarray:
    """A KSD and two MKSD of as many points, whose tiles no number of devices divides, and distances of two samples."""
    rng = np.random.default_rng(1)
    p, x = rng.dirichlet([2.0, 3.0, 5.0], 333)[:, :-1], rng.standard_normal((700, 2))
    score = np.array([1.0, 2.0]) / p - 4 / (1 - p.sum(1, keepdims=True))
    with jax.set_mesh(particle_mesh(jax.devices()[:devices])):
        found = [
            ksd(x, -(x**3), bandwidth=1.0),
            *(mksd(p, score, SimplexEntropy(), bandwidth=1.0, space=space) for space in ("dual", "primal")),
            energy_distance(x, x[:300] + 1.0),
            mmd(x, x[:300] + 1.0, bandwidth=1.0),
        ]
    return np.array([one[:4] for one in found])


def agents(devices: int) -> np.ndarray:
    """What 13 rows make, two things each, and value, gradient and Hessian of a sum over them."""
    with jax.enable_x64(True), jax.set_mesh(particle_mesh(jax.devices()[:devices])):
        rows = np.random.default_rng(2).standard_normal((13, 3))
        found, signs = jax.jit(lambda x: vmap_rows(lambda x: (jnp.tanh(x) @ x, jnp.sign(x)[:2].astype(int)), x))(rows)
        with jax.enable_x64(False):
            big = jnp.array([2**24 + 1, -(2**30) - 3] * 6 + [5], jnp.int32)
            kept = jax.jit(lambda k: vmap_rows(lambda k: (k, jnp.float32(0.5)), k))(big)[0]
        total = lambda u: jnp.sum(row_terms(lambda u, x: jnp.cos(x @ u), u, (rows,)))  # noqa: E731
        value, gradient, hessian = jax.jit(lambda u: expansion(total, u))(jnp.arange(3.0))
        return np.concatenate([found, np.ravel(signs), value[None], gradient, np.ravel(hessian), kept])


def spread(devices: int) -> np.ndarray:
    """Log density and gradient of seven rows, which no number of devices above one divides."""
    with jax.enable_x64(True):
        rows = np.random.default_rng(3).standard_normal(7)
        target = pf.Target.from_factors(lambda b: -0.5 * b @ b, lambda b, y: -0.5 * (y - b[0]) ** 2, rows, jnp.zeros(1))
        shared = spread_rows(target, data_mesh(jax.devices()[:devices]))
        value, gradient = jax.jit(lambda t, u: jax.value_and_grad(t.log_density)(u))(shared, jnp.ones(1))
        return np.append(gradient, value)


def model() -> None:
    numpyro.sample("rate", dist.Gamma(3.0, 1.0))
    numpyro.sample("share", dist.Dirichlet(np.array([2.0, 3.0, 5.0])))


def cloud() -> np.ndarray:
    """A fit of 48 particles, which eight devices share."""
    method = pf.MirroredSVGD(num_particles=48, num_steps=40)
    return pf.fit(pf.Target.from_numpyro(model), method, progress=False, precision=64).draws()["share"]


@pytest.fixture(scope="module")
def child() -> dict:
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    out = subprocess.run([sys.executable, "-c", CHILD], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout.splitlines()[-1])


def test_velocities(child: dict) -> None:
    here = velocities(1)
    for found in child["velocities"].values():
        np.testing.assert_allclose(found, here, rtol=0, atol=1e-12 * np.abs(here).max())


def test_rows(child: dict) -> None:
    here = agents(1)
    x, u = np.random.default_rng(2).standard_normal((13, 3)), np.arange(3.0)
    gradient, hessian = -np.sin(x @ u) @ x, -(x.T * np.cos(x @ u)) @ x
    kept = [2**24 + 1, -(2**30) - 3] * 6 + [5]
    expected = [
        np.sum(np.tanh(x) * x, 1),
        np.sign(x)[:, :2].ravel(),
        [np.cos(x @ u).sum()],
        gradient,
        hessian.ravel(),
        kept,
    ]
    np.testing.assert_allclose(here, np.concatenate(expected), rtol=1e-12)
    for found in child["agents"].values():
        np.testing.assert_allclose(found, here, rtol=1e-12)


def test_rows_that_do_not_come_out_even(child: dict) -> None:
    y = np.random.default_rng(3).standard_normal(7)
    expected = [np.sum(y - 1) - 1, -0.5 * np.sum((y - 1) ** 2) - 0.5]
    for found in child["spread"].values():
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_discrepancies(child: dict) -> None:
    here = discrepancies(1)
    for found in child["discrepancies"].values():
        np.testing.assert_allclose(found, here, rtol=1e-11)


def test_a_fit(child: dict) -> None:
    np.testing.assert_allclose(child["cloud"], cloud(), rtol=1e-6)
