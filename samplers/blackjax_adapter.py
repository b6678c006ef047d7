"""`as_sampling_algorithm`: a method as a BlackJAX ``SamplingAlgorithm``, for loops of the user's own."""

from typing import Any

import jax
import jax.numpy as jnp

from ..infer.errors import InvalidArgument, NotAvailable
from ..infer.method import AbstractMethod, Budget
from ..infer.run.fit import check_method
from ..infer.run.start import Warm
from ..infer.target import Target


def as_sampling_algorithm(method: AbstractMethod, target: Target, *, learned: dict[str, Any] | None = None) -> Any:
    """A method of kind chains as BlackJAX's pair of pure functions, for ``blackjax.util.run_inference_algorithm``.

    There is no warm-up: step size and metric are the method's own hyper-parameters, or those in ``learned``. A state is
    the method's; ``method.draw(state)`` is its point u, and ``target.constrain`` names it::

        algorithm = pf.as_sampling_algorithm(pf.NUTS(step_size=0.5), target)
        _, u = run_inference_algorithm(
            key, algorithm, 1000, initial_position=u0, transform=lambda state, info: method.draw(state)
        )

    Parameters
    ----------
    method
        E.g. ``NUTS(step_size=0.5)``.
    target
        Its log density is what is sampled; u of shape (d,) is the position.
    learned
        Step size, metric, … of one chain by name, as a warm-up learns them.

    Returns
    -------
    blackjax.base.SamplingAlgorithm
        ``init(position, rng_key=None)`` and ``step(rng_key, state) -> (state, info)``. The precision is that of the
        scope in which they are called.

    Raises
    ------
    NotAvailable
        The method is not of kind chains.
    InvalidArgument, UnsupportedTarget
        ``method`` or ``target`` is not one, they do not suit, or a position has another shape than (d,).
    """
    from blackjax.base import SamplingAlgorithm

    method = check_method(method, target)
    if method.kind != "chains":
        raise NotAvailable(
            f"as_sampling_algorithm needs a method of kind 'chains', and {type(method).__name__} is of kind "
            f"{method.kind!r}; use fit(target, {type(method).__name__}())."
        )
    sampler = method.stages(Budget(num_warmup=0, num_samples=1))[-1].method

    def init(position: Any, rng_key: Any = None) -> Any:
        u = jnp.asarray(position, float)
        if u.shape != (target.dim,):
            raise InvalidArgument(
                f"position has shape {u.shape}; it is the unconstrained u of shape ({target.dim},), see "
                f"target.unconstrain."
            )
        key = jax.random.key(0) if rng_key is None else rng_key
        return sampler.init(key, target, u if learned is None else Warm(u, learned))

    def step(rng_key: Any, state: Any) -> tuple[Any, Any]:
        return sampler.step(rng_key, state, target, jnp.zeros((), jnp.int32))

    return SamplingAlgorithm(init, step)
