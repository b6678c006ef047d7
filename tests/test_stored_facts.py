"""What a store opened without its target still says: the method's warning and settings, the model's name."""

import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.geometry import L1
from tests.run.models import gaussian, schools


def told(posterior):
    """Findings without the code of their fixes, which takes a target."""
    return [(found.level, found.name, found.message) for found in posterior.diagnose().findings]


def test_the_diagnosis_knows_the_method_of_a_store(tmp_path):
    fitted = pf.fit(
        schools(), pf.NUTS(max_tree_depth=2, target_acceptance=0.9), num_samples=100, num_warmup=100, progress=False,
        store=tmp_path / "run",
    )  # fmt: skip
    alone = pf.load(tmp_path / "run")
    assert told(alone) == told(fitted)
    assert any("max_tree_depth" in message for _, _, message in told(alone))


def test_a_warning_of_the_method_is_kept(tmp_path):
    pf.fit(gaussian(), pf.MCLMC(), num_samples=100, num_warmup=100, store=tmp_path / "run", progress=False)
    assert pf.MCLMC.warning in [finding.message for finding in pf.load(tmp_path / "run").diagnose().findings]


def test_the_report_is_headed_by_the_model(tmp_path):
    pf.fit(schools(), num_samples=20, num_warmup=20, store=tmp_path / "run", progress=False)
    alone = pf.load(tmp_path / "run")
    assert alone.record["model"] == "eight_schools"
    assert "<h1>eight_schools: posterior by NUTS</h1>" in alone.report(tmp_path / "fit.html").read_text()


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (schools, "eight_schools"),
        (gaussian, "gaussian_log_density"),
        (lambda: pf.Target.from_log_density(lambda x: -(x**2).sum(), np.zeros(2)), ""),
        (lambda: pf.Target.composite(gaussian(), L1(1.0)), "gaussian_log_density"),
    ],
)
def test_names(target, name):
    assert target().name == name
