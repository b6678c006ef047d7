"""Mixtures in the plane, after Lau, Liu & Pock (2023): ``a``, ``b``, ``c`` of `benchmarks.papers.langevin`.

``a``: Gaussian mixtures; ``b``: Laplace mixtures, each component smoothed by its Moreau envelope; ``c``: Gaussian
mixtures times exp(−0.15 ‖x‖₁). ULA, MALA, ULA with their metric M, mirror Langevin with the hyperbolic entropy of
β = (0.7, 0.3), for ``a`` and ``b`` their IHPULA, ULA preconditioned by the inverse of the shifted Hessian at each point
(written out here: it leaves out the derivative of that matrix, so that its law is not near the target even for small
steps), and for ``c`` the proximal samplers. Chains begin at N(0, I), without burn-in, and the number of modes n
is theirs; of their grids of steps and of λ a part is run. The distance to independent draws is W₂ between 1,000 of them
and 1,000 iterates spread over the first k. Modes of ``c`` are far apart, and chains stay in those that they find:
shares of the draws by nearest mode are next to the exact ones, and a second run begins at independent draws of the law.
"""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

import pushforward as pf
from pushforward.infer.errors import PushforwardError
from pushforward.infer.geometry import L1, HyperbolicEntropy

from .langevin_common import FULL, Rows, run

MEANS = np.array([[0.0, 0], [-2, 3], [2, -3], [3, 3], [-2, -2]])
FAR = np.array([[3.0, 3], [-4, 6], [4, -6], [5, 5], [-4, -4]])
COVARIANCES = np.array(
    [[[1, -0.5], [-0.5, 1]], [[0.5, 0.2], [0.2, 0.7]], [[0.5, 0.1], [0.1, 0.9]], [[0.8, 0.02], [0.02, 0.3]],
     [[1.2, 0.05], [0.05, 0.8]]]
)  # fmt: skip
METRIC = np.array([[1.0, 0.1], [0.1, 0.5]])
MIRROR, PSI = HyperbolicEntropy([0.7, 0.3]), HyperbolicEntropy([0.2, 0.8])
ALPHA, ALPHA_LAPLACE = 0.15, 0.5
START = np.random.default_rng(0).normal(size=(1, 2))
LOOKS = (100, 300, 1000, 3000, 10_000)
SHIFT = 0.05
"""What IHPULA adds to the Hessian, beyond the size of its least eigenvalue."""
IHPULA_STEP = 0.025
"""A step that the paper's authors ran IHPULA with, beside those of all samplers."""


def members(n: int) -> np.ndarray:
    """Which components the mixture of n has: the first n, and of four all but the first."""
    return np.arange(1, 5) if n == 4 else np.arange(n)


def gaussian_mixture(x: Any, data: Any) -> Any:
    """Log density of the components whose log weight is finite."""
    means, precisions, log_weights = data
    away = x - means
    return logsumexp(log_weights - 0.5 * jnp.einsum("ki,kij,kj->k", away, precisions, away))


def gaussian_data(means: np.ndarray, n: int) -> tuple[np.ndarray, ...]:
    precisions = np.linalg.inv(COVARIANCES)
    weights = np.full(5, -np.inf)
    weights[members(n)] = 0.5 * np.linalg.slogdet(precisions)[1][members(n)]
    return means, precisions, weights


def laplace_mixture(x: Any, data: Any) -> Any:
    """Components exp(−α‖x − μ‖₁), each |·| replaced by its Moreau envelope."""
    means, log_weights, smoothing = data
    size = jnp.abs(x - means)
    kink = ALPHA_LAPLACE * smoothing
    envelope = jnp.where(size <= kink, size**2 / (2 * smoothing), ALPHA_LAPLACE * (size - kink / 2))
    return logsumexp(log_weights - envelope.sum(-1))


