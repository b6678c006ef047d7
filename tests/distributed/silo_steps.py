"""A federated Gibbs sampler with a closed form, in NumPy: what spawned silos run."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

SIZES = np.array([5, 20, 3])
RHO = 4.0


def data(silo: int) -> np.ndarray:
    """Unit-variance observations of a common mean, of this silo."""
    return np.random.default_rng(silo).normal(silo - 1.0, 1.0, SIZES[silo])


def make_step(silo: int) -> Any:
    """z_i | x ~ N((Σy + ρ x) / (n + ρ), 1 / (n + ρ))."""
    y = data(silo)

    def step(state: dict, round: int, silo: int, seed: int) -> dict:
        precision = len(y) + RHO
        noise = np.random.default_rng([seed, round, silo]).standard_normal()
        return {"z": (y.sum() + RHO * state["x"]) / precision + noise / np.sqrt(precision)}

    return step


class Server:
    """x | z ~ N(ρ Σz / (1 + nρ), 1 / (1 + nρ)), for a standard normal prior."""

    def init(self, seed: int) -> dict:
        return {"x": np.zeros(())}

    def send(self, state: dict, silo: int) -> dict:
        return state

    def receive(self, state: dict, round: int, seed: int, messages: dict) -> dict:
        assert list(messages) == [0, 1, 2]
        precision = 1 + len(messages) * RHO
        noise = np.random.default_rng([seed, round, 10**6]).standard_normal()
        return {"x": RHO * sum(m["z"] for m in messages.values()) / precision + noise / np.sqrt(precision)}

    def draw(self, state: dict) -> dict:
        return state


def exact() -> tuple[float, float]:
    """Mean and variance of x: each silo's likelihood of x has variance 1/n + 1/ρ."""
    weights = 1 / (1 / SIZES + 1 / RHO)
    precision = 1 + weights.sum()
    return float(sum(w * data(i).mean() for i, w in enumerate(weights)) / precision), 1 / precision


def dying_step(folder: str, silo: int) -> Any:
    """Silo 1 dies in round 7, the first time that it gets there."""
    step, mark = make_step(silo), Path(folder) / "died"

    def dies(state: dict, round: int, silo: int, seed: int) -> dict:
        if (round, silo) == (7, 1) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return step(state, round, silo, seed)

    return dies


def late_step(silo: int) -> Any:
    """Silo 1 sleeps in round 7 and after, as often as it is asked."""
    step = make_step(silo)

    def late(state: dict, round: int, silo: int, seed: int) -> dict:
        if round == 7 and silo == 1:
            time.sleep(60)
        return step(state, round, silo, seed)

    return late


def failing_step(silo: int) -> Any:
    step = make_step(silo)

    def fails(state: dict, round: int, silo: int, seed: int) -> dict:
        if (round, silo) == (3, 2):
            raise ZeroDivisionError("no rows")
        return step(state, round, silo, seed)

    return fails
