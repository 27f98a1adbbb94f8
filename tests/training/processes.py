"""Run once per process; prints what `test_processes` checks.

Arguments: number of this process, number of processes, port, run folder.
"""

import json
import sys

import jax
import numpy as np

import distilljax
from distilljax import data
from tests import toy


class Counted:
    """A mixture that notes which samples are read."""

    def __init__(self):
        self.inner, self.read = data.mixture(size=64, components=3), 0
        self.sample_shape, self.num_classes = (2,), 3
        self.fields, self.fingerprint = self.inner.fields, self.inner.fingerprint

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        return self.inner[index]

    def take(self, indices):
        self.read = max(self.read, len(indices))
        return self.inner.take(indices)


def main(index, count, port, folder):
    if count > 1:
        jax.distributed.initialize(f"localhost:{port}", count, index)
    source, network = Counted(), toy.mlp(num_classes=3, hidden=8)
    config = {"batch_size": 8, "log_every": 1, "mesh": {"data": 2}}
    # The second call goes on after the first.
    for cycles in (2, 4):
        found = distilljax.fit(
            "flow_matching",
            networks=network,
            source=source,
            config={**config, "cycles": cycles},
            folder=folder,
            progress=False,
        )
    leaves = [np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(found.params)]
    result = {"read": source.read, "params": np.concatenate(leaves).tolist()}
    print("RESULT" + json.dumps({**result, "step": found.result.step}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
