# %% [markdown]
# # How fast do samplers converge?
#
# A study runs methods on targets at equal budgets and measures how near they come, along the run. Here: four methods
# on two shipped models, five seeds, 20,000 gradients each, warm-up included.

# %%
import tempfile
from pathlib import Path

import pushforward as pf

study = pf.Study(
    targets={name: pf.models.get(name).target() for name in ("challenger", "eight_schools")},
    methods={
        "NUTS": (pf.NUTS(), {"num_warmup": 300}),
        "MALA": (pf.MALA(), {"num_warmup": 1000}),
        "MCLMC": pf.MCLMC(),
        "FBGVI": pf.FBGVI(),
    },
    seeds=5,
    budget=20_000,
    metrics=["mean", "sd", "energy", "ess_per_evaluation"],
)
folder = Path(tempfile.mkdtemp()) / "study"
results = study.run(folder, progress=False)
print(results)

# %% [markdown]
# References were not given, so that each target was sampled by a long run of NUTS first. Every run is on disk when it
# is done: the same call goes on after a kill, and adds what is new.
#
# ## Along the run
#
# Errors of means, in posterior standard deviations: medians over seeds, quartiles as bands. The dashed line is what 500
# independent draws of the reference attain; below it methods cannot be told apart.

# %%
results.plot("mean")

# %%
results.plot("energy")

# %% [markdown]
# ## At the end of the budget

# %%
results.medians("mean").round(3)

# %%
results.winners().round(3)

# %% [markdown]
# `sure` is the share of resampled sets of seeds in which the winner wins: with five seeds, close races stay open. A
# normal approximation stops where its bias is, however long it runs; on the hierarchy that is early.
#
# ## What a gradient buys

# %%
results.plot("ess_per_evaluation")

# %% [markdown]
# More seeds or methods add to the store, without another look at what is there:

# %%
more = pf.Study(
    targets=study.targets,
    methods=study.methods,
    seeds=6,
    budget=20_000,
    metrics=["mean", "sd", "energy", "ess_per_evaluation"],
).run(folder, progress=False)
print(more.data.sizes["seed"], "seeds; page:", more.report(folder / "report.html").name)
