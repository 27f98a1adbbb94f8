"""Statistics and Inception features beside torch-fidelity's, printed for a reader.

``python -m tests.evaluation.against_torch`` in an environment that also has torch,
torch-fidelity, prdc and vendi-score, which the tests do not need. Weights are random:
nothing is downloaded. docs/evaluation.md shows what it prints.
"""

import pathlib
import tempfile

import numpy as np
import prdc
import torch
from safetensors.torch import save_file
from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from vendi_score import vendi

from distilljax import evaluation
from distilljax.evaluation.features import inception, torch_fidelity


def show(name, theirs, ours):
    far = abs(theirs - ours) / abs(theirs)
    print(f"{name:22} {theirs:14.8g} {ours:14.8g}   {far:.0e}")


def statistics():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(64, 64)) / 8
    x = (rng.normal(size=(2000, 64)) @ mix + 0.1).astype(np.float32)
    y = (1.1 * rng.normal(size=(1500, 64)) @ mix).astype(np.float32)
    z = (2 * rng.normal(size=(2000, 10))).astype(np.float32)
    a, b, c = (torch.from_numpy(v) for v in (x, y, z))
    fits = [metric_fid.fid_features_to_statistics(v) for v in (a, b)]
    found = metric_fid.fid_statistics_to_metric(*fits, False)
    ours = evaluation.frechet_distance(x, y)
    show("FID", found["frechet_inception_distance"], ours)
    found = metric_kid.kid_features_to_metric(
        a.double(), b.double(), kid_subsets=100, kid_subset_size=1000, rng_seed=2020,
        verbose=False,
    )  # fmt: skip
    ours = evaluation.kid(x, y)
    show("KID, mean", found["kernel_inception_distance_mean"], ours.value)
    show("KID, std of a subset", found["kernel_inception_distance_std"], ours.std)
    found = metric_isc.isc_features_to_metric(c, splits=10, rng_seed=2020)
    order = np.random.RandomState(2020).permutation(len(z))
    ours = evaluation.inception_score(z[order], splits=10)
    show("inception score, mean", found["inception_score_mean"], ours.value)
    show("inception score, std", found["inception_score_std"], 3 * ours.error)
    found = metric_prc.prc_features_to_metric(
        a.double(), b.double(), prc_neighborhood=3, prc_batch_size=10000,
        save_cpu_ram=False, verbose=False,
    )  # fmt: skip
    ours = evaluation.precision_recall(reference=y, samples=x)
    show("precision", found["precision"], ours.precision)
    show("recall", found["recall"], ours.recall)
    found = prdc.compute_prdc(y, x, nearest_k=5)
    ours = evaluation.density_coverage(reference=y, samples=x)
    show("density (prdc)", found["density"], ours.density)
    show("coverage (prdc)", found["coverage"], ours.coverage)
    ours = evaluation.vendi_score(x)
    show("Vendi (vendi-score)", vendi.score_dual(x.astype(np.float64)), ours)


def random_weights(folder):
    """A state dict of the extractor, as .pth and .safetensors."""

    class Empty(FeatureExtractorInceptionV3):
        def load_state_dict(self, *arguments):
            return None

    torch.manual_seed(0)
    torch.save({}, folder / "empty.pth")
    network = Empty("empty", ["2048"], str(folder / "empty.pth"))
    weights = network.state_dict()
    for name, value in weights.items():
        if name.endswith("conv.weight"):
            value.normal_(0.0, (2.0 / value[0].numel()) ** 0.5)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2.0)
        elif ".bn." in name and value.is_floating_point():
            value.normal_(1.0 if name.endswith("weight") else 0.0, 0.2)
    torch.save(weights, folder / "random.pth")
    save_file(weights, folder / "random.safetensors")


def features():
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        random_weights(folder)
        theirs = torch_fidelity("inception-v3-compat", folder / "random.pth")
        ours = inception(folder / "random.safetensors")
        for size in (32, 299, 350):
            levels = rng.integers(0, 256, (3, size, size, 3))
            images = (levels / 127.5 - 1).astype(np.float32)
            for part, a, b in zip(
                ("features", "logits"), theirs.extract(images), ours.extract(images)
            ):
                far = np.abs(a - b).max() / np.abs(a).max()
                print(f"Inception, {size:3} pixels, {part:8} {a.shape}   {far:.0e}")


if __name__ == "__main__":
    statistics()
    features()
