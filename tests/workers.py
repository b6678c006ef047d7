"""How pytest-xdist deals tests to workers: those that share compiled programs and fits go to one worker."""

from typing import Any

from xdist.scheduler import LoadScopeScheduling

BY_CASE = ("tests/laws/test_method_laws.py", "tests/docs/test_docs.py", "tests/docs/test_examples_run.py")
"""Long files whose cases share nothing with one another."""

TOGETHER = ("tests/run/",)
"""Folders whose files fit the same few models by the same method."""


class ByFile(LoadScopeScheduling):
    """A file is a unit of work, or one case of it, or a folder, in the order of collection."""

    def __init__(self, config: Any, log: Any) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # the longest are not those of the most tests

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        if file in BY_CASE:
            return file + "[" + test.partition("[")[2]
        return next((folder for folder in TOGETHER if file.startswith(folder)), file)
