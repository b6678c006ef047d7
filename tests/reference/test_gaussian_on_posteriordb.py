"""`FBGVI` with default settings against gold-standard draws: where k-hat allows it, corrected means are right."""

from pathlib import Path

import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.diagnostics.psis import k_hat_threshold, psis
from pushforward.models import posteriordb

DATABASE = Path(__file__).resolve().parents[2].parent / "shared" / "posteriordb"
pytestmark = pytest.mark.skipif(not DATABASE.is_dir(), reason="needs a posteriordb beside the repository")

FAST = ["kidiq-kidscore_momhsiq"]
SLOW = [
    "arK-arK",
    "arma-arma11",
    "diamonds-diamonds",
    "earnings-logearn_height",
    "earnings-logearn_height_male",
    "earnings-logearn_interaction",
    "eight_schools-eight_schools_noncentered",
    "kidiq-kidscore_momhs",
    "kidiq-kidscore_momiq",
    "kilpisjarvi_mod-kilpisjarvi",
    "mesquite-logmesquite",
    "mesquite-logmesquite_logvolume",
    "nes1980-nes",
    "sblrc-blr",
]
# Of skewed posteriors, or of scales, the best Gaussian is no better (the Student-t like tails of a regression's sd).
K_HAT = {"arma-arma11": 1.1}


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_it_converges_and_its_corrected_means_are_those_of_the_reference(name: str) -> None:
    reference = posteriordb.load(name, DATABASE)
    posterior = pf.fit(reference.target(), pf.FBGVI(), key=0, num_samples=4000, progress=False)
    diagnosis = posterior.diagnose()
    smoothed = psis(posterior.log_weights())
    assert smoothed.k_hat < K_HAT.get(name, 0.9)
    if smoothed.k_hat > k_hat_threshold(4000):
        assert diagnosis.flagged
    weights = np.exp(smoothed.log_weights)
    found = posterior.draws()
    for site, exact in reference.draws.items():
        if site in found:
            exact = exact.reshape(-1, *exact.shape[2:])
            error = np.abs(np.tensordot(weights, found[site][0], 1) - exact.mean(0)) / exact.std(0)
            assert np.nanmax(error) < 0.1, (site, error)
