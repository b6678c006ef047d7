"""`calibrate`: simulation-based calibration of a method on a model.

If θ' is drawn from the prior and y from the likelihood at θ', then θ' is one more draw of the posterior given y, so
that among L independent draws of it the rank of each scalar of θ' is uniform on 0, …, L; also that of a function of θ
and y, such as the log likelihood, which tells a posterior that has not looked at y from one that has.

Talts, Betancourt, Simpson, Vehtari and Gelman (2018), arXiv:1804.06788; Modrák et al. (2023), "Simulation-based
calibration checking for Bayesian computation: the choice of test quantities shapes sensitivity", Bayesian Analysis, for
the log likelihood and random ranks of ties; the test of uniformity is in `uniformity`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from .. import evaluate
from ..diagnostics.chains import effective_sample_size, rank_normalize, split_chains
from ..errors import InvalidArgument, NonFinite, UnsupportedTarget
from ..run.fit import HINTS, fit, read_method
from ..run.plan import jax_key, read_key, record_method
from ..run.precision import check_precision, precision
from ..target import Target
from ..target.altered import with_changes, with_observed
from ..target.numpyro_model import NumPyroTarget
from ..validate import check_count, check_fraction
from .calibration import LOG_LIKELIHOOD, Calibration
from .engine import run_jobs, uninterrupted
from .ledger import Ledger

if TYPE_CHECKING:
    from ..method import AbstractMethod
    from ..posterior import Posterior

NUM_FITS = 200
NUM_DRAWS = 100
THINNING = 4
MOST_DOUBLINGS = 4
OF_LENGTH = frozenset({"ESS", "R-hat", "precision"})
"""Findings that short chains bring about; how long they are is checked by their ESS."""
MOST_CHAINS = 2
"""Chains of one fit by default: cores are few, and fits many."""


def calibrate(
    target: Target,
    method: "AbstractMethod | None" = None,
    n: int = NUM_FITS,
    *,
    key: Any = 0,
    num_draws: int = NUM_DRAWS,
    level: float = 0.05,
    sites: Sequence[str] | None = None,
    quantities: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
    simulate: Callable[[Any], tuple[Mapping[str, Any], Target]] | None = None,
    num_samples: int | None = None,
    num_warmup: int | None = None,
    num_chains: int | None = None,
    store: str | os.PathLike | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    **options: Any,
) -> Calibration:
    """Tell whether a method draws from the posterior of a model, over data simulated from it.

    Parameters and data are drawn from the model n times, each data set is fitted, and the rank of the true value among
    the draws must be uniform. Chains are thinned to nearly independent draws, and made longer where they have too few.

    Parameters
    ----------
    target
        Made with `Target.from_numpyro`, with a proper prior; its data say the shapes and the covariates. Any target,
        where ``simulate`` is given.
    method
        As in `pushforward.fit`.
    n
        Data sets, each of them a fit. 200 show sds that are off by a fifth, 1,000 by a tenth.
    key
        An int or a JAX key. Data set i and its fit depend on the key and on i only.
    num_draws
        L: draws per fit that a true value is ranked among.
    level
        Probability with which an exact method fails, at most: Bonferroni's bound over all quantities.
    sites
        Sites whose scalars are ranked; all latent, deterministic and discrete ones by default. The log likelihood is
        always added, where the target has one.
    quantities
        ``quantities(values) -> dict of arrays``: more quantities, of one draw's values by site.
    simulate
        ``simulate(key) -> (values, target)``: true values by site, and the target of data simulated at them; in place
        of the model's own prior. Targets that differ in leaves only share a compiled program.
    num_samples, num_warmup, num_chains
        As in `pushforward.fit`; by default 4 × ``num_draws`` draws in all, from two chains.
    store
        A folder to which each fit is recorded when it is done; called again with it, the same calibration goes on.
    overwrite
        Begin anew in ``store``.
    progress
        False silences the bar.
    **options
        Anything else that `pushforward.fit` takes.

    Returns
    -------
    Calibration

    Raises
    ------
    UnsupportedTarget
        The prior cannot be drawn from, the model has a ``numpyro.factor``, or observes nothing.
    InvalidArgument
        An argument is out of range.
    StoreError
        ``store`` holds another calibration.
    """
    method, _ = read_method(method, target)
    n, num_draws = check_count("n", n, 10), check_count("num_draws", num_draws, 10)
    check_fraction("level", level)
    words, _ = read_key(key)
    chains = min(MOST_CHAINS, type(method).default_chains) if num_chains is None else num_chains
    many = THINNING * -(-num_draws // check_count("num_chains", chains)) if method.kind == "chains" else num_draws
    plan = {
        "num_samples": many if num_samples is None else check_count("num_samples", num_samples),
        "num_warmup": num_warmup,
        "num_chains": chains,
        "precision": check_precision(options.pop("precision", None)),
    } | options
    if method.kind == "chains" and plan["num_samples"] * chains < num_draws:
        raise InvalidArgument(
            f"num_samples={plan['num_samples']} of {chains} chains are less than num_draws={num_draws}; ask for more."
        )
    with precision(plan["precision"]):
        root = jax_key(key)
        source = _Prior(target, root, n) if simulate is None else _Given(simulate, root)
        names = _sites(target, sites)
    identity = {
        "target": target.fingerprint(), "method": record_method(method), "key": words, "num_draws": num_draws,
        "options": {name: str(value) for name, value in plan.items()}, "sites": list(names),
        "quantities": getattr(quantities, "__qualname__", None), "simulate": getattr(simulate, "__qualname__", None),
    }  # fmt: skip

    def job(index: int) -> Callable[[], dict[str, Any]]:
        def one() -> dict[str, Any]:
            with precision(plan["precision"]):
                truth, given = source.at(index)
                fit_key = jax.random.fold_in(jax.random.fold_in(root, index), 1)
            posterior = uninterrupted(fit(given, method, key=fit_key, progress=False, **plan))
            posterior, ess = _lengthened(posterior, names, num_draws)
            rng = np.random.default_rng([*words, index])
            ranks = _ranks(posterior, given, truth, names, quantities, num_draws, rng, plan["precision"])
            warned = sorted({finding.name for finding in posterior.diagnose().warnings} - OF_LENGTH)
            return {"ranks": ranks, "ess": ess, "warned": warned}

        return one

    jobs = ((f"data set {i}", job(i)) for i in range(n))
    book = None if store is None else Ledger(store, "calibration", identity, overwrite=overwrite)
    try:
        done = run_jobs(jobs, total=n, ledger=book, progress=progress)
    finally:
        if book is not None:
            book.close()
    return Calibration.of(done, type(method).__name__, target.name, num_draws, level, n)


class _Prior:
    """True values and data from the model's own prior: all drawn at once, the same whatever n."""

    def __init__(self, target: Target, root: Any, n: int) -> None:
        target.require("calibrate", ("proper_prior", "predictive"), HINTS)
        if not isinstance(target, NumPyroTarget):
            raise UnsupportedTarget(
                f"calibrate needs a NumPyro model to draw data from, and this is a {type(target).__name__}; give "
                f"simulate=, a function that makes parameters and the target of simulated data."
            )
        if target.plan.factors:
            raise UnsupportedTarget(
                f"calibrate cannot draw from the model {target.name!r}: numpyro.factor({target.plan.factors[0]!r}, …) "
                f"is part of its density; give simulate=, a function that makes parameters and the target of its data."
            )
        draws = evaluate.over_draws(evaluate.prior_draw, target, np.zeros(n), key=jax.random.fold_in(root, 0))
        self.draws = {name: np.asarray(value) for name, value in draws.items()}
        observed = [name for name, _ in target.plan.observed]
        self.data = {name: self.draws[name] for name in observed}
        self.first = with_observed(target, {name: value[0] for name, value in self.data.items()})

    def at(self, index: int) -> tuple[dict[str, Any], Target]:
        """The truth of a data set, and its target."""
        data = {name: value[index] for name, value in self.data.items()}
        for name, value in data.items():
            if not np.isfinite(value).all():
                raise NonFinite(f"the prior has drawn {name} = {value.ravel()[~np.isfinite(value).ravel()][0]}.")
        return {name: value[index] for name, value in self.draws.items()}, with_changes(self.first, data)


