"""Which NumPyro function is the model of which posteriordb model, and how its data become arguments.

A posterior of posteriordb names a model and a data set; what stands here is by model, so that every posterior of a
known model can be loaded. The functions below are Stan's ``transformed data`` blocks: data in, arguments out.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...infer.errors import InvalidArgument

Data = Mapping[str, np.ndarray]


def _floats(*names: str) -> Callable[[Data], dict[str, Any]]:
    """An adapter that takes these fields as they are, in floating point."""
    return lambda data: {name: np.asarray(data[name], dtype=np.float64) for name in names}


def _log_earnings(*covariates: str) -> Callable[[Data], dict[str, Any]]:
    return lambda data: {"log_earn": np.log(data["earn"])} | _floats(*covariates)(data)


def _logmesquite(data: Data) -> dict[str, Any]:
    logs = [np.log(data[name]) for name in ("diam1", "diam2", "canopy_height", "total_height", "density")]
    columns = [np.ones(len(data["weight"])), *logs, np.asarray(data["group"], dtype=np.float64)]
    return {"X": np.stack(columns, axis=1), "y": np.log(data["weight"])}


def _logmesquite_logvolume(data: Data) -> dict[str, Any]:
    log_volume = np.log(data["diam1"] * data["diam2"] * data["canopy_height"])
    return {"X": np.stack([np.ones_like(log_volume), log_volume], axis=1), "y": np.log(data["weight"])}


def _nes(data: Data) -> dict[str, Any]:
    age = [data["age_discrete"] == group for group in (2, 3, 4)]
    columns = [np.ones(len(age[0])), data["real_ideo"], data["race_adj"], *age]
    columns += [data["educ1"], data["gender"], data["income"]]
    return {
        "X": np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1),
        "y": np.asarray(data["partyid7"], dtype=np.float64),
    }


def _diamonds(data: Data) -> dict[str, Any]:
    covariates = np.asarray(data["X"], dtype=np.float64)[:, 1:]
    mean = covariates.mean(axis=0)
    return {"Y": np.asarray(data["Y"], dtype=np.float64), "Xc": covariates - mean, "X_mean": mean}


def _ark(data: Data) -> dict[str, Any]:
    return _floats("y")(data) | {"K": int(data["K"])}


def _gp_pois_regr(data: Data) -> dict[str, Any]:
    return _floats("x")(data) | {"k": np.asarray(data["k"], dtype=np.int64)}


# posteriordb's name of the model -> (module of this package, function, adapter of the data)
_SCHOOLS = _floats("y", "sigma")
MODELS: dict[str, tuple[str, str, Callable[[Data], dict[str, Any]]]] = {
    "arK": (".posteriordb.dynamics", "arK", _ark),
    "arma11": (".posteriordb.dynamics", "arma11", _floats("y")),
    "blr": (".posteriordb.regression", "blr", _floats("X", "y")),
    "diamonds": (".posteriordb.regression", "diamonds", _diamonds),
    "eight_schools_centered": (".classics", "eight_schools_centered", _SCHOOLS),
    "eight_schools_noncentered": (".classics", "eight_schools", _SCHOOLS),
    "gp_pois_regr": (".posteriordb.latent", "gp_pois_regr", _gp_pois_regr),
    "gp_regr": (".posteriordb.latent", "gp_regr", _floats("x", "y")),
    "hmm_drive_0": (".posteriordb.dynamics", "hmm_drive_0", _floats("u", "v", "alpha")),
    "kidscore_momhs": (".posteriordb.regression", "kidscore_momhs", _floats("kid_score", "mom_hs")),
    "kidscore_momhsiq": (".posteriordb.regression", "kidscore_momhsiq", _floats("kid_score", "mom_hs", "mom_iq")),
    "kidscore_momiq": (".posteriordb.regression", "kidscore_momiq", _floats("kid_score", "mom_iq")),
    "kilpisjarvi": (
        ".posteriordb.regression",
        "kilpisjarvi",
        _floats("x", "y", "pmualpha", "psalpha", "pmubeta", "psbeta"),
    ),
    "logearn_height": (".posteriordb.regression", "logearn_height", _log_earnings("height")),
    "logearn_height_male": (".posteriordb.regression", "logearn_height_male", _log_earnings("height", "male")),
    "logearn_interaction": (".posteriordb.regression", "logearn_interaction", _log_earnings("height", "male")),
    "logmesquite": (".posteriordb.regression", "flat_regression", _logmesquite),
    "logmesquite_logvolume": (".posteriordb.regression", "flat_regression", _logmesquite_logvolume),
    "lotka_volterra": (".posteriordb.dynamics", "lotka_volterra", _floats("ts", "y_init", "y")),
    "low_dim_gauss_mix": (".posteriordb.latent", "low_dim_gauss_mix", _floats("y")),
    "nes": (".posteriordb.regression", "flat_regression", _nes),
}

POSTERIORS = (
    "arK-arK",
    "arma-arma11",
    "bball_drive_event_0-hmm_drive_0",
    "diamonds-diamonds",
    "earnings-logearn_height",
    "earnings-logearn_height_male",
    "earnings-logearn_interaction",
    "eight_schools-eight_schools_centered",
    "eight_schools-eight_schools_noncentered",
    "gp_pois_regr-gp_pois_regr",
    "gp_pois_regr-gp_regr",
    "hudson_lynx_hare-lotka_volterra",
    "kidiq-kidscore_momhs",
    "kidiq-kidscore_momhsiq",
    "kidiq-kidscore_momiq",
    "kilpisjarvi_mod-kilpisjarvi",
    "low_dim_gauss_mix-low_dim_gauss_mix",
    "mesquite-logmesquite",
    "mesquite-logmesquite_logvolume",
    "nes1980-nes",
    "sblrc-blr",
)


def model_function(name: str) -> Callable[..., None]:
    """The NumPyro function of a known posteriordb model (this is where NumPyro gets imported)."""
    module, function, _ = MODELS[name]
    return getattr(importlib.import_module(module, "pushforward.models"), function)


def arguments(name: str, data: Data) -> dict[str, Any]:
    """The keyword arguments of `model_function(name)` for these data."""
    try:
        return MODELS[name][2](data)
    except KeyError as missing:
        known = ", ".join(sorted(data))
        raise InvalidArgument(f"the data of {name} lack the field {missing}; they have {known}.") from None
