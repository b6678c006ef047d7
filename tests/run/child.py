"""A run in a process of its own, to be killed: ``python -m tests.run.child new|resume PATH [num_samples]``."""

import sys

import pushforward as pf
from tests.run.models import schools

if __name__ == "__main__":
    what, path = sys.argv[1:3]
    if what == "new":
        pf.fit(
            schools(), pf.NUTS(), key=5, num_samples=int(sys.argv[3]), num_warmup=300, store=path, chunk_length=20,
            checkpoint_every=0, progress=False,
        )  # fmt: skip
    else:
        pf.resume(path, schools(), checkpoint_every=0, progress=False)
