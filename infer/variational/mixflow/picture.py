"""The picture of a MixFlow: its evidence bound by length."""

from typing import Any

import numpy as np


def draw_curve(plt: Any, curve: Any, length: int) -> Any:
    """The bound of a `Curve` with two standard errors, and the length of the flow.

    Parameters
    ----------
    plt
        ``matplotlib.pyplot``.
    """
    from matplotlib import ticker

    filled = int(curve.filled)
    lengths, elbo, se = (np.asarray(x)[:filled] for x in (curve.lengths, curve.elbo, curve.se))
    fine = np.isfinite(elbo) & np.isfinite(se)
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    axis.errorbar(lengths[fine], elbo[fine], 2 * se[fine], fmt="o-", ms=3, color="#2b5c9e", ecolor="#9fb8dd")
    axis.axvline(length, color="#b3261e", lw=1.0, label=f"N = {length:,}")
    axis.set(xscale="log", xlabel="length N", ylabel="evidence bound (nats)")
    axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.xaxis.set_minor_locator(ticker.NullLocator())
    axis.yaxis.set_major_formatter(ticker.ScalarFormatter(useOffset=False))
    axis.legend(fontsize=8, frameon=False, loc="best")
    return figure
