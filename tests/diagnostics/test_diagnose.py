"""What `diagnose` says: no false alarms on good draws, and the right word about each kind of bad ones."""

import json
import math

import numpy as np
import pytest

from pushforward.infer.diagnostics.diagnose import diagnose
from pushforward.infer.diagnostics.findings import Diagnosis, Finding
from pushforward.infer.diagnostics.summary import statistics


def tree(posterior, **sample_stats):
    import xarray

    def dataset(values):
        return xarray.Dataset({
            name: (("chain", "draw", *(f"{name}_{i}" for i in range(v.ndim - 2))), v) for name, v in values.items()
        })  # fmt: skip

    groups = {"posterior": dataset(posterior)}
    if sample_stats:
        groups["sample_stats"] = dataset(sample_stats)
    return xarray.DataTree.from_dict(groups)


def good(seed=0, shape=(4, 1000, 5)):
    return np.random.default_rng(seed).normal(size=shape)


def cloud(x):
    import xarray

    return xarray.DataTree.from_dict({"posterior": xarray.Dataset({"x": (("particle", "i"), x)})})


def names(diagnosis):
    return {f.name for f in diagnosis.warnings}


# -- chains -----------------------------------------------------------------------------------------------------------


def test_false_alarms_are_rare():
    """Independent normal draws of 200 scalars, 50 times: at most 2 % flagged."""
    flagged = sum(diagnose(tree({"x": good(seed, (4, 1000, 200))}), "chains").flagged for seed in range(50))
    assert flagged <= 1


def test_false_alarms_are_rare_for_slow_chains():
    """AR(1) chains with ESS about 1,000 and 10 scalars: R-hat passes 1.01 often, but by chance."""
    flagged, above = 0, 0
    for seed in range(30):
        x = good(seed, (4, 1000, 10))
        for t in range(1, 1000):
            x[:, t] = 0.6 * x[:, t - 1] + 0.8 * x[:, t]
        found = diagnose(tree({"x": x}), "chains")
        flagged += found.flagged
        above += found["R-hat"].value > 1.01
    assert flagged <= 1
    assert above >= 1


def test_good_chains():
    rng = np.random.default_rng(1)
    found = diagnose(
        tree(
            {"x": good()},
            diverging=np.zeros((4, 1000), bool),
            energy=rng.normal(size=(4, 1000)),
            tree_depth=rng.integers(2, 5, size=(4, 1000)),
            acceptance_rate=rng.uniform(0.6, 1, size=(4, 1000)),
        ),
        "chains",
        extra={"max_tree_depth": 10, "target_acceptance": 0.8},
    )
    assert found.ok
    assert not found.notes
    assert {f.name for f in found.findings} == {"R-hat", "ESS", "precision", "divergences", "BFMI", "tree depth"}
    assert "4 chains × 1,000 draws, 5 scalars" in str(found)
    assert found.headline == "Diagnosis: no warnings (4 chains × 1,000 draws, 5 scalars)"


def test_statistics_can_be_shared():
    data = tree({"x": good()})
    assert diagnose(data, "chains", stats=statistics(data, "chains")) == diagnose(data, "chains")


@pytest.mark.parametrize("shift", [0.4, 0.6])
def test_one_chain_slightly_off_is_seen(shift):
    """An offset of 0.4 sd in one chain of four moves the mean by 0.1 sd, which is the tolerance."""
    missed = 0
    for seed in range(20):
        x = good(seed)
        x[2, :, 3] += shift
        found = diagnose(tree({"x": x}), "chains")
        missed += not found.flagged
        assert not found.flagged or found.warnings[0].sites[0] in ("x[3]", "2")
    assert missed == 0


def test_one_chain_too_narrow_is_seen():
    for seed in range(10):
        x = good(seed)
        x[1, :, 0] *= 0.6
        assert "R-hat" in names(diagnose(tree({"x": x}), "chains"))


def test_a_trend_common_to_all_chains_is_seen():
    for seed in range(10):
        x = good(seed)
        x[..., 2] += np.linspace(-0.5, 0.5, 1000)
        assert names(diagnose(tree({"x": x}), "chains"))


def test_slowly_mixing_chains_are_seen():
    x = good()
    for t in range(1, 1000):
        x[:, t, 1] = 0.98 * x[:, t - 1, 1] + math.sqrt(1 - 0.98**2) * x[:, t, 1]
    found = diagnose(tree({"x": x}), "chains")
    assert "ESS" in names(found)
    assert found["ESS"].sites[0] == "x[1]"
    assert found["ESS"].threshold == 400


def test_stuck_chain_is_named_by_number():
    x = good()
    x[2] = x[2, :1]
    found = diagnose(tree({"x": x}), "chains")
    assert found["stuck chain"].level == "warning"
    assert found["stuck chain"].sites == ("2",)
    assert "Chain 2 is stuck" in found["stuck chain"].message
    assert "chain apart" not in names(found)