def independent(kind: str, n: int, size: int, seed: int) -> np.ndarray:
    """Draws of the mixture itself."""
    rng = np.random.default_rng(seed)
    which = rng.choice(members(n), size)
    if kind == "gaussian":
        return MEANS[which] + np.einsum(
            "kij,kj->ki", np.linalg.cholesky(COVARIANCES)[which], rng.normal(size=(size, 2))
        )
    return MEANS[which] + rng.laplace(scale=1 / ALPHA_LAPLACE, size=(size, 2))


def w2(x: np.ndarray, y: np.ndarray) -> float:
    """Between clouds of equal size."""
    cost = cdist(x, y, "sqeuclidean")
    return float(np.sqrt(cost[linear_sum_assignment(cost)].mean()))


def plain(step: float) -> dict[str, Any]:
    """Samplers of a smooth target; that of the metric M takes a term of weight 0."""
    return {
        "ULA": pf.MirrorLangevin(step_size=step, adjusted=False, scale=1.0, bias_check=False),
        "MALA": pf.MirrorLangevin(step_size=step, scale=1.0),
        "PULA": pf.ProximalLangevin(step_size=step, scheme="pp_ula", metric=METRIC, num_prox=1, bias_check=False),
        "MLA": pf.MirrorLangevin(step_size=step, mirror=MIRROR, adjusted=False, bias_check=False),
        "adjusted MLA": pf.MirrorLangevin(step_size=step, mirror=MIRROR),
    }


@partial(jax.jit, static_argnames=("log_density", "steps"))
def preconditioned(log_density: Any, data: Any, start: Any, step: Any, steps: int, key: Any) -> Any:
    """Draws (steps, d) of IHPULA: x⁺ = x − γ P ∇U(x) + √(2γ) P^½ ξ with P = (∇²U + (|least eigenvalue| + 0.05) I)⁻¹."""

    def move(x, key):
        values, vectors = jnp.linalg.eigh(-jax.hessian(log_density)(x, data))
        scales = 1 / (values + jnp.abs(values[0]) + SHIFT)
        drift = vectors @ (scales * (vectors.T @ jax.grad(log_density)(x, data)))
        noise = vectors @ (jnp.sqrt(scales) * jax.random.normal(key, x.shape))
        x = x + step * drift + jnp.sqrt(2 * step) * noise
        return x, x

    return jax.lax.scan(move, start, jax.random.split(key, steps))[1]


def ihpula(log_density: Any, data: Any, step: float, truth: np.ndarray, steps: int) -> dict[str, Any]:
    """W₂ of IHPULA, which is here as a baseline of the paper and no method of the package."""
    with jax.enable_x64(True):
        data = jax.tree.map(jnp.asarray, data)
        draws = preconditioned(log_density, data, jnp.asarray(START[0]), step, steps, jax.random.key(0))
    return {"acceptance": None, "divergences": int((~np.isfinite(draws)).any(1).sum())} | looked_at(draws, truth)


def distances(target: Any, method: Any, truth: np.ndarray, steps: int) -> dict[str, Any]:
    """W₂ of one chain of a method from N(0, I)."""
    draws, stats = run(target, method, start=START, steps=steps)
    return stats | looked_at(draws[0], truth)


def looked_at(draws: Any, truth: np.ndarray) -> dict[str, Any]:
    """W₂ after so many iterations of a chain (steps, d)."""
    steps = len(draws)
    looks = [k for k in (*LOOKS, steps) if k <= steps]
    if not np.isfinite(draws).all():
        return {"at": looks, "w2": None, "last": None}
    found = [w2(np.asarray(draws)[np.linspace(0, k - 1, 1000).astype(int)], truth) for k in looks]
    return {"at": looks, "w2": found, "last": found[-1]}


