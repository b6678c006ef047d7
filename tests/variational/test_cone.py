"""Three objectives on the noisy cone reach the optima that are known (Becker et al. 2024)."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_optima_of_three_objectives() -> None:
    spec = importlib.util.spec_from_file_location("cone", ROOT / "benchmarks" / "papers" / "cone.py")
    cone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cone)
    with jax.enable_x64(True):
        found = cone.run(steps=1500)
        for name in ("log evidence", "mean field, ELBO", "ring, auxiliary angle", "ring, marginal density"):
            bound, error, _ = found[name]
            assert float(bound) == pytest.approx(cone.SHEET[name], abs=0.02), name
            assert error < 0.005
        # −7.54 was found by direct search, so that more is no error; less than −7.56 would be one.
        assert -7.56 < float(found["mean field, IWAE 5"][0]) < -5.33
        loc, log_scale = found["mean field, ELBO"][2]
        np.testing.assert_allclose(np.abs(loc), [2.21899, 0], atol=0.02)
        np.testing.assert_allclose(log_scale, [-3.38713, -1.27646], atol=0.05)
        np.testing.assert_allclose(found["ring, auxiliary angle"][2][0], -3.0477, atol=0.05)
