"""Spline flows with default settings against gold-standard draws: k-hat, or word of it, and corrected means.

`benchmarks/posteriordb_flows.py` does the same, one process per fit, and writes down what it finds.
"""

import numpy as np
import pytest

import pushforward as pf
from benchmarks.posteriordb_flows import DATABASE, NUM_DRAWS, TOLERANCE, mean_error
from pushforward.infer.diagnostics.psis import k_hat_threshold, psis
from pushforward.models import posteriordb

pytestmark = pytest.mark.skipif(not DATABASE.is_dir(), reason="needs a posteriordb beside the repository")

# A regression with a scale.
FAST = ("kidiq-kidscore_momhs",)
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in posteriordb.names() if name not in FAST]


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_means_corrected_by_weights_are_those_of_the_reference(name: str) -> None:
    reference = posteriordb.load(name, DATABASE)
    posterior = pf.fit(reference.target(), pf.NormalizingFlow(), key=0, num_samples=NUM_DRAWS, progress=False)
    smoothed, diagnosis = psis(posterior.log_weights()), posterior.diagnose()
    unreliable = smoothed.k_hat > k_hat_threshold(NUM_DRAWS)
    assert ("k-hat" in {finding.name for finding in diagnosis.warnings}) == unreliable, diagnosis
    if not unreliable:
        assert mean_error(posterior, reference, np.exp(smoothed.log_weights)) < TOLERANCE
