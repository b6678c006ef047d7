"""Whole fits of each sampler on one, two and eight devices, of which no number has as many particles as another."""

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

ROOT = Path(__file__).resolve().parents[3]
CHILD = """
import json
from tests.samplers.stein.test_devices import RUNS, clouds
print(json.dumps({name: [cloud.tolist() for cloud in clouds(name, (1, 2, 8))] for name in RUNS}))
"""
X = np.random.default_rng(0).normal(size=(60, 3))


def model() -> None:
    numpyro.sample("rate", dist.Gamma(3.0, 1.0))
    numpyro.sample("share", dist.Dirichlet(np.array([2.0, 3.0, 5.0])))


def logistic() -> pf.Target:
    return pf.Target.from_factors(
        lambda w: -0.5 * jnp.sum(w**2), lambda w, x: -jnp.logaddexp(0.0, x @ w), X, np.zeros(3)
    )


SHORT = {"num_particles": 50, "num_steps": 30}
RUNS = {
    "SVGD": lambda: (pf.Target.from_numpyro(model), pf.SVGD(kernel="rbf", tile=16, **SHORT)),
    "MirroredSVGD": lambda: (pf.Target.from_numpyro(model), pf.MirroredSVGD(rule="mean", patience=5, **SHORT)),
    "SVMD": lambda: (pf.Target.from_numpyro(model), pf.SVMD(**SHORT)),
    "SVNG": lambda: (logistic(), pf.SVNG(metric="observed", **SHORT)),
    "SVNG, mini-batches": lambda: (logistic(), pf.SVNG(batch_size=20, **SHORT)),
}


def clouds(name: str, devices: tuple[int, ...]) -> list[np.ndarray]:
    """Particles in all coordinates, at the end of one fit for each number of devices."""
    target, method = RUNS[name]()
    meshes = [jax.sharding.Mesh(np.array(jax.devices()[:k]), ("particles",)) for k in devices]
    found = [pf.fit(target, method, key=1, mesh=mesh, progress=False, precision=64) for mesh in meshes]
    return [pf.discrepancies.flatten(posterior) for posterior in found]


@pytest.fixture(scope="module")
def child() -> dict[str, list[list]]:
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    out = subprocess.run([sys.executable, "-c", CHILD], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_whole_fit(child: dict, name: str) -> None:
    """Thirty steps, three bandwidths; rounding has grown to less than a millionth of a cloud's width."""
    (here,) = clouds(name, (1,))
    assert len(child[name]) == 3
    for found in child[name]:
        np.testing.assert_allclose(found, here, rtol=0, atol=1e-6 * here.std())
