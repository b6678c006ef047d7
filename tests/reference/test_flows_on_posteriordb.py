"""Spline flows with default settings against gold-standard draws: k-hat, or word of it, and corrected means."""

from pathlib import Path

import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.diagnostics.psis import k_hat_threshold, psis
from pushforward.models import posteriordb

DATABASE = Path(__file__).resolve().parents[2].parent / "shared" / "posteriordb"
pytestmark = pytest.mark.skipif(not DATABASE.is_dir(), reason="needs a posteriordb beside the repository")

FAST = ["kidiq-kidscore_momhs", "eight_schools-eight_schools_noncentered"]
SLOW = [
    "arK-arK",
    "arma-arma11",
    "bball_drive_event_0-hmm_drive_0",
    "earnings-logearn_height",
    "earnings-logearn_height_male",
    "earnings-logearn_interaction",
    "eight_schools-eight_schools_centered",
    "gp_pois_regr-gp_pois_regr",
    "gp_pois_regr-gp_regr",
    "hudson_lynx_hare-lotka_volterra",
    "kidiq-kidscore_momhsiq",
    "kidiq-kidscore_momiq",
    "kilpisjarvi_mod-kilpisjarvi",
    "low_dim_gauss_mix-low_dim_gauss_mix",
    "mesquite-logmesquite",
    "mesquite-logmesquite_logvolume",
    "nes1980-nes",
    "sblrc-blr",
]


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_means_corrected_by_weights_are_those_of_the_reference(name: str) -> None:
    reference = posteriordb.load(name, DATABASE)
    posterior = pf.fit(reference.target(), pf.NormalizingFlow(), key=0, num_samples=4000, progress=False)
    smoothed = psis(posterior.log_weights())
    if smoothed.k_hat > k_hat_threshold(4000):
        assert "Pareto k-hat is" in str(posterior.diagnose())
        assert posterior.diagnose().flagged
        return
    weights = np.exp(smoothed.log_weights)
    found = posterior.draws()
    for site, exact in reference.draws.items():
        if site in found:
            exact = exact.reshape(-1, *exact.shape[2:])
            error = np.abs(np.tensordot(weights, found[site][0], 1) - exact.mean(0)) / exact.std(0)
            assert np.nanmax(error) < 0.1, (site, error)
