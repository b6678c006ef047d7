"""Split Gibbs as a server and silos that each run where their data are; see `pushforward.distributed.federate`.

The arithmetic of `SplitGibbs` in messages: a silo draws z_i given θ, the server draws θ given all z_i. A silo that does
not answer may be waited for, or keep its last z_i, which is a valid partial scan of the Gibbs sampler as long as its
absence does not depend on the state. Averaging over those that answer would change the target, and is not offered.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...infer.run.precision import precision
from ...infer.target import Target
from ...infer.validate import check_count, check_positive
from .federated import mala


class SplitGibbsServer:
    """θ | z ~ N(z̄, ρ²/n I).

    Parameters
    ----------
    dim
        Dimension of the unconstrained parameter.
    num_silos
        n.
    rho
        ρ > 0: how far silos' parameters stray from the server's, a standard deviation.
    """

    def __init__(self, dim: int, num_silos: int, rho: float) -> None:
        self.dim, self.num_silos = check_count("dim", dim), check_count("num_silos", num_silos)
        check_positive("rho", rho)
        self.rho = rho

    def init(self, seed: int) -> dict[str, Any]:
        """θ = 0 and z = 0."""
        del seed
        return {"theta": np.zeros(self.dim), "z": np.zeros((self.num_silos, self.dim))}

    def send(self, state: dict[str, Any], silo: int) -> dict[str, Any]:
        """θ, and the silo's own last z_i, from which its chain goes on."""
        return {"theta": state["theta"], "z": state["z"][silo]}

    def receive(
        self, state: dict[str, Any], round: int, seed: int, messages: dict[int, dict[str, Any]]
    ) -> dict[str, Any]:
        """The server's draw."""
        del state
        z = np.stack([np.asarray(messages[silo]["z"]) for silo in range(self.num_silos)])
        with precision(64):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), round), self.num_silos)
            noise = np.asarray(jax.random.normal(key, (self.dim,)))
        return {"theta": z.mean(0) + self.rho / np.sqrt(self.num_silos) * noise, "z": z}

    def draw(self, state: dict[str, Any]) -> dict[str, Any]:
        """θ."""
        return {"theta": state["theta"]}


def split_gibbs_step(
    load: Callable[[int], Target], num_silos: int, rho: float, silo: int, *, num_inner: int = 5
) -> Callable[[Any, int, int, int], dict[str, Any]]:
    """A silo's step: MALA on f_i(z) + ‖z − θ‖²/(2ρ²); ``functools.partial(split_gibbs_step, load, n, rho)`` makes them.

    Parameters
    ----------
    load
        ``load(silo)``: a target with the whole prior and this silo's observations, e.g. of `Target.from_factors`.
    num_silos, rho
        As the server has them.
    silo
        Which silo this is.
    num_inner
        Steps of MALA in a round.
    """
    target, tie = load(silo), 1 / rho**2

    @jax.jit
    def draw(target: Any, key: Any, theta: Any, z: Any) -> Any:
        def potential(z: Any) -> Any:
            share = target.log_density(z) + (1 / num_silos - 1) * target.log_prior(z)
            return -share + 0.5 * tie * jnp.sum((z - theta) ** 2)

        # A metric that depends on θ, sent and not stored, and not on z leaves the conditional law as it is.
        values, vectors = jnp.linalg.eigh(jax.hessian(potential)(theta))
        factor = jnp.linalg.cholesky((vectors * jnp.maximum(values, tie)) @ vectors.T)
        moves, tests = jax.random.split(key)
        normals = jax.random.normal(moves, (num_inner, z.shape[0]), z.dtype)
        return mala(potential, z, factor, normals, jax.random.uniform(tests, (num_inner,), z.dtype))[0]

    def step(sent: Any, round: int, silo: int, seed: int) -> dict[str, Any]:
        with precision(64):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), round), silo)
            return {"z": draw(target, key, jnp.asarray(sent["theta"]), jnp.asarray(sent["z"]))}

    return step
