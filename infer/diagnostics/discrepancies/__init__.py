"""How far a sample is from a target, or from another sample.

======================  ======================================  ===============  ==============================
function                compares                                cost             needs
======================  ======================================  ===============  ==============================
`ksd`, `mksd`           a sample with a target                  O(n² d)          scores
`energy_distance`       two samples                             O(n m d); in one dimension O(n log n)
`mmd`                   two samples                             O(n m d)         a bandwidth
`sliced_wasserstein`    two samples                             O(L n (d + log n)) for L projections
`wasserstein_1d`        two samples of numbers                  O(n log n)
`gaussian_wasserstein`  two Gaussians                           O(d³)            means and covariances
======================  ======================================  ===============  ==============================

Memory is O(n d) everywhere. Points in 32 bits are compared in 32 bits, sums over them are in 64.
"""

from .points import Discrepancy as Discrepancy
from .points import flatten as flatten
from .points import median_bandwidth as median_bandwidth
from .stein import ksd as ksd
from .stein import mksd as mksd
from .transport import Sliced as Sliced
from .transport import gaussian_wasserstein as gaussian_wasserstein
from .transport import sliced_wasserstein as sliced_wasserstein
from .transport import wasserstein_1d as wasserstein_1d
from .two_sample import energy_distance as energy_distance
from .two_sample import mmd as mmd
