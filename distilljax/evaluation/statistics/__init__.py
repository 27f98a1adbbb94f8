"""Statistics of feature vectors, in float64.

Every function takes float features ``[N, D]`` (pixels, or the output of a feature
network) and returns plain floats or arrays. Pairwise distances are computed in blocks,
over the devices of a mesh where one is given, so memory stays bounded however many
samples there are.
"""

from distilljax.evaluation.statistics.discrepancies import (
    Estimate,
    cmmd,
    energy_distance,
    mean_distance,
    median_bandwidth,
    mmd,
    mmd_estimate,
)
from distilljax.evaluation.statistics.moments import (
    Moments,
    frechet_distance,
    frechet_error,
    moments_of,
)
from distilljax.evaluation.statistics.neighbours import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    leave_one_out_distance,
    nearest_distance,
    nearest_ratio,
    precision_recall,
)
from distilljax.evaluation.statistics.scores import (
    inception_score,
    sliced_wasserstein,
    vendi_score,
)
from distilljax.evaluation.statistics.subsets import KernelDistance, kid

__all__ = [
    "DensityCoverage",
    "Estimate",
    "KernelDistance",
    "Moments",
    "PrecisionRecall",
    "cmmd",
    "density_coverage",
    "energy_distance",
    "frechet_distance",
    "frechet_error",
    "inception_score",
    "kid",
    "leave_one_out_distance",
    "mean_distance",
    "median_bandwidth",
    "mmd",
    "mmd_estimate",
    "moments_of",
    "nearest_distance",
    "nearest_ratio",
    "precision_recall",
    "sliced_wasserstein",
    "vendi_score",
]