class _Given:
    """True values and data from the user's function."""

    def __init__(self, simulate: Callable, root: Any) -> None:
        self.simulate, self.root = simulate, root

    def at(self, index: int) -> tuple[dict[str, Any], Target]:
        """The truth of a data set, and its target."""
        found = self.simulate(jax.random.fold_in(jax.random.fold_in(self.root, index), 0))
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Target)):
            raise InvalidArgument(f"simulate must return a pair (values, target), got {type(found).__name__}.")
        return {name: np.asarray(value) for name, value in found[0].items()}, found[1]


def _sites(target: Target, sites: Sequence[str] | None) -> tuple[str, ...]:
    known = tuple(site.name for site in target.sites)
    if sites is None:
        return known
    for name in (sites,) if isinstance(sites, str) else sites:
        if name not in known:
            raise InvalidArgument(f"sites names {name!r}; the target's sites are {', '.join(known)}.")
    return (sites,) if isinstance(sites, str) else tuple(sites)


def _lengthened(posterior: "Posterior", names: Sequence[str], num_draws: int) -> tuple["Posterior", float | None]:
    """Chains made longer until their least ESS is ``num_draws``, at most 16-fold; and that ESS, None for others."""
    if posterior.kind != "chains":
        return posterior, None
    for doubling in range(MOST_DOUBLINGS + 1):
        draws = posterior.draws()
        flat = [np.moveaxis(draws[n].reshape(*draws[n].shape[:2], -1), -1, 0).astype(float) for n in names]
        values = np.concatenate(flat)
        ess = float(effective_sample_size(rank_normalize(split_chains(values))[0]).min())
        if ess >= num_draws or doubling == MOST_DOUBLINGS:
            break
        posterior = uninterrupted(posterior.extend(values.shape[-1], progress=False))
    return posterior, ess


