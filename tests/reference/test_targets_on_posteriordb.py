"""Targets of all reference models: densities as NumPyro gives them, round trips, and one program per shape of data."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import potential_energy

from pushforward.infer.target.labelled import unpack
from pushforward.models import posteriordb

DATABASE = Path(__file__).resolve().parents[2].parent / "shared" / "posteriordb"
pytestmark = pytest.mark.skipif(not DATABASE.is_dir(), reason="needs a posteriordb beside the repository")


@pytest.mark.parametrize("name", posteriordb.names())
def test_target_agrees_with_numpyro(name):
    reference = posteriordb.load(name, DATABASE / "posterior_database")
    target = reference.target()
    with jax.enable_x64(True):
        u = 0.5 * target.initial(jax.random.key(1))
        params = unpack(u, target.plan.unconstrained)
        expected = -potential_energy(reference.model, (), reference.kwargs, params)
        assert np.isfinite(expected)
        np.testing.assert_allclose(target.log_density(u), expected, rtol=1e-10)
        values = target.constrain(u)
        np.testing.assert_allclose(target.unconstrain(values), u, rtol=1e-8, atol=1e-8)
        drawn = {k: v[0, 0] for k, v in reference.draws.items()}
        if {site.name for site in target.sites if site.kind == "latent"} <= set(drawn):
            again = target.constrain(target.unconstrain(drawn))
            for site in target.sites:
                if site.name in drawn:
                    np.testing.assert_allclose(again[site.name], jnp.asarray(drawn[site.name]), rtol=1e-6, atol=1e-9)
    assert all(leaf.dtype != object for leaf in jax.tree.leaves(target))
