"""`compare_models`: leave-one-out and K-fold cross-validation with refits, stacking, and evidence.

A refit leaves observations out by a mask, at unchanged shapes (`infer.target.altered`), so that all refits of a model
share the compiled program of the first; each begins at the posterior of all data, with its step size and metric.

Vehtari, Gelman and Gabry (2017), "Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC",
Statistics and Computing 27; stacking: Yao, Vehtari, Simpson and Gelman (2018), Bayesian Analysis 13. PSIS-LOO, standard
errors of differences and the weights are ArviZ's.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from .. import evaluate
from ..diagnostics.psis import psis
from ..errors import InvalidArgument, NotAvailable, PushforwardError
from ..posterior import Posterior
from ..run.fit import fit
from ..run.plan import jax_key
from ..run.precision import precision
from ..target.altered import with_changes, with_kept
from ..target.numpyro_model import NumPyroTarget
from ..validate import check_choice, check_count
from .comparison import ModelComparison, Pointwise
from .engine import Done, run_jobs, uninterrupted

if TYPE_CHECKING:
    from ..target import Target

WEIGHTS = ("stacking", "BB-pseudo-BMA", "pseudo-BMA")


def compare_models(
    posteriors: Mapping[str, Posterior],
    *,
    folds: int | None = None,
    var_name: str | None = None,
    weights: str = "stacking",
    refit: bool = True,
    evidence: bool = True,
    key: Any = 0,
    progress: bool | None = None,
) -> ModelComparison:
    """Compare models of the same observations by how well they predict what they have not seen.

    Each posterior's expected log predictive density (elpd) is estimated by Pareto-smoothed leave-one-out; where k-hat
    says that this fails for an observation, the model is fitted again without it. With ``folds`` by K-fold
    cross-validation instead, all of it by refits.

    Parameters
    ----------
    posteriors
        Name of a model → its posterior, with its target. Kinds ``"chains"`` and ``"approximation"``.
    folds
        K. Observations are dealt out at random, the same way for all models. None for leave-one-out.
    var_name
        The observed site that is predicted, where the models have several.
    weights
        How models are weighed: ``"stacking"``, ``"BB-pseudo-BMA"`` or ``"pseudo-BMA"``, see ``arviz_stats.compare``.
    refit
        Whether observations of high k-hat are refitted; needs targets made with `Target.from_numpyro`.
    evidence
        Whether the log evidence is worked out too, of models whose priors are proper.
    key
        An int or a JAX key, of the folds and of the refits.
    progress
        False silences the bar.

    Returns
    -------
    ModelComparison

    Raises
    ------
    InvalidArgument
        Fewer than two posteriors, or not of the same observations.
    NotAvailable
        A posterior has no target, no pointwise log likelihood, or is a cloud of particles.
    """
    check_choice("weights", weights, WEIGHTS)
    if not isinstance(posteriors, Mapping) or len(posteriors) < 2:
        raise InvalidArgument(f"posteriors must be a dict of at least two posteriors by name, got {posteriors!r}.")
    site = _check_same_data(posteriors, var_name)
    if folds is not None:
        size = int(np.prod(_shape(next(iter(posteriors.values())), site)))
        if check_count("folds", folds, 2) > size:
            raise InvalidArgument(f"folds={folds} are more than the {size} observations of {site!r}.")
    found, failed = {}, {}
    for number, (name, posterior) in enumerate(posteriors.items()):
        with precision(posterior._bits):
            own = jax.random.fold_in(jax_key(key), number)
        if folds is None:
            found[name], lost = _leave_one_out(name, posterior, site, refit, own, progress)
        else:
            found[name], lost = _k_fold(name, posterior, site, folds, jax_key(key), own, progress)
        failed |= lost
    log_evidence = {name: _evidence(posterior) for name, posterior in posteriors.items()} if evidence else {}
    return ModelComparison(found, site=site, weights=weights, folds=folds, failed=failed, log_evidence=log_evidence)


def _leave_one_out(
    name: str, posterior: Posterior, site: str, refit: bool, key: Any, progress: bool | None
) -> tuple[Pointwise, dict[str, str]]:
    """PSIS-LOO, corrected where k-hat is high; and refits that failed."""
    loo = _psis_loo(posterior, site)
    k_hat = np.asarray(loo.pareto_k).ravel().astype(float)
    elpd = np.asarray(loo.elpd_i).ravel().astype(float)
    bad = np.flatnonzero(~(k_hat <= loo.good_k))
    can = isinstance(posterior.target, NumPyroTarget)
    if not (refit and bad.size and can):
        why = "" if can or not (refit and bad.size) else f"its target is a {type(posterior.target).__name__}"
        return Pointwise(elpd, _lppd(posterior, site), k_hat, float(loo.good_k), (), loo, why), {}
    left_out = [np.arange(elpd.size) == index for index in bad]
    labels = [f"{name} without {site}[{index}]" for index in bad]
    done = _refits(posterior, site, left_out, labels, key, progress)
    refitted = []
    for index, one in zip(bad, done, strict=False):
        if one.error is None:
            elpd[index], k_hat[index] = one.value[0], 0.0
            refitted.append(int(index))
    lost = {one.name: str(one.error) for one in done if one.error is not None}
    return Pointwise(elpd, _lppd(posterior, site), k_hat, float(loo.good_k), tuple(refitted), loo), lost


def _k_fold(
    name: str, posterior: Posterior, site: str, folds: int, fold_key: Any, key: Any, progress: bool | None
) -> tuple[Pointwise, dict[str, str]]:
    """K-fold cross-validation."""
    if not isinstance(posterior.target, NumPyroTarget):
        raise NotAvailable(
            f"folds={folds} needs targets made with Target.from_numpyro, and that of {name!r} is a "
            f"{type(posterior.target).__name__}."
        )
    lppd = _lppd(posterior, site)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(fold_key)).ravel())
    fold = rng.permutation(np.arange(lppd.size) % folds)
    left_out = [fold == k for k in range(folds)]
    done = _refits(posterior, site, left_out, [f"{name} without fold {k}" for k in range(folds)], key, progress)
    lost = {one.name: str(one.error) for one in done if one.error is not None}
    if lost or len(done) < folds:
        label, why = next(iter(lost.items()), (name, "interrupted"))
        raise NotAvailable(
            f"K-fold of {name!r} needs all {folds} refits, and {max(len(lost), 1)} failed; {label}: {why}"
        )
    elpd = np.empty(lppd.size)
    for out, one in zip(left_out, done, strict=True):
        elpd[out] = one.value
    loo = None
    return Pointwise(elpd, lppd, np.zeros(lppd.size), 0.7, tuple(range(folds)), loo), lost


def _refits(
    posterior: Posterior, site: str, left_out: list[np.ndarray], labels: list[str], key: Any, progress: bool | None
) -> list[Done]:
    """Log predictive densities of what each refit leaves out, as `Done.value`."""
    target: Any = posterior.target
    shape = _shape(posterior, site)
    plan = posterior.record.get("plan", {})
    method = None if posterior._run is None else posterior._run.method
    options = {name: plan[name] for name in ("num_samples", "num_warmup", "num_chains", "precision") if name in plan}
    warm = posterior.kind == "chains" and method is not None and posterior.teaches(method)
    if warm:
        options.pop("num_warmup", None)
    with precision(posterior._bits):
        first = with_kept(target, {site: ~left_out[0].reshape(shape)})

    def job(number: int, out: np.ndarray) -> Callable[[], np.ndarray]:
        def one() -> np.ndarray:
            given = with_changes(first, {site: ~out.reshape(shape)})
            with precision(posterior._bits):
                own = jax.random.fold_in(key, number)
            start = posterior if posterior.kind == "chains" else None
            made = uninterrupted(fit(given, method, key=own, start=start, progress=False, **options))
            return _log_mean(_log_likelihoods(made, target, site)[:, out.ravel()], made)

        return one

    jobs = ((label, job(i, out)) for i, (label, out) in enumerate(zip(labels, left_out, strict=True)))
    return run_jobs(jobs, total=len(labels), what="refits", progress=progress)


def _log_likelihoods(posterior: Posterior, target: "Target", site: str) -> np.ndarray:
    """Pointwise log likelihoods (draw, observation) of ``target`` at the draws of a posterior."""
    lead = len(posterior.sample_dims)
    flat = {name: value.reshape(-1, *value.shape[lead:]) for name, value in posterior.draws().items()}
    with precision(posterior._bits):
        out = evaluate.over_draws(evaluate.log_likelihood_of, target, flat)[site]
    return out.reshape(len(out), -1)


def _log_mean(values: np.ndarray, posterior: Posterior) -> np.ndarray:
    """Log of the mean over draws of exp: of independent draws of an approximation, by their smoothed weights."""
    from scipy.special import logsumexp

    weights = posterior.log_weights() if posterior.kind == "approximation" else None
    if weights is None:
        return logsumexp(values, axis=0) - np.log(len(values))
    return logsumexp(values + psis(weights).log_weights[:, None], axis=0)


def _psis_loo(posterior: Posterior, site: str) -> Any:
    import arviz_stats

    posterior.log_likelihood()
    if posterior.kind == "chains":
        return _quietly(lambda: arviz_stats.loo(posterior.data, pointwise=True, var_name=site))
    stats = posterior.data["sample_stats"]
    return _quietly(
        lambda: arviz_stats.loo_approximate_posterior(
            posterior.data, stats["lp"], stats["log_q"], pointwise=True, var_name=site
        )
    )


def _quietly(call: Callable[[], Any]) -> Any:
    """Without ArviZ's warning of a high k-hat, which is acted upon."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return call()