def _ranks(
    posterior: "Posterior", target: Target, truth: Mapping[str, Any], names: Sequence[str],
    quantities: Callable | None, num_draws: int, rng: np.random.Generator, bits: int,
) -> dict[str, int]:  # fmt: skip
    """Rank of the truth of each scalar among ``num_draws`` draws; ties are broken at random."""
    draws = _nearly_independent(posterior, num_draws, rng)
    with precision(bits):
        truth = _completed(target, truth)
        both = {name: np.concatenate([x, np.asarray(truth[name], x.dtype)[None]]) for name, x in draws.items()}
        scalars = {name: both[name] for name in names}
        if target.has("likelihood"):
            parts = evaluate.over_draws(evaluate.log_likelihood_of, target, both)
            scalars[LOG_LIKELIHOOD] = sum(x.reshape(len(x), -1).sum(1) for x in parts.values())
        if quantities is not None:
            scalars |= evaluate.over_draws(evaluate.value_at, target, both, quantities)
    ranks = {}
    for name, value in scalars.items():
        flat = np.asarray(value).reshape(num_draws + 1, -1)
        indices = np.ndindex(np.shape(value)[1:])
        for column, index in zip(flat.T, indices, strict=True):
            if not np.isfinite(column[-1]):
                raise NonFinite(f"{name} is {column[-1]} at the true values.")
            below, ties = int((column[:-1] < column[-1]).sum()), int((column[:-1] == column[-1]).sum())
            ranks[f"{name}[{', '.join(map(str, index))}]" if index else name] = below + int(rng.integers(0, ties + 1))
    return ranks


def _completed(target: Target, truth: Mapping[str, Any]) -> dict[str, Any]:
    """True values by site, the deterministic ones among them worked out where they were not given."""
    missing = [site.name for site in target.sites if site.name not in truth]
    if not missing:
        return dict(truth)
    wanted = [site.name for site in target.sites if site.kind != "deterministic" and site.name not in truth]
    if wanted:
        raise InvalidArgument(f"the true values have no {wanted[0]!r}; they have {', '.join(truth) or 'nothing'}.")
    u = evaluate.over_draws(evaluate.unconstrain_draw, target, {k: np.asarray(v)[None] for k, v in truth.items()})
    values = evaluate.over_draws(evaluate.constrain_draw, target, u)
    return {name: value[0] for name, value in values.items()} | dict(truth)


def _nearly_independent(posterior: "Posterior", num_draws: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draws by site (num_draws, …): of chains those furthest apart, of others drawn at random."""
    if posterior.kind != "chains":
        return posterior.sample(num_draws, key=int(rng.integers(2**31)))
    draws = posterior.draws()
    chains, length = next(iter(draws.values())).shape[:2]
    at = ((np.arange(num_draws) + 1) * chains * length) // num_draws - 1  # the last of each chain's parts
    return {name: value.reshape(-1, *value.shape[2:])[at] for name, value in draws.items()}
