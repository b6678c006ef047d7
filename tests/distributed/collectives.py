"""Collectives of compiled programs that nothing puts in order, read from what ``--xla_dump_to`` leaves.

XLA's CPU client runs the collectives of one sequence in their order, but a loop or branch that holds some may still be
running when what comes after it in the program starts, unless that needs what the loop makes. Two processes may then
meet in different collectives, and abort.
"""

import re
from collections.abc import Iterator
from pathlib import Path

KINDS = r"(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast)(-start)?"
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (?:\((?:[^()]|\([^()]*\))*\)|\S+) ([\w\-]+)\((.*)$")
CALLED = re.compile(r"(?:calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


def disordered(folder: Path) -> Iterator[str]:
    """A line for each loop or branch with collectives that others in its program do not wait for."""
    for file in sorted(folder.glob("*after_optimizations.txt")):
        for first, second in pairs(file.read_text()):
            yield f"{file.name}: {second} does not wait for {first}"


def pairs(text: str) -> Iterator[tuple[str, str]]:
    """The loop or branch, and what comes after it, of one scheduled program."""
    computations = parsed(text)
    holding: dict[str, bool] = {}

    def holds(name: str) -> bool:
        if name not in holding:
            holding[name] = False
            holding[name] = any(
                is_collective(kind) or any(map(holds, called)) for _, kind, _, called in computations[name]
            )
        return holding[name]

    for instructions in computations.values():
        before: dict[str, set[str]] = {}
        loops: list[str] = []
        for name, kind, operands, called in instructions:
            before[name] = set(operands).union(*(before.get(one, set()) for one in operands))
            nested = any(map(holds, called))
            if nested or is_collective(kind):
                yield from ((loop, name) for loop in loops if loop not in before[name])
            if nested:
                loops.append(name)


def is_collective(kind: str) -> bool:
    """Whether an instruction's name is one of those in which devices meet."""
    return re.fullmatch(KINDS, kind) is not None


def parsed(text: str) -> dict[str, list[tuple[str, str, list[str], list[str]]]]:
    """Of each computation its instructions in order: name, kind, operands, computations that it calls."""
    found: dict[str, list] = {}
    current: list = []
    for line in text.splitlines():
        head = re.match(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$", line)
        if head:
            current = found.setdefault(head[1], [])
        elif match := INSTRUCTION.match(line):
            name, kind, rest = match.groups()
            attributes = rest.split("metadata=")[0]
            operands = re.findall(r"%([\w.\-]+)", attributes.split("), ")[0])
            branches = [one for group in BRANCHES.findall(attributes) for one in re.findall(r"[\w.\-]+", group)]
            current.append((name, kind, operands, [one for one in CALLED.findall(attributes) + branches if one]))
    return {
        name: [(a, b, c, [one for one in d if one in found]) for a, b, c, d in body] for name, body in found.items()
    }