def smooth_experiment(name: str, log_density: Any, cases: list[tuple[dict, Any, str]], steps: int) -> None:
    """Rows of all samplers for (key, data, kind of independent draws) and a figure of those of the largest step
    and the smallest smoothing.
    """
    rows = Rows(
        name, {"steps": steps, "metric": "W2 of 1,000 draws"}, ("n", "smoothing", "step", "method", "last", "floor")
    )
    for key, data, kind in cases:
        target = pf.Target.composite(pf.Target.from_log_density(log_density, np.zeros(2), data=data), L1(np.zeros(2)))
        truth = independent(kind, key["n"], 1000, 1)
        floor = w2(independent(kind, key["n"], 1000, 2), truth)
        for method_name, method in plain(key["step"]).items():
            rows.add(
                key | {"method": method_name},
                lambda t=target, m=method, y=truth, f=floor: distances(t, m, y, steps) | {"floor": f},
            )
        for step in (key["step"], IHPULA_STEP):
            rows.add(
                key | {"step": step, "method": "IHPULA"},
                lambda d=data, g=step, y=truth, f=floor: ihpula(log_density, d, g, y, steps) | {"floor": f},
            )
    ns = sorted({key["n"] for key, _, _ in cases})
    _, axes, save = rows.figure((3.2 * len(ns), 3), 1, len(ns), sharey=True)
    for axis, n in zip(axes[0], ns, strict=True):
        chosen = [row for row in rows.rows if row["n"] == n and row["w2"]]
        step = max(row["step"] for row in chosen)
        smoothing = min(row.get("smoothing", 0.0) for row in chosen)
        chosen = [row for row in chosen if (row.get("smoothing", 0.0), row["step"]) == (smoothing, step)]
        for i, row in enumerate(chosen):
            axis.plot(row["at"], row["w2"], f"C{i}", label=row["method"])
        axis.axhline(chosen[0]["floor"], color="0.6", lw=0.8)
        axis.set(title=f"n = {n}, γ = {step}", xscale="log", xlabel="iterations")
    axes[0, 0].set_ylabel("W₂")
    axes[0, 0].legend(fontsize=7)
    save()


def a() -> None:
    """10,000 iterations; n = 1, 2, 3, 5 (all five with ``--full``)."""
    cases = [
        ({"n": n, "step": step}, gaussian_data(MEANS, n), "gaussian")
        for n in ((1, 2, 3, 4, 5) if FULL else (1, 2, 3, 5))
        for step in (0.1, 0.05, 0.01)
    ]
    smooth_experiment("a", gaussian_mixture, cases, 10_000)


def b() -> None:
    """50,000 iterations; n = 1, 3, 5 and three of the nine pairs of λ and γ (all five and all nine with ``--full``).

    The independent draws are those without smoothing.
    """
    cases = []
    few = ((0.1, 0.05), (1.0, 0.05), (0.1, 0.15))
    for n in (1, 2, 3, 4, 5) if FULL else (1, 3, 5):
        weights = np.full((5,), -np.inf)
        weights[members(n)] = 0.0
        cases += [
            ({"n": n, "smoothing": smoothing, "step": step}, (MEANS, weights, smoothing), "laplace")
            for smoothing, step in (itertools.product((0.1, 0.5, 1.0), (0.05, 0.1, 0.15)) if FULL else few)
        ]
    smooth_experiment("b", laplace_mixture, cases, 50_000)


