"""Silos as Ray actors, which may lie on other machines, go and come back. Extra: ``pip install pushforward[ray]``.

An actor loads the data of its silo when it starts and keeps them; Ray starts it anew after a death, and its step, pure
in what it is sent, gives what the dead one would have given. Calls are never repeated by Ray itself (that would run a
step twice and count it twice in no record): the policy of `federate` decides.
"""

from collections.abc import Mapping
from typing import Any

from ..errors import DistributedError, NotAvailable
from ..validate import check_count
from .silos import MakeStep, to_host

RESTARTS = 1_000_000


class RayActors:
    """One actor per silo. Use it as a context manager; it connects to Ray if nobody has.

    Parameters
    ----------
    make_step
        ``make_step(silo)`` loads the silo's data, where the actor runs, and returns its step.
    num_silos
        Silos 0, 1, …
    options
        Of all actors (``num_cpus``, ``resources``, ``runtime_env``, …), or a list with those of each silo, e.g. with a
        resource that only its own machine has. By default ``num_cpus=0``: fractions of cores held by idle actors can
        starve a cluster in silence.
    init
        Arguments of ``ray.init``, where Ray is not running yet.

    Raises
    ------
    NotAvailable
        Ray is not installed.
    """

    def __init__(
        self,
        make_step: MakeStep,
        num_silos: int,
        *,
        options: Mapping[str, Any] | list[Mapping[str, Any]] | None = None,
        init: Mapping[str, Any] | None = None,
    ) -> None:
        self.num_silos = check_count("num_silos", num_silos)
        try:
            import ray
        except ImportError:
            raise NotAvailable(
                f"RayActors of {num_silos} silos needs Ray, which is not installed: pip install 'pushforward[ray]'."
            ) from None
        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            ray.init(**{"include_dashboard": False, "log_to_driver": False} | dict(init or {}))
        each = options if isinstance(options, list) else [options or {}] * num_silos
        actor = ray.remote(_Silo)
        self.actors = [
            actor.options(**{"num_cpus": 0, "max_restarts": RESTARTS, "max_task_retries": 0} | dict(own)).remote(
                make_step, silo
            )
            for silo, own in enumerate(each)
        ]

    def ask(
        self, sent: dict[int, Any], round: int, seed: int, timeout: float
    ) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
        """See `SiloRunner.ask`; a silo that is late goes on in the background, and its late answer is dropped."""
        errors = self._ray.exceptions
        waiting = {self.actors[silo].step.remote(state, round, seed): silo for silo, state in sent.items()}
        ready, late = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=timeout)
        answers, missing = {}, {}
        for answer in ready:
            silo = waiting[answer]
            try:
                answers[silo] = self._ray.get(answer)
            except errors.RayTaskError as error:
                raise DistributedError(f"The step of silo {silo} failed in round {round}: {error.cause!r}.") from error
            except errors.RayActorError as error:
                missing[silo] = f"its actor is away ({type(error).__name__})"
        for answer in late:
            missing[waiting[answer]] = f"it did not answer within {timeout:g} seconds"
        return answers, missing

    def close(self) -> None:
        """End the actors, and Ray, if it was started here."""
        for actor in self.actors:
            self._ray.kill(actor)
        if self._ours:
            self._ray.shutdown()

    def __enter__(self) -> "RayActors":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Silo:
    """What an actor is."""

    def __init__(self, make_step: MakeStep, silo: int) -> None:
        self._silo, self._step = silo, make_step(silo)

    def step(self, state: dict[str, Any], round: int, seed: int) -> dict[str, Any]:
        return to_host(self._step(state, round, self._silo, seed))
