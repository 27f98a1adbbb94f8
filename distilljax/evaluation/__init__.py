"""Statistics of samples with their protocol, and the report of a run.

Features and images are numpy arrays; scikit-learn, matplotlib, Pillow and torch are
imported by the functions that need them.
"""

from distilljax.runtime.extras import needed

with needed("distilljax.evaluation"):
    from distilljax.evaluation.classifier import Classifier, PixelClassifier
    from distilljax.evaluation.fidelity import psnr
    from distilljax.evaluation.figure import report_figure
    from distilljax.evaluation.machine import hardware, versions
    from distilljax.evaluation.measuring import evaluate
    from distilljax.evaluation.memorisation import Memorisation, memorisation_check
    from distilljax.evaluation.plots import image_grid, save_png
    from distilljax.evaluation.protocol import Measurement, Protocol, difference, ratio
    from distilljax.evaluation.report import ReportFiles, write_report
    from distilljax.evaluation.samples import (
        make_samples,
        read_reference,
        read_samples,
        save_statistics,
    )
    from distilljax.evaluation.statistics import (
        DensityCoverage,
        Estimate,
        KernelDistance,
        Moments,
        PrecisionRecall,
        cmmd,
        density_coverage,
        energy_distance,
        frechet_distance,
        frechet_error,
        inception_score,
        kid,
        leave_one_out_distance,
        mean_distance,
        median_bandwidth,
        mmd,
        mmd_estimate,
        moments_of,
        nearest_distance,
        nearest_ratio,
        precision_recall,
        sliced_wasserstein,
        vendi_score,
    )
    from distilljax.evaluation.summary import in_words, summarise

__all__ = [
    "Classifier",
    "DensityCoverage",
    "Estimate",
    "KernelDistance",
    "Measurement",
    "Memorisation",
    "Moments",
    "PixelClassifier",
    "PrecisionRecall",
    "Protocol",
    "ReportFiles",
    "cmmd",
    "density_coverage",
    "difference",
    "energy_distance",
    "evaluate",
    "frechet_distance",
    "frechet_error",
    "hardware",
    "image_grid",
    "in_words",
    "inception_score",
    "kid",
    "leave_one_out_distance",
    "make_samples",
    "mean_distance",
    "median_bandwidth",
    "memorisation_check",
    "mmd",
    "mmd_estimate",
    "moments_of",
    "nearest_distance",
    "nearest_ratio",
    "precision_recall",
    "psnr",
    "ratio",
    "read_reference",
    "read_samples",
    "report_figure",
    "save_png",
    "save_statistics",
    "sliced_wasserstein",
    "summarise",
    "vendi_score",
    "versions",
    "write_report",
]

# Floors that modules here may import.
IMPORTS = ("runtime", "diffusion", "data")
