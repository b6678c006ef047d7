"""What `diagnose` says of a cloud of Stein particles, from its last state."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ...infer.diagnostics.discrepancies.stein import squared_ksd

if TYPE_CHECKING:
    from .common import AbstractStein, SteinState

LOOKED_AT = 1000
SLOW = 0.05
CLOSE = 1e-6
WIDE = 1.5
INVERSE = 1e-4
TOO_WIDE = 10
FEW, SOME = 2, 5
FLOORED = 64.0
"""|u| of a value at the floor of 32 bits (1e-30) is 69, less what the bijector of a simplex takes off."""


def remarks(
    method: "AbstractStein", state: "SteinState", clouds: list[np.ndarray], u: list[np.ndarray]
) -> list[dict[str, Any]]:
    """Findings as keyword arguments; ``clouds`` are in the coordinates of the kernel, one array per run."""
    out = []
    ratio = float(np.max(np.asarray(state.speed) / np.maximum(np.asarray(state.first, float), 1e-300)))
    if method.batch_size is None:
        out.append(_speed(ratio, method.num_steps))
    h = np.asarray(state.bandwidth)
    near = [geometry(cloud[:LOOKED_AT], float(one)) for cloud, one in zip(clouds, h, strict=True)]
    n, d = clouds[0].shape
    if n == 1:
        text = "One particle is a mode (of the density in the coordinates of the steps), not a sample; use more."
        return [*out, {"level": "warning", "name": "one particle", "message": text, "value": 1.0}]
    out.append(_spread(np.atleast_2d(np.asarray(state.spread)), d))
    gap, rank = min(g for g, _, _ in near), min(r for _, r, _ in near)
    if gap < CLOSE:
        text = (
            f"The two closest particles are {gap:.1g} kernel widths apart (threshold {CLOSE:g}): they have merged and "
            f"count as one. Use kernel='imq' or a smaller bandwidth."
        )
        out.append({"level": "warning", "name": "merged particles", "message": text, "value": gap, "threshold": CLOSE})
    out += _bandwidth(method, h, [median for _, _, median in near])
    seen = min(n, LOOKED_AT)
    text = f"The Gram matrix of {seen:,} particles has effective rank {rank:.1f}; the closest two are {gap:.2g} kernel "
    text += "widths apart."
    out.append({"level": "ok", "name": "effective rank", "message": text, "value": rank})
    out.append(_size(n, d))
    floored = float(np.mean([np.any(np.abs(x) > FLOORED, axis=1).mean() for x in u]))
    if floored > 0:
        text = (
            f"{100 * floored:.0f} % of the particles have a value within 1e-30 of its bound, where 32 bits end; use "
            f"precision=64."
        )
        out.append({"level": "note", "name": "floor", "message": text, "value": floored})
    return out


def geometry(x: np.ndarray, h: float) -> tuple[float, float, float]:
    """Smallest distance in units of √h; effective rank (tr K)²/‖K‖² of the Gram matrix (RBF); median r² over h."""
    x = x - x.mean(axis=0)
    norm = np.sum(x**2, axis=1)
    squared = np.maximum(norm[:, None] + norm - 2 * x @ x.T, 0) / h
    gram, median = np.exp(-squared), float(np.median(squared))
    np.fill_diagonal(squared, np.inf)
    i, j = np.unravel_index(np.argmin(squared), squared.shape)  # the product has lost the digits of close pairs
    gap = float(np.linalg.norm(x[i] - x[j]) / np.sqrt(h)) if len(x) > 1 else np.inf
    return gap, float(np.trace(gram) ** 2 / np.sum(gram**2)), median


def _bandwidth(method: "AbstractStein", h: np.ndarray, medians: list[float]) -> list[dict[str, Any]]:
    """An RBF much wider than the cloud, whose particles may merge; a bandwidth of 1 in place of a median of 0."""
    least = min(medians)
    if method.bandwidth is None and least <= CLOSE**2:
        text = (
            f"The median distance of the particles is {least:.1g}, so that the bandwidth is {float(h.min()):.3g} in "
            f"its place: most of them are in one point. Start them further apart, or lower learning_rate."
        )
        return [{"level": "warning", "name": "bandwidth", "message": text, "value": float(h.min())}]
    if method.bandwidth is not None and method.kernel == "rbf" and least * TOO_WIDE < 1:
        text = (
            f"bandwidth={float(h.min()):.3g} is {1 / max(least, 1e-300):.2g} times the median squared distance "
            f"(threshold {TOO_WIDE}): particles of so wide an RBF may merge. Leave bandwidth out, or use kernel='imq'."
        )
        entry = {"level": "warning", "name": "bandwidth", "message": text, "value": float(h.min())}
        return [entry | {"threshold": float(TOO_WIDE)}]
    return []


def _speed(ratio: float, steps: int) -> dict[str, Any]:
    text = f"The velocity fell to {100 * ratio:.2g} % of its first value (threshold {100 * SLOW:.0f} %)"
    entry = {"name": "stationarity", "value": ratio, "threshold": SLOW}
    if ratio > SLOW:
        return entry | {"level": "warning", "message": f"{text}: the particles still move. Raise num_steps={steps}."}
    return entry | {"level": "ok", "message": f"{text}."}


def _spread(spread: np.ndarray, d: int) -> dict[str, Any]:
    """Of a Gaussian the ratios of variances; a collapsed cloud, which `_size` tells of, has low ones everywhere."""
    widest = float(np.nanmax(spread))
    run, coordinate = (int(i) for i in np.argwhere(spread == np.nanmax(spread))[0])
    entry = {"name": "width", "value": widest, "threshold": WIDE}
    text = (
        f"By Stein's identity the cloud's variances are at most {widest:.2g} times those of the target (threshold "
        f"{WIDE:g}; of {d} coordinates)"
    )
    if widest <= WIDE:
        return entry | {"level": "ok", "message": f"{text}."}
    where = f"coordinate {coordinate} of the steps" + (f" of cloud {run}" if len(spread) > 1 else "")
    text += f", in {where}: the particles have not come together there. Raise num_steps, or run SVGD in the "
    text += "coordinates of a Gaussian fit: SVGD(precondition=pf.fit(target, pf.Laplace()))."
    return entry | {"level": "warning", "message": text}


def discrepancy(y: Any, score: Any, h: Any) -> dict[str, Any]:
    """KSD² in the coordinates of the steps, where it is the mirrored one, beside that of independent draws."""
    n, d = y.shape
    ksd = float(squared_ksd(y, score, h))
    floor = float(np.sum(np.asarray(score) ** 2) / n + d / np.asarray(h)) / n
    text = f"KSD² of {n:,} particles, in the coordinates of the steps, is {ksd:.2g}; of as many independent draws it "
    text += f"would be about {floor:.2g}"
    entry = {"name": "discrepancy", "value": ksd, "threshold": floor}
    if ksd <= floor:
        return entry | {"level": "ok", "message": f"{text}."}
    return entry | {"level": "note", "message": f"{text}: the cloud is not where it should be yet. Raise num_steps."}


def truncated(spectrum: float, kept: int, n: int, ratio: float) -> dict[str, Any]:
    """What a truncated spectrum leaves undone."""
    text = (
        f"spectrum={spectrum:g} keeps {kept} of {n} eigenpairs, so that where the particles end depends on where they "
        f"began; the velocity of all of them is {ratio:.2g} of the root mean square score. Use spectrum=1 for a limit "
        f"that does not."
    )
    return {"level": "note", "name": "truncated spectrum", "message": text, "value": ratio}


def raised(share: float) -> dict[str, Any]:
    """A metric that needed more damping than asked for."""
    text = (
        f"The metric was not positive definite at up to {100 * share:.0f} % of the particles, where its damping was "
        f"raised; raise damping, or take metric='hessian' or 'fisher'."
    )
    return {"level": "note", "name": "damping raised", "message": text, "value": share}


def few_bits(name: str) -> dict[str, Any]:
    """32 bits on a simplex."""
    text = (
        f"The probabilities of {name!r} are held in 32 bits, which end at 1e-38 and are floored at 1e-30; sparse ones "
        f"are smaller: use precision=64."
    )
    return {"level": "note", "name": "32 bits", "message": text, "value": 1e-30}


def inverse(residual: float) -> dict[str, Any]:
    """Of a mirror map inverted by Newton's method: the largest decrement left."""
    text = f"Newton's inverse of the mirror map leaves a decrement of at most {residual:.1g} (threshold {INVERSE:g})"
    entry = {"name": "mirror inverse", "value": residual, "threshold": INVERSE}
    if residual <= INVERSE:
        return entry | {"level": "ok", "message": f"{text}."}
    return entry | {
        "level": "warning",
        "message": f"{text}: particles are not where they are said to be. Lower the "
        f"learning_rate, use precision=64, or SVGD(), through the bijector.",
    }


def _size(n: int, d: int) -> dict[str, Any]:
    """Variances of converged clouds on N(0, I): 0.57 at n = d, 0.88 at n = 4 d (kernel of median width)."""
    entry = {"name": "variance collapse", "value": n / d, "threshold": float(FEW)}
    if n >= SOME * d:
        return entry | {
            "level": "ok",
            "message": f"{n:,} particles are enough for d = {d} (threshold {SOME} d).",
        }
    text = (
        f"{n:,} particles in {d} dimensions: variances come out too small (by about 40 % where there are as many "
        f"particles as dimensions, by 10 % with four times as many). Use num_particles={SOME * d} or more."
    )
    return entry | {"level": "warning" if n < FEW * d else "note", "message": text}
