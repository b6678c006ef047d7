"""Deconvolution under total variation, 512 × 512, after Lau, Liu & Pock (2023): ``d`` of `benchmarks.papers.langevin`.

Values 0–255, a 5 × 5 uniform blur (periodic here, so that Fourier transforms invert it) and noise of sd 0.75; isotropic
total variation of weight 0.3; models with blurs of 5, 6 and 7. The Langevin primal–dual algorithm has their steps
τ = 0.95/√8, σ = 0.95/(8τ), 1,000 iterations from 0 and no burn-in; further runs begin at the data and leave out 500
iterations, one of them with σ/τ = 20. PSGLA has half the step that the curvature allows. Two of their priors are not
convex: anisotropic total variation less a Moreau envelope of ‖Dx‖₁ (MC-TV), and total variation less its own envelope
(ME-TV), of parameter 15; the concave part enters as an explicit step before the smooth part's proximal operator. Means
and standard deviations run along: no draw is kept. ``log_evidence`` is the truncated harmonic mean by
which the paper chooses models, of the log density after every tenth iteration: of the 80 % of largest density, whose
volume is taken to be the same for all. Priors keep their constants to themselves, so that it compares blurs alone, and
its own error is tens of nats in so many dimensions. All in 32 bits. The image is scikit-image's camera where that is
installed or the file ``PUSHFORWARD_IMAGE`` (.npy) has it, else made of shapes here.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pushforward as pf
from pushforward.infer.geometry import TotalVariation
from pushforward.infer.geometry.tv import differences, differences_transpose

from .langevin_common import Rows

WEIGHT, NOISE, STEPS, LOOK = 0.3, 0.75, 1000, 10
HPD = 0.8
CONCAVE = 15.0
"""Of the envelopes that MC-TV and ME-TV subtract."""
TAU = 0.95 / np.sqrt(8)


def picture() -> tuple[str, np.ndarray]:
    """A name and an image with values 0–255."""
    if path := os.environ.get("PUSHFORWARD_IMAGE"):
        return "camera", np.load(path).astype(float)
    try:
        from skimage.data import camera
    except ImportError:
        row, column = np.mgrid[:512, :512] / 512
        disc = ((row - 0.4) ** 2 + (column - 0.35) ** 2 < 0.06) * 120.0
        bars = ((column > 0.6) & (np.floor(row * 24) % 2 == 0)) * 90.0
        return "shapes", 60 * row + disc + bars + 20.0
    return "camera", camera().astype(float)


def response(shape: tuple[int, ...], size: int) -> np.ndarray:
    """The blur's Fourier transform."""
    kernel = np.zeros(shape)
    kernel[:size, :size] = 1 / size**2
    return np.fft.rfft2(np.roll(kernel, (-(size // 2), -(size // 2)), (0, 1)))


def snr(truth: np.ndarray, estimate: Any) -> float:
    """In decibels."""
    return float(20 * np.log10(np.linalg.norm(truth) / np.linalg.norm(np.asarray(estimate, float) - truth)))


def envelope(prior: str, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """What a prior subtracts from total variation of weight one, and its gradient."""
    inner = TotalVariation(1.0, shape, tolerance=1e-4, max_steps=10)

    def huber(x):
        size = jnp.abs(differences(x.reshape(shape)))
        return jnp.sum(jnp.where(size <= CONCAVE, size**2 / (2 * CONCAVE), size - CONCAVE / 2))

    @jax.custom_jvp
    def of_itself(x):
        near = inner.prox(x, CONCAVE)
        return inner.value(near) + jnp.sum((x - near) ** 2) / (2 * CONCAVE)

    @of_itself.defjvp
    def _(x, v):  # of an envelope it is known, and the proximal operator's loop has none
        near = inner.prox(x[0], CONCAVE)
        return of_itself(x[0]), jnp.sum((x[0] - near) * v[0]) / CONCAVE

    if prior == "MC-TV":
        return huber, lambda x: differences_transpose(
            jnp.clip(differences(x.reshape(shape)) / CONCAVE, -1.0, 1.0)
        ).ravel()
    return of_itself, lambda x: (x - inner.prox(x, CONCAVE)) / CONCAVE


def problem(data: np.ndarray, size: int, prior: str = "TV") -> tuple[Any, Any]:
    """The target of a blur of that size, and the proximal operator of its smooth part."""
    shape = data.shape
    blur = jnp.asarray(response(shape, size), jnp.complex64)
    observed = jnp.asarray(data, jnp.float32)
    power, back = jnp.abs(blur) ** 2, jnp.conj(blur) * jnp.fft.rfft2(observed)

    def log_likelihood(x):
        gap = jnp.fft.irfft2(jnp.fft.rfft2(x.reshape(shape)) * blur, shape) - observed
        return -0.5 * jnp.sum(gap**2) / NOISE**2

    def smooth_prox(v, step):
        share = step / NOISE**2
        return jnp.fft.irfft2((jnp.fft.rfft2(v.reshape(shape)) + share * back) / (1 + share * power), shape).ravel()

    term = TotalVariation(WEIGHT, shape, isotropic=prior != "MC-TV", tolerance=1e-4, max_steps=10)
    if prior == "TV":
        return pf.Target.composite(log_likelihood, term, np.zeros(data.size)), smooth_prox
    value, slope = envelope(prior, shape)

    def smooth(x):
        return log_likelihood(x) + WEIGHT * value(x)

    def ascend_and_prox(v, step):
        return smooth_prox(v + step * WEIGHT * slope(v), step)

    return pf.Target.composite(smooth, term, np.zeros(data.size)), ascend_and_prox


def maximum(smooth_prox: Any, shape: tuple[int, ...], steps: int = 500) -> np.ndarray:
    """The mode, by the primal–dual algorithm without noise."""

    @jax.jit
    def run():
        def body(_, state):
            x, u = state
            new = smooth_prox(x - TAU * differences_transpose(u).ravel(), TAU)
            u = u + 0.95 / (8 * TAU) * differences((2 * new - x).reshape(shape))
            return new, u / jnp.maximum(1, jnp.sqrt(jnp.sum(u**2, 0)) / WEIGHT)

        begin = jnp.zeros(np.prod(shape), jnp.float32), jnp.zeros((2, *shape), jnp.float32)
        return jax.lax.fori_loop(0, steps, body, begin)[0]

    return np.asarray(run()).reshape(shape)


def harmonic_mean(log_densities: np.ndarray) -> float:
    """Log evidence less the log volume of the set of largest density: −log of the mean of 1_A / π over draws."""
    inside = log_densities[log_densities >= np.quantile(log_densities, 1 - HPD)]
    least = inside.min()
    return float(least - np.log(np.sum(np.exp(least - inside)) / len(log_densities)))


def moments(target: Any, method: Any, start: np.ndarray, burn: int, steps: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and standard deviation of a run after ``burn`` iterations, each seen once and forgotten; its evidence."""
    log_density = jax.jit(target.log_density)
    algorithm = pf.as_sampling_algorithm(method, target)

    @jax.jit
    def advance(carry, key):
        def body(carry, t):
            state, count, mean, square = carry
            state, _ = algorithm.step(jax.random.fold_in(key, t), state)
            x = method.draw(state)
            count = count + 1
            away = x - mean
            mean = mean + away / count
            return (state, count, mean, square + away * (x - mean)), None

        return jax.lax.scan(body, carry, jnp.arange(LOOK))[0]

    state = algorithm.init(jnp.asarray(start.ravel(), jnp.float32))
    nothing = jnp.zeros(()), jnp.zeros(start.size), jnp.zeros(start.size)
    carry = (state, *nothing)
    begun, seen = time.perf_counter(), []
    for look in range((burn + steps) // LOOK):
        if look == burn // LOOK:
            carry, seen = (carry[0], *nothing), []
        carry = advance(carry, jax.random.fold_in(jax.random.key(0), look))
        seen.append(float(log_density(method.draw(carry[0]))))
        if look % 25 == 24:
            print(f"   {LOOK * (look + 1)} iterations, {time.perf_counter() - begun:.0f} s", flush=True)
    _, count, mean, square = carry
    sd = np.sqrt(np.asarray(square) / (float(count) - 1)).reshape(start.shape)
    return np.asarray(mean).reshape(start.shape), sd, harmonic_mean(np.asarray(seen))


def d(steps: int = STEPS) -> None:
    """Rows of SNR, and a figure of the data, the mode, the posterior mean and sd."""
    name, truth = picture()
    rng = np.random.default_rng(0)
    blurred = np.fft.irfft2(np.fft.rfft2(truth) * response(truth.shape, 5), truth.shape)
    data = blurred + NOISE * rng.normal(size=truth.shape)
    rows = Rows(
        "d", {"image": name, "shape": truth.shape, "snr_of_data": snr(truth, data), "steps": steps},
        ("method", "blur", "snr", "gain", "psnr", "median_sd", "log_evidence", "seconds"),
    )  # fmt: skip
    kept = Path(tempfile.gettempdir()) / "pushforward_langevin_d.npz"
    images = (
        dict(np.load(kept)) if kept.exists() else {"truth": truth.astype(np.uint8), "data": data.astype(np.float16)}
    )

    def add(method, blur, find):
        def compute():
            mean, sd, log_evidence = find()
            if blur == 5:
                images[f"{method}: mean"] = mean.astype(np.float16)
                if sd is not None:
                    images[f"{method}: sd"] = sd.astype(np.float16)
                np.savez_compressed(kept, **images)
            found = snr(truth, mean)
            mse = float(np.mean((mean - truth) ** 2))
            return {"snr": found, "gain": found - snr(truth, data), "mse": mse, "psnr": 10 * np.log10(255**2 / mse),
                    "median_sd": None if sd is None else float(np.median(sd)),
                    "log_evidence": log_evidence}  # fmt: skip

        rows.add({"method": method, "blur": blur}, compute)

    authors = 0.95 / (8 * TAU**2)
    small = np.sqrt(0.95 / (8 * 20))
    zero = np.zeros_like(truth)
    for blur in (5, 6, 7):
        target, smooth_prox = problem(data, blur)
        add("mode", blur, lambda prox=smooth_prox: (maximum(prox, truth.shape), None, None))
        ulpda = pf.PrimalDualLangevin(step_size=TAU, ratio=authors, smooth_prox=smooth_prox, bias_check=False)
        add("ULPDA", blur, lambda t=target, m=ulpda: moments(t, m, zero, 0, steps))
    for prior in ("MC-TV", "ME-TV"):
        for blur in (5, 6, 7):
            target, smooth_prox = problem(data, blur, prior)
            ulpda = pf.PrimalDualLangevin(step_size=TAU, ratio=authors, smooth_prox=smooth_prox, bias_check=False)
            add(f"ULPDA, {prior}", blur, lambda t=target, m=ulpda: moments(t, m, zero, 0, steps))
    target, smooth_prox = problem(data, 5)
    ulpda = pf.PrimalDualLangevin(step_size=TAU, ratio=authors, smooth_prox=smooth_prox, bias_check=False)
    add("ULPDA, burn-in", 5, lambda m=ulpda: moments(target, m, data, steps // 2, steps))
    ulpda = pf.PrimalDualLangevin(step_size=float(small), ratio=20.0, smooth_prox=smooth_prox, bias_check=False)
    add("ULPDA, ratio 20", 5, lambda m=ulpda: moments(target, m, data, steps // 2, steps))
    psgla = pf.ProximalLangevin(step_size=0.5 * NOISE**2, bias_check=False)
    add("PSGLA", 5, lambda: moments(target, psgla, data, steps // 2, steps))
    picture_of(rows, images, data, truth)


def picture_of(rows: Rows, images: dict[str, Any], data: np.ndarray, truth: np.ndarray) -> None:
    """The upper row shows images, the lower one the standard deviations of two methods."""
    _, axes, save = rows.figure((12, 8), 2, 3)
    shown = {f"data, SNR {snr(truth, data):.1f} dB": data}
    for title, name in (("mode", "mode: mean"), ("ULPDA, mean", "ULPDA, burn-in: mean")):
        shown[f"{title}, {snr(truth, images[name]):.1f} dB"] = images[name]
    sds = {f"sd, {name}": images[f"{name}: sd"] for name in ("ULPDA", "ULPDA, burn-in", "PSGLA")}
    for axis, (title, image) in zip(axes.flat, (shown | sds).items(), strict=False):
        image = np.asarray(image, float)
        limits = {"vmax": np.quantile(image, 0.99)} if title in sds else {"vmin": 0, "vmax": 255}
        drawn = axis.imshow(image, cmap="magma" if title in sds else "gray", **limits)
        axis.set(title=title, xticks=[], yticks=[])
        if title in sds:
            axis.figure.colorbar(drawn, ax=axis, shrink=0.7)
    save()
