"""`combine`: draws of sub-posteriors, made apart and brought together once.

The posterior is the product of the sub-posteriors, π(u) = Πᵢ πᵢ(u) with πᵢ ∝ prior^(1/n) · likelihoodᵢ. Four ways from
n sets of draws to draws of the product:

- consensus: θ_s = (Σ Wᵢ)⁻¹ Σ Wᵢ θᵢₛ, Wᵢ = Σ̂ᵢ⁻¹ ([1]_, eq. 5);
- parametric: N(μ, Σ), Σ = (Σ Σ̂ᵢ⁻¹)⁻¹, μ = Σ Σᵢ Σ̂ᵢ⁻¹ μ̂ᵢ ([2]_, section 3.1);
- semiparametric: a mixture over all tuples of draws, one of each set, sampled by a Gibbs sampler ([2]_, 3.3);
- swiss: πᵢ ∝ prior · likelihoodᵢⁿ of covariance Vᵢ; θ ↦ μ + Aᵢ (θ − μᵢ), Aᵢ Vᵢ Aᵢᵀ = V = (n⁻¹ Σ Vᵢ⁻¹)⁻¹ ([3]_).

All are exact for normal sub-posteriors, and work in the unconstrained coordinates.

Weights are full matrices: with diagonal ones consensus is wrong even for normal sub-posteriors that are correlated.

References
----------
.. [1] S. Scott et al. (2016). Bayes and big data: the consensus Monte Carlo algorithm. International Journal of
   Management Science and Engineering Management 11(2).
.. [2] W. Neiswanger, C. Wang, E. Xing (2014). Asymptotically exact, embarrassingly parallel MCMC. UAI. arXiv:1311.4780.
.. [3] C. Vyner, C. Nemeth, C. Sherlock (2023). SwISS: a scalable Markov chain Monte Carlo divide-and-conquer strategy.
   Stat 12(1). The map Aᵢ here is the optimal transport between the two normals; the paper's may be another.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import cho_factor, cho_solve, eigh

from ..infer import evaluate
from ..infer.errors import InvalidArgument, NonFinite
from ..infer.linalg import Triangular
from ..infer.posterior import Posterior
from ..infer.run.plan import read_key
from ..infer.run.precision import precision
from ..infer.target import Target
from ..infer.target.sub_posterior import SubPosterior
from ..infer.validate import check_choice, check_count
from ..infer.variational.gaussian.approximation import GaussianApproximation

HOW = ("consensus", "parametric", "semiparametric", "swiss")
ENOUGH = 10
"""Draws per coordinate below which covariances are shrunk."""
CANDIDATES = 100
WARMUP = 5
"""One in this many sweeps of the semiparametric sampler is thrown away."""
SKEWED = 0.5
SLOW = 0.2


class Moments(NamedTuple):
    """Mean, covariance, and how far its correlations were shrunk towards 0, between 0 and 1."""

    mean: np.ndarray
    covariance: np.ndarray
    shrunk: float


def combine(
    posteriors: Sequence[Posterior],
    how: str = "consensus",
    *,
    target: Target | None = None,
    num_samples: int | None = None,
    num_chains: int = 4,
    key: Any = 0,
) -> Posterior:
    """One posterior from the posteriors of agents who have each seen their own data.

    Parameters
    ----------
    posteriors
        One per agent, of ``target.sharded(n).sub_posterior(i)`` by any method (for ``how="swiss"`` of
        ``sub_posterior(i, inflated=True)``); or of targets of your own whose product is the posterior.
    how
        ``"consensus"``, ``"parametric"``, ``"semiparametric"`` or ``"swiss"``.
    target
        The whole target, which the result then has, for densities and predictions; with it ``how="parametric"`` tells
        how good it is (k-hat).
    num_samples
        Draws: of the parametric normal, or per chain of the semiparametric sampler (1,000); of the others there are as
        many as there are.
    num_chains, key
        Of the semiparametric sampler, and of the parametric draws.

    Returns
    -------
    Posterior
        Of kind ``"approximation"`` if parametric, else ``"chains"``.

    Raises
    ------
    InvalidArgument
        There are fewer than two posteriors, they are of other sites or shardings, an agent is missing or there twice,
        or the prior was not split as ``how`` needs it.
    NonFinite
        A covariance is singular: too few draws, or a coordinate that did not move.
    """
    check_choice("how", how, HOW)
    posteriors = list(posteriors)
    _check_posteriors(posteriors, how)
    inner = posteriors[0].target if target is None else target
    draws = [_unconstrained(p) for p in posteriors]
    with precision(posteriors[0]._bits):
        moments = [_moments(i, x) for i, x in enumerate(draws)]
        remarks = _remarks(how, draws, moments)
        stats: dict[str, np.ndarray] = {}
        if how == "parametric":
            return _parametric(moments, inner, target, num_samples, key, remarks)
        if how == "consensus":
            u = consensus(_paired(draws), moments)
        elif how == "swiss":
            u = swiss(_paired(draws), moments)
        else:
            rng = np.random.default_rng(np.asarray(read_key(key)[0]))
            count = 1000 if num_samples is None else check_count("num_samples", num_samples)
            u, replaced = semiparametric(rng, draws, moments, count, check_count("num_chains", num_chains))
            stats = {"acceptance_rate": replaced}
            remarks.append(_acceptance(float(replaced.mean())))
        groups = {"posterior": _constrained(inner, u)} | ({"sample_stats": stats} if stats else {})
    record = _record(how, len(draws), remarks)
    return Posterior(groups, kind="chains", target=target, record=record, **_labels(inner))


# -- the four ways ----------------------------------------------------------------------------------------------------


def consensus(draws: list[np.ndarray], moments: list[Moments]) -> np.ndarray:
    """Weighted averages of draws (chain, draw, d), one of each set, shape (chain, draw, d)."""
    weights = [_inverse(m.covariance) for m in moments]
    total = np.sum([x @ w for x, w in zip(draws, weights, strict=True)], axis=0)
    return cho_solve(cho_factor(sum(weights)), total.reshape(-1, total.shape[-1]).T).T.reshape(total.shape)


def product(moments: list[Moments]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the product of normal densities."""
    weights = [_inverse(m.covariance) for m in moments]
    precision_factor = cho_factor(sum(weights))
    mean = cho_solve(precision_factor, sum(w @ m.mean for w, m in zip(weights, moments, strict=True)))
    return mean, cho_solve(precision_factor, np.eye(len(mean)))


