"""`Simulator`: a prior and a program that simulates data, whose posterior is learned once for all data.

Pairs (θ, x) are simulated, and a conditional denoiser of θ given x is learned by denoising score matching (neural
posterior score estimation, [1]_, [2]_), in coordinates that a normal regression of θ on x gives
(`samplers.diffusion.conditional`): no likelihood is ever evaluated. The posterior of any data is then the
probability-flow ODE of that score, without refitting. Given several independent observations scores are composed
(`samplers.diffusion.composed`, [3]_); for that the network learns the prior too, by leaving out its condition now and
then.

With no likelihood there are no weights: nothing puts right what the network has wrong. `Amortised.calibrate` checks it
on new simulations, by ranks ([4]_).

References
----------
.. [1] T. Geffner, G. Papamakarios, A. Mnih (2023). Compositional score modeling for simulation-based inference. ICML.
.. [2] L. Sharrock et al. (2024). Sequential neural score estimation. ICML. arXiv:2210.04872.
.. [3] J. Linhart et al. (2024). Diffusion posterior sampling for simulation-based inference in tall data settings.
   arXiv:2404.07593.
.. [4] S. Talts et al. (2018). Validating Bayesian inference algorithms with simulation-based calibration.
   arXiv:1804.06788.
"""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..infer.errors import InvalidArgument, NonFinite
from ..infer.validate import check_count, check_fraction, check_positive

if TYPE_CHECKING:
    from ..infer.target import Target
    from .amortised import Amortised

MANY_FAILED = 0.5
BATCH = 1000


class Simulations(NamedTuple):
    """Parameters and data.

    Parameters
    ----------
    u
        Unconstrained parameters, shape (n, d).
    x
        Data as flat vectors, shape (n, k).
    failed
        How many simulations had no finite data, or raised, and were left out.
    """

    u: np.ndarray
    x: np.ndarray
    failed: int


