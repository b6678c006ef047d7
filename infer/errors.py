"""The error classes of the package.

Every message names the argument, says what was found, states the rule and what to do about it.
"""


class PushforwardError(Exception):
    """Base of every error that the package raises on purpose; the command line shows it without a traceback."""


class InvalidArgument(PushforwardError, ValueError):
    """An argument is outside its range, of the wrong shape, or contradicts another one."""


class UnsupportedTarget(PushforwardError, TypeError):
    """The method needs a structure that the target does not have."""


class NonFinite(PushforwardError, FloatingPointError):
    """A log density, gradient, state or datum is NaN or infinite where it must be finite."""


class StoreError(PushforwardError, OSError):
    """A stored run is missing, truncated, corrupt, full, or belongs to another target, method or version."""


class NotAvailable(PushforwardError, NotImplementedError):
    """The result has no such quantity; the message says why and names the alternative."""


class DistributedError(PushforwardError, RuntimeError):
    """Processes, devices or silos that work together have lost each other, or were not started alike."""
