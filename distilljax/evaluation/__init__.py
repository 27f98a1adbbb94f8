"""Statistics of samples, and the report of a run.

Features and images are numpy arrays; scikit-learn, matplotlib and Pillow are imported
by the functions that need them.
"""

from distilljax.evaluation.classifier import Classifier, PixelClassifier
from distilljax.evaluation.fidelity import psnr
from distilljax.evaluation.figure import report_figure
from distilljax.evaluation.files import write_atomic
from distilljax.evaluation.machine import hardware, versions
from distilljax.evaluation.memorisation import Memorisation, memorisation_check
from distilljax.evaluation.plots import image_grid, save_png
from distilljax.evaluation.report import ReportFiles, write_report
from distilljax.evaluation.statistics import (
    PrecisionRecall,
    frechet_distance,
    leave_one_out_distance,
    median_bandwidth,
    mmd,
    nearest_distance,
    precision_recall,
)
from distilljax.evaluation.summary import in_words, summarise

__all__ = [
    "Classifier",
    "Memorisation",
    "PixelClassifier",
    "PrecisionRecall",
    "ReportFiles",
    "frechet_distance",
    "hardware",
    "image_grid",
    "in_words",
    "leave_one_out_distance",
    "median_bandwidth",
    "memorisation_check",
    "mmd",
    "nearest_distance",
    "precision_recall",
    "psnr",
    "report_figure",
    "save_png",
    "summarise",
    "versions",
    "write_atomic",
    "write_report",
]