class Simulator:
    """A prior and a program that simulates data.

    Parameters
    ----------
    prior
        A NumPyro model of the parameters without observations, a dict of NumPyro distributions by site, or a `Target`
        whose prior can be drawn from.
    simulate
        ``simulate(key, values) -> data``, with the values by site and an array or a pytree of arrays of fixed shapes,
        written in JAX. Data that are not finite count as a failed simulation.
    host
        Whether ``simulate`` is a plain Python program: it is then called once for each draw with a NumPy generator in
        place of the key, and what it raises counts as a failed simulation too.
    summary
        ``summary(data) -> array``: what the posterior is conditioned on; default the data themselves.

    Raises
    ------
    InvalidArgument
        ``prior`` is none of these, or cannot be drawn from.
    """

    def __init__(self, prior: Any, simulate: Callable, *, host: bool = False, summary: Callable | None = None) -> None:
        if not callable(simulate):
            raise InvalidArgument(f"simulate must be a function of a key and the parameters, got {simulate!r}.")
        self.target: Target = _as_target(prior)
        self.simulate, self.host, self.summary = simulate, host, summary
        self._program: Any = None

    def draw(self, num_simulations: int, *, key: Any = 0) -> Simulations:
        """Simulations from the prior, those that failed left out.

        Raises
        ------
        NonFinite
            All failed.

        Warns
        -----
        RuntimeWarning
            More than half failed: the posterior is that given that a simulation does not fail.
        """
        import jax

        from ..infer.run.plan import read_key
        from ..infer.run.precision import precision

        check_count("num_simulations", num_simulations)
        words, generator = read_key(key)
        with precision(64):
            root = jax.random.wrap_key_data(np.asarray(words, np.uint32), impl=generator)
            u, x = self._on_host(root, num_simulations) if self.host else self._in_jax(root, num_simulations)
        fine = np.isfinite(x).all(1)
        failed = int((~fine).sum())
        if not fine.any():
            raise NonFinite(
                f"simulate gave no finite data in any of {num_simulations:,} simulations; look at what it returns."
            )
        if failed > MANY_FAILED * num_simulations:
            warnings.warn(
                f"{failed:,} of {num_simulations:,} simulations failed and are left out: what is learned is the "
                f"posterior under the prior given that a simulation does not fail.",
                RuntimeWarning,
                stacklevel=2,
            )
        return Simulations(u[fine], x[fine], failed)

    def learn(
        self,
        num_simulations: int = 10_000,
        *,
        simulations: Simulations | None = None,
        key: Any = 0,
        hidden: tuple[int, ...] = (128, 128, 128),
        num_steps: int = 40_000,
        batch_size: int = 256,
        learning_rate: float = 2e-3,
        held_out: float = 0.1,
        rho_max: float = 40.0,
        rho_min: float = 0.01,
    ) -> "Amortised":
        """Learn the posterior of all data.

        Parameters
        ----------
        num_simulations
            That are made; or give ``simulations`` of your own.
        hidden, num_steps, batch_size, learning_rate
            Of the network and its training, see `pushforward.ProbabilityFlow`. A normal regression comes first, by as
            large a network and a third of the steps.
        held_out
            Share of the simulations held out to choose the network's parameters.
        rho_max, rho_min
            Highest noise level in units of the prior's standard deviations; lowest in units of the least standard
            deviation of the regression.

        Raises
        ------
        InvalidArgument
            A setting is out of range, or there are fewer than 100 simulations.
        """
        from .amortised import train

        for name, value in (("num_steps", num_steps), ("batch_size", batch_size)):
            check_count(name, value)
        check_positive("learning_rate", learning_rate)
        check_fraction("held_out", held_out)
        check_positive("rho_min", rho_min)
        if not rho_max > rho_min:
            raise InvalidArgument(f"rho_max must be above rho_min={rho_min:g}, got {rho_max!r}.")
        made = self.draw(num_simulations, key=key) if simulations is None else simulations
        if len(made.u) < 100:
            raise InvalidArgument(f"a posterior is learned from at least 100 simulations, got {len(made.u)}.")
        return train(self, made, key, tuple(hidden), num_steps, batch_size, learning_rate, held_out, (rho_min, rho_max))

    def condition(self, data: Any) -> np.ndarray:
        """Data as the flat vector that a posterior is conditioned on.

        Raises
        ------
        NonFinite
            They are not finite.
        """
        import jax

        data = data if self.summary is None else self.summary(data)
        leaves = [np.ravel(np.asarray(leaf, float)) for leaf in jax.tree.leaves(data)]
        flat = np.concatenate(leaves) if leaves else np.zeros(0)
        if not np.isfinite(flat).all():
            raise NonFinite(f"data have {int((~np.isfinite(flat)).sum())} values that are not finite; leave them out.")
        return flat

    def _in_jax(self, root: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
        import jax
        import jax.numpy as jnp

        if self._program is None:

            def one(target: "Target", key: Any) -> tuple[Any, Any]:
                key_prior, key_data = jax.random.split(key)
                values = target.sample_prior(key_prior)
                data = self.simulate(key_data, values)
                data = data if self.summary is None else self.summary(data)
                flat = jnp.concatenate([jnp.ravel(jnp.asarray(leaf, float)) for leaf in jax.tree.leaves(data)])
                return target.unconstrain(values), flat

            self._program = jax.jit(jax.vmap(one, in_axes=(None, 0)))
        keys = jax.random.split(root, n)
        size = min(BATCH, n)
        parts = []
        for a in range(0, n, size):
            begin = min(a, n - size)  # the last batch begins earlier instead of being shorter: one program for all
            out = self._program(self.target, keys[begin : begin + size])
            parts.append([np.asarray(x)[a - begin :] for x in out])
        u, x = (np.concatenate(column) for column in zip(*parts, strict=True))
        return u, x

    def _on_host(self, root: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
        import jax

        from ..infer import evaluate

        prior = evaluate.over_draws(evaluate.prior_draw, self.target, np.zeros(n), key=root)
        u = np.asarray(evaluate.over_draws(evaluate.unconstrain_draw, self.target, prior))
        rng = np.random.default_rng(np.asarray(jax.random.key_data(root)).ravel())
        rows: list[np.ndarray | None] = []
        for i in range(n):
            try:
                data = self.simulate(rng, {name: np.asarray(value[i]) for name, value in prior.items()})
                data = data if self.summary is None else self.summary(data)
                rows.append(np.concatenate([np.ravel(np.asarray(leaf, float)) for leaf in jax.tree.leaves(data)]))
            except Exception:  # counted: the program is the user's, and may fail in any way
                rows.append(None)
        sizes = {len(row) for row in rows if row is not None}
        if len(sizes) > 1:
            raise InvalidArgument(
                f"simulate must give data of one shape, got {sorted(sizes)[:5]} numbers; give a summary."
            )
        blank = np.full(max(sizes, default=1), np.nan)
        return u, np.stack([blank if row is None else row for row in rows])


def _as_target(prior: Any) -> "Target":
    """The prior as a target."""
    from ..infer.target import Target

    if isinstance(prior, dict):
        given = dict(prior)

        def model() -> None:
            import numpyro

            for name, distribution in given.items():
                numpyro.sample(name, distribution)

        prior = model
    if not isinstance(prior, Target):
        if not callable(prior):
            raise InvalidArgument(
                f"prior must be a NumPyro model, a dict of distributions by site or a Target, got {prior!r}."
            )
        prior = Target.from_numpyro(prior)
    if not prior.has("proper_prior"):
        raise InvalidArgument(
            f"prior must be one that can be drawn from, and {prior.name or type(prior).__name__} cannot; build it from "
            f"a NumPyro model without ImproperUniform."
        )
    return prior