def swiss(draws: list[np.ndarray], moments: list[Moments]) -> np.ndarray:
    """Draws of the inflated sub-posteriors, moved and stretched; those of all agents, as chains."""
    mean, covariance = product(moments)
    covariance = len(draws) * covariance
    return np.concatenate(
        [mean + (x - m.mean) @ transport(m.covariance, covariance).T for x, m in zip(draws, moments, strict=True)]
    )


def transport(source: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The symmetric A with A source A = goal: source^-½ (source^½ goal source^½)^½ source^-½."""
    values, vectors = eigh(source)
    root, back = (vectors * values**0.5) @ vectors.T, (vectors * values**-0.5) @ vectors.T
    inner, turn = eigh(root @ goal @ root)
    return back @ (turn * np.sqrt(np.maximum(inner, 0.0))) @ turn.T @ back


def semiparametric(
    rng: np.random.Generator, draws: list[np.ndarray], moments: list[Moments], count: int, chains: int
) -> tuple[np.ndarray, np.ndarray]:
    """Gibbs over the tuples of draws, in the coordinates in which the parametric product is N(0, I).

    A tuple t has the weight Πᵢ N(xᵢ; x̄, b²I) N(x̄; 0, (1 + b²/n) I) / Πᵢ N(xᵢ; μ̂ᵢ, Σ̂ᵢ), xᵢ its draw of set i and x̄
    their mean; given t a draw is normal, of precision n/b² + 1 and mean x̄ n/b² over that ([2]_, section 3.3, from the
    product of the two normals). Sweep s has the bandwidth b = s^(−1/(4 + d)).

    The paper proposes one draw in place of each xᵢ, of which a few in a hundred are accepted; here one of a hundred
    random ones and the present one is chosen by its weight, which leaves the same distribution as it is.

    Returns draws (chain, draw, d) and the share of the sets whose draw was replaced (chain, draw).
    """
    n, d = len(draws), draws[0].shape[-1]
    mean, covariance = product(moments)
    root = np.linalg.cholesky(covariance)
    pooled = [x.reshape(-1, d) for x in draws]
    within = [_log_normal(x, m) for x, m in zip(pooled, moments, strict=True)]
    points = [np.linalg.solve(root, (x - mean).T).T for x in pooled]
    lanes = np.arange(chains)
    chosen = np.stack([rng.integers(len(x), size=chains) for x in points])
    total = np.sum([points[i][chosen[i]] for i in range(n)], axis=0)
    warmup = max(1, count // WARMUP)
    kept, replaced = np.empty((chains, count, d)), np.empty((chains, count))
    for s in range(1, warmup + count + 1):
        b = s ** (-1 / (4 + d))
        moves = np.zeros(chains)
        for i in range(n):
            tried = np.column_stack([chosen[i], rng.integers(len(points[i]), size=(chains, CANDIDATES))])
            x = points[i][tried]
            rest = (total - points[i][chosen[i]])[:, None]
            centre = ((rest + x) ** 2).sum(-1) / n**2
            # Σⱼ |xⱼ − x̄|² = Σⱼ |xⱼ|² − n |x̄|², of which xᵢ alone changes the first sum.
            log_weight = -((x**2).sum(-1) - n * centre) / (2 * b**2) - centre / (2 * (1 + b**2 / n)) - within[i][tried]
            noisy = log_weight + rng.gumbel(size=log_weight.shape)  # whose largest entry is a draw by weight
            best = np.argmax(noisy, axis=1)
            total = rest[:, 0] + x[lanes, best]
            moves += tried[lanes, best] != chosen[i]
            chosen[i] = tried[lanes, best]
        if s > warmup:
            at, tight = s - warmup - 1, n / b**2 + 1
            kept[:, at] = (n / b**2) * (total / n) / tight + rng.normal(size=(chains, d)) / np.sqrt(tight)
            replaced[:, at] = moves / n
    return mean + kept @ root.T, replaced


def _parametric(
    moments: list[Moments], inner: Any, target: Any, num_samples: int | None, key: Any, remarks: list
) -> Posterior:
    mean, covariance = product(moments)
    found = GaussianApproximation(jnp.asarray(mean), Triangular(jnp.asarray(np.linalg.cholesky(covariance))))
    words, generator = read_key(key)
    root = jax.random.wrap_key_data(np.asarray(words, np.uint32), impl=generator)
    count = 1000 if num_samples is None else check_count("num_samples", num_samples)
    u, log_q = (np.asarray(x) for x in evaluate.draw_approximation(found, root, n=count))
    groups = {"posterior": _constrained(inner, u[None])}
    if target is not None:
        log_p = evaluate.over_draws(evaluate.log_density_at, target, u)
        stats = {"lp": log_p, "log_q": log_q, "log_weight": log_p - log_q}
        groups["sample_stats"] = {name: x[None] for name, x in stats.items()}
    record = _record("parametric", len(moments), remarks)
    made: dict[str, Any] = {"target": target, "record": record, "approximation": found}
    return Posterior(groups, kind="approximation", **made, **_labels(inner))


# -- small parts ------------------------------------------------------------------------------------------------------


def _check_posteriors(posteriors: list[Any], how: str) -> None:
    if len(posteriors) < 2 or not all(isinstance(p, Posterior) for p in posteriors):
        kinds = ", ".join(type(p).__name__ for p in posteriors) or "nothing"
        raise InvalidArgument(f"posteriors must be a list of at least two Posteriors, got {kinds}.")
    shapes = []
    for i, posterior in enumerate(posteriors):
        if posterior.target is None:
            raise InvalidArgument(
                f"posteriors[{i}] has no target, whose coordinates its draws are combined in; give it with "
                f"Posterior.from_draws(draws, target=...) or load(path, target)."
            )
        shapes.append([(site.name, site.shape, site.support) for site in posterior.target.sites if site.size])
        if shapes[i] != shapes[0]:
            raise InvalidArgument(f"posteriors[{i}] has the sites {shapes[i]}, and posteriors[0] {shapes[0]}.")
    parts = [p.target for p in posteriors if isinstance(p.target, SubPosterior)]
    if not parts:
        return
    agents, num_agents = sorted(part.agent for part in parts), parts[0].num_agents
    if len({part.num_agents for part in parts}) > 1:
        shown = ", ".join(
            f"posteriors[{i}] is agent {p.target.agent} of {p.target.num_agents}"
            for i, p in enumerate(posteriors)
            if isinstance(p.target, SubPosterior)
        )
        raise InvalidArgument(
            f"posteriors must be of one sharding, got parts of several: {shown}; some rows would count twice, others "
            f"not at all. Take all from one target.sharded(n)."
        )
    if agents != list(range(num_agents)) or len(parts) != len(posteriors):
        raise InvalidArgument(
            f"posteriors must be those of the agents 0 to {num_agents - 1}, each once, got agents {agents} and "
            f"{len(posteriors) - len(parts)} others; a posterior that is missing cannot be left out of the product."
        )
    for part in parts:
        if part.inflated != (how == "swiss"):
            need = "prior · likelihoodⁿ: sub_posterior(i, inflated=True)"
            need = need if how == "swiss" else "prior^(1/n) · likelihood: sub_posterior(i)"
            raise InvalidArgument(
                f"how={how!r} needs sub-posteriors {need}; that of agent {part.agent} has the powers "
                f"{float(part.prior_power):g} of the prior and {float(part.likelihood_power):g} of the likelihood."
            )


def _unconstrained(posterior: Posterior) -> np.ndarray:
    """Draws (chain, draw, d); of weighted particles, resampled ones."""
    if posterior.kind != "particles":
        return np.asarray(posterior.unconstrained(), float)
    values, target = posterior.sample(), posterior._need_target("combine")
    with precision(posterior._bits):
        latent = {site.name: values[site.name] for site in target.sites if site.size}
        return np.asarray(evaluate.over_draws(evaluate.unconstrain_draw, target, latent))[None]


def _paired(draws: list[np.ndarray]) -> list[np.ndarray]:
    """As many chains and draws of each; shifted against each other, as runs with one key share their noise.

    Where they differ in shape, all chains one after the other, evenly thinned to as many as the shortest has.
    """
    if len({x.shape for x in draws}) > 1:
        least = min(x.shape[0] * x.shape[1] for x in draws)
        pooled = [x.reshape(-1, x.shape[-1]) for x in draws]
        draws = [x[None, np.arange(least) * len(x) // least] for x in pooled]
    length = draws[0].shape[1]
    return [np.roll(x, round(i * length / len(draws)), axis=1) for i, x in enumerate(draws)]


def _moments(agent: int, draws: np.ndarray) -> Moments:
    x = draws.reshape(-1, draws.shape[-1])
    size, d = x.shape
    mean = x.mean(0)
    covariance = np.atleast_2d(np.cov(x, rowvar=False))
    shrunk = shrinkage(x) if size < ENOUGH * d else 0.0
    covariance = (1 - shrunk) * covariance + shrunk * np.diag(np.diagonal(covariance))
    try:
        if not np.isfinite(covariance).all():
            raise np.linalg.LinAlgError
        np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        raise NonFinite(
            f"The covariance of the {size} draws of posteriors[{agent}] in {d} coordinates is singular or not finite "
            f"(smallest variance {np.diagonal(covariance).min():.3g}); draw more, or look at its diagnose()."
        ) from None
    return Moments(mean, covariance, shrunk)


def shrinkage(x: np.ndarray) -> float:
    """How far to shrink the correlations of draws (n, d) towards 0 (Schäfer & Strimmer 2005, section 2.3)."""
    n, d = x.shape
    z = (x - x.mean(0)) / np.maximum(x.std(0, ddof=1), np.finfo(float).tiny)
    correlation = z.T @ z / n
    variance = n / (n - 1) ** 3 * ((z**2).T @ z**2 - n * correlation**2)
    off = ~np.eye(d, dtype=bool)
    size = (correlation[off] ** 2).sum()
    return float(np.clip(variance[off].sum() / size, 0.0, 1.0)) if size > 0 else 1.0


def _inverse(covariance: np.ndarray) -> np.ndarray:
    return cho_solve(cho_factor(covariance), np.eye(len(covariance)))


def _log_normal(x: np.ndarray, moments: Moments) -> np.ndarray:
    """Log density up to a constant."""
    root = np.linalg.cholesky(moments.covariance)
    return -0.5 * (np.linalg.solve(root, (x - moments.mean).T) ** 2).sum(0)


def _constrained(target: Any, u: np.ndarray) -> dict[str, np.ndarray]:
    """Values by site, (chain, draw, …), of u (chain, draw, d)."""
    flat = u.reshape(-1, u.shape[-1])
    values = evaluate.over_draws(evaluate.constrain_draw, target, flat, key=jax.random.key(0))
    return {name: np.asarray(x).reshape(*u.shape[:2], *x.shape[1:]) for name, x in values.items()}


def _labels(target: Any) -> dict[str, Any]:
    return {"dims": target.dims, "coords": target.coords}


def _record(how: str, n: int, remarks: list[dict[str, Any]]) -> dict[str, Any]:
    method = {"name": f"combine({how!r})", "settings": {"how": how, "num_agents": n}}
    return {"made": "combined", "method": method, "remarks": remarks, "stopped": None}


def _remarks(how: str, draws: list[np.ndarray], moments: list[Moments]) -> list[dict[str, Any]]:
    """What the sub-posteriors say of the method's assumption."""
    skews = []
    for x, m in zip(draws, moments, strict=True):
        z = (x - m.mean) / np.sqrt(np.diagonal(m.covariance))
        skews.append(np.abs((z**3).mean((0, 1))).max())
    worst = int(np.argmax(skews))
    value = float(skews[worst])
    large = value > SKEWED and how != "semiparametric"
    when = (
        "Exact for any sub-posteriors as draws grow in number" if how == "semiparametric" else "Exact for normal ones"
    )
    message = f"{when}; the largest skewness of a sub-posterior is {value:.2f} (agent {worst}, threshold {SKEWED})."
    if large:
        message += " Compare with fewer shards, or in few dimensions with how='semiparametric'."
    level = "warning" if large else "note"
    found = [{"level": level, "name": "combination", "message": message, "value": value, "threshold": SKEWED}]
    counts = [x.shape[0] * x.shape[1] for x in draws]
    if len(set(counts)) > 1 and how in ("consensus", "swiss"):
        text = (
            f"Sub-posteriors have from {min(counts)} to {max(counts)} draws: weights are from all of them, and "
            f"combined are as many of each, {min(counts)}, evenly spread over its chains."
        )
        found.append({"level": "note", "name": "draws", "message": text, "value": float(min(counts))})
    shrunk = max(m.shrunk for m in moments)
    if shrunk > 0:
        text = (
            f"With fewer than {ENOUGH} draws per coordinate the correlations of sub-posteriors were shrunk, by up to "
            f"{100 * shrunk:.0f} %; more draws make that needless."
        )
        found.append({"level": "note", "name": "shrinkage", "message": text, "value": shrunk})
    return found


def _acceptance(rate: float) -> dict[str, Any]:
    low = rate < SLOW
    text = f"The sampler over tuples of draws replaced {100 * rate:.0f} % of them in a sweep"
    text += f" (threshold {100 * SLOW:.0f} %)."
    if low:
        text += " It moves hardly at all, as it does in many dimensions: use how='consensus'."
    level = "warning" if low else "ok"
    return {"level": level, "name": "acceptance", "message": text, "value": rate, "threshold": SLOW}
