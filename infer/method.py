"""`AbstractMethod`: hyper-parameters and a few pure functions; `Stage`: what is compiled once."""

import abc
import dataclasses
import inspect
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .errors import NotAvailable
from .target import Target

Kind = Literal["chains", "particles", "approximation"]


class Budget(NamedTuple):
    """What the user asked of `fit`, as a method's `stages` sees it; ``warm`` if the start brings a step size."""

    num_warmup: int
    num_samples: int
    thin: int = 1
    warm: bool = False


class Stage(NamedTuple):
    """A run of iterations of one method; inside it only compiled steps run, all host work is before it.

    Parameters
    ----------
    name
        Shown by the progress bar, e.g. ``"warm-up"``.
    method
        Whose `step` is iterated.
    num_steps
        Number of iterations.
    keep
        Whether the draws (or, at the end, the result) of this stage are kept.
    """

    name: str
    method: "AbstractMethod"
    num_steps: int
    keep: bool = True


class Needs(NamedTuple):
    """What `pf.methods()` says of a method."""

    method: str
    kind: str
    needs: tuple[str, ...]
    gradients: bool
    draws: str
    density: bool
    evidence: bool
    exact: bool
    source: str


class AbstractMethod(eqx.Module):
    """Frozen hyper-parameters of a sampler or a variational family, and its pure functions.

    A method writes `init`, `step`, and `draw` or `result`; everything else has a default. Concrete classes are final.
    Hyper-parameters stay the Python numbers that the user wrote; those that decide a shape or a loop are static fields.

    Attributes
    ----------
    kind
        ``"chains"`` (chain, draw), ``"particles"`` (a cloud, possibly weighted) or ``"approximation"`` (a density).
    requires
        Structure of the target that the method uses, see `Target.structure`.
    spreads
        Whether a step uses all devices of a mesh, see `infer.distributed`; the chains of others are shared out.
    needs_start
        Whether chains begin at a point of finite density; else none is looked for, and `init` is given zeros.
    takes_start
        Whether ``start=`` means something.
    """

    kind: eqx.AbstractClassVar[Kind]
    requires: ClassVar[tuple[str, ...]] = ()
    gradients: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    evidence: ClassVar[bool] = False
    density: ClassVar[bool] = False
    default_chains: ClassVar[int] = 4
    source: ClassVar[str] = ""
    public: ClassVar[bool] = True
    warning: ClassVar[str] = ""
    spreads: ClassVar[bool] = False
    needs_start: ClassVar[bool] = True
    takes_start: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__[1:]:
            if base is AbstractMethod or not issubclass(base, AbstractMethod):
                continue
            if not inspect.isabstract(base) and not base.__name__.startswith("Abstract"):
                raise TypeError(f"{cls.__name__} extends the concrete method {base.__name__}; methods are final.")

    def default_start(self) -> Any:
        """Where chains begin if the user does not say: None for random points."""

    def reuses(self, other: "AbstractMethod") -> bool:
        """Whether what ``other`` learned (step size, metric) is of the kind that this method uses."""
        return type(self) is type(other)

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """The stages of a run; by default one, of this method, that keeps ``num_samples`` draws."""
        return (Stage("sample", self, budget.num_samples * budget.thin),)

    def arrange(self, target: Target) -> Target:
        """Host work once a run: the target laid out as the other functions are to see it, e.g. in shards."""
        return target

    def enters(self, target: Target) -> Target:
        """Host work before each stage, of the stage's method: the arranged target as it reads it; by default as is."""
        return target

    def prepare(self, key: PRNGKeyArray, target: Target, start: Any) -> "AbstractMethod":
        """Host work before a stage, seeing all chains: the method to run, with what was built as array fields."""
        del key, target, start
        return self

    def settle(self, target: Target) -> "AbstractMethod":
        """Host work after `prepare`, and again where a run goes on: what checkpoints need not, or must not, hold.

        Arrays that lie where the target's data do, say. Default: the method as it is.
        """
        del target
        return self

    def outlook(self) -> str | None:
        """One line on what to expect of the run, shown before its first iteration; of a method that is settled."""
        return None

    def relocate(self, states: Any) -> Any:
        """Host work between stages, from the states of all chains (stacked on the leading axis).

        Returns, for each chain, the index of the chain from whose state it goes on; None (default) if from its own.
        """
        del states

    @abc.abstractmethod
    def init(self, key: PRNGKeyArray, target: Target, start: Any) -> Any:
        """State of one chain.

        ``start`` is the unconstrained point at which the chain begins (a finite one, found by the driver), or the
        chain's state at the end of the previous stage.
        """

    @abc.abstractmethod
    def step(self, key: PRNGKeyArray, state: Any, target: Target, t: Array) -> tuple[Any, Any]:
        """One iteration of one chain: pure; ``t`` counts the stage's iterations and is never batched.

        The info is a NamedTuple of scalars whose names become ArviZ ``sample_stats``; it has ``num_evaluations``, the
        number of log densities and gradients evaluated.
        """

    def done(self, state: Any) -> Bool[Array, ""] | bool:
        """Whether this chain is finished; freezes it, and ends the stage once all are. Default: never."""
        del state
        return False

    def draw(self, state: Any) -> Float[Array, " d"]:
        """The unconstrained point kept of a state (kind ``"chains"``)."""
        raise NotAvailable(f"{type(self).__name__} keeps no draws chain by chain; its kind is {self.kind!r}.")

    def result(self, state: Any, target: Target) -> Any:
        """What is kept at the end, on the host, from the states of all chains (stacked on the leading axis).

        A `Particles` for kind ``"particles"``, an `Approximation` for kind ``"approximation"``.
        """
        del state, target
        raise NotAvailable(f"{type(self).__name__} has no result besides its draws; its kind is {self.kind!r}.")

    def merit(self, infos: Any) -> dict[str, Array]:
        """A few scalars that sum up a chunk's infos (leaves of shape (chain, step)), for the bar and plateau rules."""
        del infos
        return {}

    def alarm(self, infos: Any) -> str | None:
        """A sentence that ends the run as `NonFinite`, from the infos of a chunk; None if all is well."""
        del infos
        return None

    def broken(self, state: Any, target: Target) -> str:
        """At which draw a loss came about that is not finite: a sentence after a blank; "" if unknown."""
        del state, target
        return ""

    def learned(self, state: Any) -> dict[str, Array]:
        """What a chain's state has learned (step size, metric, …), by name; recorded with the result."""
        del state
        return {}

    def remarks(self, state: Any, target: Target, result: Any) -> list[dict[str, Any]]:
        """What `Posterior.diagnose` says of a finished run beyond its draws, on the host, from all chains' states.

        ``result`` is what `result` made of them, None for kind ``"chains"``. Each entry is the keyword arguments of a
        `Finding`: level, name, message, and what else there is.
        """
        del state, target, result
        return []

    @classmethod
    def about(cls) -> Needs:
        """The facts that `pf.methods()` lists."""
        return Needs(
            method=cls.__name__,
            kind=cls.kind,
            needs=cls.requires,
            gradients=cls.gradients,
            draws={"chains": "Markov chain", "particles": "particles", "approximation": "independent"}[cls.kind],
            density=cls.density,
            evidence=cls.evidence,
            exact=cls.exact,
            source=cls.source,
        )

    def settings(self) -> dict[str, Any]:
        """Hyper-parameters by name, for the record kept with a result."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