def test_chain_that_is_stuck_by_acceptance_or_scale():
    acceptance = np.full((4, 1000), 0.8)
    acceptance[3] = 1e-4
    assert diagnose(tree({"x": good()}, acceptance_rate=acceptance), "chains")["stuck chain"].sites == ("3",)
    x = good()
    x[0] = 0.001 * x[0]
    assert diagnose(tree({"x": x}), "chains")["stuck chain"].sites == ("0",)


def test_chain_in_another_mode_is_named_with_its_log_density():
    x, lp = good(), np.zeros((4, 1000))
    x[1, :, 4] += 6
    lp[1] = -12
    found = diagnose(tree({"x": x}, lp=lp), "chains")
    assert found["chain apart"].sites == ("1", "x[4]")
    assert "Chain 1 sits apart from the others in x[4]" in found["chain apart"].message
    assert "its log density is 12.0 lower on average" in found["chain apart"].message
    assert "R-hat" in names(found)


def test_two_modes_with_two_chains_each():
    x = good()
    x[:2, :, 0] += 5
    found = diagnose(tree({"x": x}), "chains")
    assert found["modes"].sites == ("x[0]",)
    assert "R-hat" in names(found)


def test_constants_do_not_alarm():
    """Deterministic constants, the 1 of a correlation's diagonal up to rounding, and zeros above it."""
    rng = np.random.default_rng(2)
    corr = np.zeros((4, 1000, 2, 2))
    corr[..., 0, 0] = 1
    corr[..., 1, 1] = 1 + 1e-15 * rng.integers(-1, 2, size=(4, 1000))
    corr[..., 1, 0] = rng.uniform(-1, 1, size=(4, 1000))
    single = np.float32(0.1) + np.float32(1e-8) * rng.integers(-1, 2, size=(4, 1000)).astype(np.float32)
    found = diagnose(tree({"L": corr, "c": np.full((4, 1000), 3), "s": single, "x": good()}), "chains")
    assert found.ok
    assert "6 scalars" in found["R-hat"].message


def test_nothing_varies():
    found = diagnose(tree({"x": np.ones((4, 100, 3))}), "chains")
    assert found["constant draws"].level == "warning"


def test_nonfinite_draws():
    x = good()
    x[1, 5:9, 2] = np.nan
    found = diagnose(tree({"x": x}), "chains")
    assert found["non-finite draws"].value == 4
    assert found["non-finite draws"].sites == ("x[2]",)
    assert names(found) == {"non-finite draws"}


def test_chains_that_ran_away_are_flagged_without_noise():
    """Values whose squares overflow: every statistic that does not exist counts as bad."""
    x, energy = good(), np.random.default_rng(0).normal(size=(4, 1000))
    x[0, :, 1] = 1e200 * np.cumsum(x[0, :, 1])
    energy[0] *= 1e200
    found = diagnose(tree({"x": x}, energy=energy), "chains")
    assert {"R-hat", "ESS"} <= names(found)
    assert str(found)


def diverging_at(x, low, scattered, seed=3):
    rng = np.random.default_rng(seed)
    out = np.zeros(x.size, bool)
    out[rng.choice(np.flatnonzero(x.ravel() < np.quantile(x, 0.05)), low, replace=False)] = True
    out[rng.choice(x.size, scattered, replace=False)] = True
    return out.reshape(x.shape)


def test_concentrated_divergences_are_a_warning_with_the_site():
    x = good()
    found = diagnose(tree({"x": x}, diverging=diverging_at(x[..., 1], 23, 8)), "chains")["divergences"]
    assert found.level == "warning"
    assert found.sites[0] == "x[1]"
    assert "of 4,000 transitions diverged (threshold 0); they concentrate:" in found.message
    assert "lie in the lowest 5 % of x[1]" in found.message
    assert "target_acceptance" in found.message


def test_a_few_scattered_divergences_are_a_note():
    x = good()
    found = diagnose(tree({"x": x}, diverging=diverging_at(x[..., 1], 0, 3)), "chains")
    assert found["divergences"].level == "note"
    assert found["divergences"].value == 3
    assert found.ok


def test_many_divergences_are_a_warning_wherever_they_are():
    x = good()
    found = diagnose(tree({"x": x}, diverging=diverging_at(x[..., 1], 0, 100)), "chains")
    assert names(found) == {"divergences"}


def test_low_bfmi():
    rng = np.random.default_rng(4)
    energy = rng.normal(size=(4, 1000))
    energy[2] = np.cumsum(energy[2])
    found = diagnose(tree({"x": good()}, energy=energy), "chains")["BFMI"]
    assert found.level == "warning"
    assert found.sites == ("2",)
    assert found.value < 0.05


def test_tree_depth_is_efficiency_unless_the_ess_is_bad():
    depth = np.full((4, 1000), 10)
    assert diagnose(tree({"x": good()}, tree_depth=depth), "chains", extra={"max_tree_depth": 10}).ok
    slow = np.cumsum(good(), axis=1)
    found = diagnose(tree({"x": slow}, reached_max_tree_depth=depth > 0), "chains")
    assert found["tree depth"].level == "warning"
    assert found["tree depth"].value == 4000