def _lppd(posterior: Posterior, site: str) -> np.ndarray:
    """Log predictive density of each observation by the posterior that has seen it."""
    return _log_mean(_log_likelihoods(posterior, posterior._need_target("compare_models"), site), posterior)


def _evidence(posterior: Posterior) -> Any:
    """Log evidence and its error; None where it means nothing or cannot be had."""
    target = posterior._need_target("evidence")
    if target.has("prior") and not target.has("proper_prior"):
        return None
    try:
        return posterior.evidence()
    except PushforwardError:
        return None


def _shape(posterior: Posterior, site: str) -> tuple[int, ...]:
    """Shape of the pointwise log likelihood of a site."""
    lead = len(posterior.sample_dims)
    draws = posterior.draws()
    first = {name: value.reshape(-1, *value.shape[lead:])[:1] for name, value in draws.items()}
    with precision(posterior._bits):
        return evaluate.over_draws(evaluate.log_likelihood_of, posterior.target, first)[site].shape[1:]


def _check_same_data(posteriors: Mapping[str, Posterior], var_name: str | None) -> str:
    """The observed site to predict, which all models have with the same values."""
    seen: dict[str, Any] = {}
    for name, posterior in posteriors.items():
        if not isinstance(posterior, Posterior):
            raise InvalidArgument(f"posteriors[{name!r}] must be a Posterior, got {type(posterior).__name__}.")
        if posterior.kind == "particles":
            raise NotAvailable(f"compare_models needs chains or an approximation, and {name!r} has particles.")
        target = posterior._need_target("compare_models")
        if not target.has("likelihood") or not target.observed:
            raise NotAvailable(
                f"compare_models needs a pointwise log likelihood of observed sites, and the target of {name!r} has "
                f"none; build it with Target.from_numpyro."
            )
        names = list(target.observed)
        if var_name is None and len(names) > 1:
            raise InvalidArgument(f"{name!r} observes {', '.join(names)}; say with var_name which one is predicted.")
        site = names[0] if var_name is None else var_name
        if site not in names:
            raise InvalidArgument(f"var_name={site!r} is not observed by {name!r}, which observes {', '.join(names)}.")
        seen[name] = (site, np.asarray(target.observed[site]))
    (first, (site, value)), *others = seen.items()
    for name, (other_site, other) in others:
        if other_site != site:
            raise InvalidArgument(
                f"{first!r} observes {site!r} and {name!r} observes {other_site!r}; give the site the same name."
            )
        if other.shape != value.shape or not np.array_equal(other, value, equal_nan=True):
            raise InvalidArgument(
                f"{first!r} and {name!r} have other observations of {site!r} (shapes {value.shape} and {other.shape}); "
                f"models are compared on the same data."
            )
    return site