def exact(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean, covariance, shares by nearest mode, and 256 independent draws, by quadrature on [−14, 14]²."""
    side = np.linspace(-14, 14, 1401)
    x = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    means, precisions, weights = gaussian_data(FAR, n)
    logs = np.stack(
        [weights[k] - 0.5 * np.einsum("ij,jk,ik->i", x - means[k], precisions[k], x - means[k]) for k in members(n)]
    )
    p = np.exp(logs).sum(0) * np.exp(-ALPHA * np.abs(x).sum(1))
    p = p / p.sum()
    mean = p @ x
    drawn = x[np.random.default_rng(5).choice(len(x), 256, p=p)]
    return mean, (x - mean).T @ ((x - mean) * p[:, None]), shares(x, n, p), drawn


def shares(x: np.ndarray, n: int, p: np.ndarray | None = None) -> np.ndarray:
    nearest = cdist(x, FAR[members(n)]).argmin(1)
    weights = np.full(len(x), 1 / len(x)) if p is None else p
    return np.array([weights[nearest == k].sum() for k in range(len(members(n)))])


def proximal(step: float, smoothing: float) -> dict[str, Any]:
    bregman = pf.BregmanProximalLangevin
    euclid = {"step_size": step, "smoothing": smoothing, "scale": 1.0}
    dual = {"step_size": step, "smoothing": smoothing, "mirror": MIRROR, "envelope": PSI}
    return {
        "PGLD": pf.ProximalLangevin(step_size=step, scheme="pgld", bias_check=False),
        "MYULA": bregman(adjusted=False, bias_check=False, **euclid),
        "MYMALA": bregman(**euclid),
        "PP-ULA": pf.ProximalLangevin(step_size=step, scheme="pp_ula", metric=METRIC, bias_check=False),
        "FBULA": pf.ProximalLangevin(step_size=step, scheme="fbula", smoothing=smoothing, bias_check=False),
        "LBMUMLA": bregman(adjusted=False, bias_check=False, **dual),
        "adjusted LBMUMLA": bregman(**dual),
    }


def c(steps: int = 50_000) -> None:
    """4 chains of 50,000 from N(0, I), and 256 of 500 from independent draws of the law itself."""
    rows = Rows(
        "c", {"steps": steps, "window": [-8, 8], "alpha": ALPHA},
        ("n", "start", "step", "method", "mean_error", "sd_error", "share_error", "acceptance", "seconds"),
    )  # fmt: skip
    for n in (1, 2, 3, 4, 5) if FULL else (1, 2, 5):
        mean, covariance, gold_shares, drawn = exact(n)
        sd = np.sqrt(np.diag(covariance))
        smooth = pf.Target.from_log_density(gaussian_mixture, np.zeros(2), data=gaussian_data(FAR, n))
        target = pf.Target.composite(smooth, L1(np.full(2, ALPHA)))
        starts = {"N(0, I)": np.random.default_rng(0).normal(size=(4, 2)), "the law": drawn}

        def compute(method, start, target=target, mean=mean, sd=sd, gold=gold_shares, n=n, starts=starts):
            length = steps if start == "N(0, I)" else 500
            try:
                draws, stats = run(target, method, start=starts[start], steps=length, thin=5)
            except PushforwardError as refusal:
                return {"refused": str(refusal)}
            x = draws.reshape(-1, 2)
            found = shares(x, n)
            return stats | {"mean_error": float((np.abs(x.mean(0) - mean) / sd).max()),
                            "sd_error": float(np.abs(x.std(0) / sd - 1).max()),
                            "share_error": float(np.abs(found - gold).max()), "shares": found.round(4).tolist(),
                            "exact_shares": gold.round(4).tolist(), "exact_mean": mean.tolist(),
                            "mean": x.mean(0).tolist()}  # fmt: skip

        grid = itertools.product((0.25, 0.5, 1.0), (0.05, 0.15, 0.25)) if FULL else ((0.25, 0.05), (0.25, 0.25))
        for smoothing, step in grid:
            for name, method in proximal(step, smoothing).items():
                for start in starts:
                    key = {"n": n, "start": start, "step": step, "smoothing": smoothing, "method": name}
                    rows.add(key, lambda method=method, start=start, compute=compute: compute(method, start))
    _, axes, save = rows.figure((10, 3.4), 1, 3, sharey=True)
    for axis, n in zip(axes[0], (1, 2, 5), strict=True):
        for i, (start, step) in enumerate((s, g) for s in ("N(0, I)", "the law") for g in (0.05, 0.25)):
            chosen = [r for r in rows.rows if (r["n"], r["start"], r["step"]) == (n, start, step)]
            chosen = [r for r in chosen if "mean_error" in r]
            axis.plot(
                [r["method"] for r in chosen],
                [min(r["mean_error"], 10.0) for r in chosen],
                "os^v"[i],
                label=f"{start}, γ = {step}",
            )
        axis.set(title=f"n = {n}", yscale="log")
        axis.tick_params(axis="x", rotation=60, labelsize=7)
    axes[0, 0].set_ylabel("error of the mean in sds, at most 10")
    axes[0, 2].legend(fontsize=7)
    save()
