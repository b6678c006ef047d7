"""Methods against gold-standard draws of reference posteriors."""

from pathlib import Path

import pytest

import pushforward as pf
from pushforward.models import posteriordb

DATABASE = Path(__file__).resolve().parents[2].parent / "shared" / "posteriordb"
pytestmark = pytest.mark.skipif(not DATABASE.is_dir(), reason="needs a posteriordb beside the repository")


@pytest.mark.parametrize(
    "name", ["eight_schools-eight_schools_noncentered", pytest.param("arK-arK", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("method", [pf.MCLMC(), pf.SMC(num_particles=2000)], ids=["MCLMC", "SMC"])
def test_moments_are_those_of_the_reference(name: str, method) -> None:
    reference = posteriordb.load(name, DATABASE)
    posterior = pf.fit(reference.target(), method, key=0, num_samples=4000, progress=False)
    # Documented tolerance: a tenth of a standard deviation for means, a tenth for standard deviations.
    found = posteriordb.compare(posterior, reference)
    assert found.within_tolerance(mean=0.1, sd=0.1), repr(found)