def test_what_the_caller_knows_is_said():
    extra = {"warning": "MCLMC is not adjusted.", "stopped": "interrupted", "asked": 2000, "target_acceptance": 0.8}
    found = diagnose(tree({"x": good()}, acceptance_rate=np.full((4, 1000), 0.4)), "chains", extra=extra)
    assert found.ok
    assert found["method"].message == "MCLMC is not adjusted."
    assert "after 1,000 of 2,000 draws per chain (interrupted)" in found["partial run"].message
    assert "Mean acceptance is 0.40" in found["acceptance"].message


def test_short_runs():
    assert names(diagnose(tree({"x": good(0, (4, 50, 3))}), "chains")) >= {"ESS"}
    assert names(diagnose(tree({"x": good(0, (4, 3, 3))}), "chains")) == {"length"}
    one = diagnose(tree({"x": good(0, (1, 4000, 3))}), "chains")
    assert one.ok
    assert "run four to compare chains" in one["R-hat"].message


# -- approximations and particles -------------------------------------------------------------------------------------


def importance(scale, shift=0.0, n=4000, seed=0):
    """Draws of N(0, scale²) with log weights towards N(shift, 1)."""
    x = scale * np.random.default_rng(seed).normal(size=(1, n))
    return tree({"x": x}), (-0.5 * (x - shift) ** 2 + 0.5 * (x / scale) ** 2 + math.log(scale)).ravel()


def test_exact_approximation():
    data, log_weights = importance(1.0)
    found = diagnose(data, "approximation", log_weights=log_weights)
    assert found.ok
    assert not found.notes
    assert found["ELBO"].value == pytest.approx(0.0, abs=1e-12)
    assert "worth 4,000" in found["ELBO"].message


def test_close_approximation_is_fine():
    data, log_weights = importance(1.05)
    assert diagnose(data, "approximation", extra={"log_weights": log_weights}).ok


def test_too_narrow_approximation_has_a_bad_k_hat():
    data, log_weights = importance(0.4)  # k = 1 − 0.16
    found = diagnose(data, "approximation", log_weights=log_weights)
    assert "k-hat" in names(found)
    assert found["k-hat"].value > found["k-hat"].threshold == 0.7


def test_shifted_approximation_is_flagged_though_weights_repair_it():
    data, log_weights = importance(1.3, shift=0.5)
    found = diagnose(data, "approximation", log_weights=log_weights)
    assert names(found) == {"shift"}
    assert found["k-hat"].level == "ok"
    assert found["shift"].sites == ("x",)


def test_medium_k_hat_is_a_note():
    data = tree({"x": good(0, (1, 4000))})
    log_weights = 0.6 * np.random.default_rng(1).exponential(size=4000)
    found = diagnose(data, "approximation", log_weights=log_weights)
    assert found["k-hat"].level == "note"
    assert 0.5 < found["k-hat"].value < 0.7


def test_approximation_without_density_or_with_broken_weights():
    data = tree({"x": good(0, (1, 500))})
    assert diagnose(data, "approximation")["weights"].level == "note"
    bad = diagnose(data, "approximation", log_weights=np.where(np.arange(500) < 7, np.nan, 0.0))
    assert bad["weights"].value == 7
    assert bad.flagged
    assert (
        "All log weights are −inf"
        in diagnose(data, "approximation", log_weights=np.full(500, -np.inf))["weights"].message
    )


def test_particles():
    x = np.random.default_rng(5).normal(size=(500, 3))
    assert diagnose(cloud(x), "particles").ok
    assert diagnose(cloud(x), "particles", log_weights=np.zeros(500)).ok
    heavy = diagnose(cloud(x), "particles", log_weights=3 * x[:, 0])
    assert names(heavy) == {"weights"}
    assert heavy["weights"].threshold == 100
    assert names(diagnose(cloud(np.repeat(x[:50], 10, axis=0)), "particles")) == {"collapse"}
    assert names(diagnose(cloud(np.ones((500, 3))), "particles")) == {"collapse"}
    few = diagnose(cloud(np.random.default_rng(6).normal(size=(10, 30))), "particles")
    assert few["collapse"].level == "note"


# -- the object -------------------------------------------------------------------------------------------------------


def test_text_html_and_data():
    x = good()
    x[1, :, 0] += 1
    found = diagnose(tree({"x <b>": x}), "chains")
    assert found.flagged
    assert found.findings[0].level == "warning"
    assert [f.level for f in found.findings] == sorted((f.level for f in found.findings), reverse=True)
    assert "WARNING R-hat: R-hat is" in str(found)
    assert max(map(len, str(found).splitlines())) <= 120
    assert "&lt;b&gt;" in found._repr_html_()
    assert "<b>[0]" not in found._repr_html_()
    assert json.loads(json.dumps(found.to_dict()))["flagged"] is True
    with pytest.raises(KeyError, match="no finding 'k-hat'; it has"):
        found["k-hat"]


def test_order_and_headline():
    d = Diagnosis("chains", (Finding("ok", "a", ""), Finding("warning", "b", ""), Finding("note", "c", "")))
    assert [f.name for f in d.findings] == ["b", "c", "a"]
    assert d.headline == "Diagnosis: 1 warning: b"
