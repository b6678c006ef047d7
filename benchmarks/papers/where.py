"""Where the experiments keep what they find: the one thing that all of these scripts have in common.

A folder ``results/`` beside the script, or that in the variable ``PUSHFORWARD_RESULTS``, by which
`benchmarks.reproduce` lets them begin anew without touching what is kept in the repository.
"""

import os
from pathlib import Path


def results_of(script: str) -> Path:
    """The folder of the results of a script, given its ``__file__``; it exists."""
    folder = Path(os.environ.get("PUSHFORWARD_RESULTS") or Path(script).resolve().parent / "results")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


RESULTS = results_of(__file__)
