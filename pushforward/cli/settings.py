"""Hyper-parameters of a method from the command line, checked against the fields of its class."""

import ast
import dataclasses
import difflib
import re
from collections.abc import Iterable
from typing import Any

import click

WORDS = {"true": True, "false": False, "none": None}


def split_extra(tokens: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Sort what click does not know into positional arguments and ``--name value`` or ``--name=value`` options.

    Returns
    -------
    positional : list of str
    options : dict
        Name, with underscores → text.
    """
    positional, options, rest = [], {}, list(tokens)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--"):
            positional.append(token)
            continue
        name, separator, value = token[2:].partition("=")
        if not separator:
            if not rest or rest[0].startswith("--"):
                raise click.UsageError(f"No such option, or a hyper-parameter without a value: {token}")
            value = rest.pop(0)
        options[name.replace("-", "_")] = value
    return positional, options


def split_assignments(assignments: Iterable[str]) -> dict[str, str]:
    """``("a=1", "b=2")`` → ``{"a": "1", "b": "2"}``."""
    options = {}
    for item in assignments:
        name, separator, value = item.partition("=")
        if not separator or not name.strip():
            raise click.UsageError(f"--set takes NAME=VALUE, got {item!r}")
        options[name.strip().replace("-", "_")] = value.strip()
    return options


def make_method(name: str, options: dict[str, str]) -> Any:
    """The method called ``name`` (in any case) with these hyper-parameters.

    Raises
    ------
    click.UsageError
        There is no such method or hyper-parameter; the message names those there are.
    InvalidArgument
        A value is out of range.
    """
    cls = find_method(name)
    known = hyperparameters(cls)
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, 1)
            hint = f"; did you mean {close[0]}?" if close else f"; it has {', '.join(known) or 'none'}"
            raise click.UsageError(f"{cls.__name__} has no hyper-parameter {option!r}, nor fit such an option{hint}")
    values = {option: parse(text) for option, text in options.items()}
    missing = [f.name for f in dataclasses.fields(cls) if _required(f) and f.name not in values]
    if missing:
        raise click.UsageError(f"{cls.__name__} needs {', '.join(missing)}; give --set {missing[0]}=VALUE")
    return cls(**values)


def find_method(name: str) -> Any:
    """The public method class of this name, in any case."""
    import pushforward

    from ..infer.method import AbstractMethod

    by_case = {public.lower(): public for public in pushforward.__all__}
    found = getattr(pushforward, by_case.get(name.lower(), ""), None) if name.lower() in by_case else None
    if not (isinstance(found, type) and issubclass(found, AbstractMethod)):
        raise click.UsageError(f"--method got {name!r}; the methods are {', '.join(method_names())}")
    return found


def method_names() -> list[str]:
    """Names of all public methods."""
    import pushforward

    return [str(about.method) for about in pushforward.methods()]


def hyperparameters(cls: type) -> list[str]:
    """Names of the fields that a user may set: those that the class documents."""
    documented = set(re.findall(r"\w+", (cls.__doc__ or "").partition("Parameters\n")[2]))
    return [f.name for f in dataclasses.fields(cls) if f.init and f.name in documented]


def parse(text: str) -> Any:
    """A number, truth value, None, list of numbers (as a NumPy array) or word, from text."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    if isinstance(value, list):
        import numpy as np

        return np.asarray(value, float)
    return value


def _required(field: Any) -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
