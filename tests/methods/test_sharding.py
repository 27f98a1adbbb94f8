"""Every registered method on eight fake devices against one: equal, at an eighth."""

import functools
import json
import os
import subprocess
import sys

import pytest

from distilljax.methods import CATALOGUE
from tests.methods import cases

NAMES = [*cases.CORE, *sorted(set(CATALOGUE) - set(cases.CORE))]

SHARDED = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from distilljax.method import batches
from distilljax.training.cycle import build_cycle
from tests.methods import cases

SIZE = 1024
SGD = {"optimizer": "sgd", "lr": 0.1, "betas": (0.0, 0.9)}
out = {}
for name in sys.argv[1:]:
    rows = []
    for devices in (1, 8):
        setup, state, frozen = cases.setup(
            name, batch_size=SIZE, mesh={"data": devices}, default=SGD
        )
        cycle = build_cycle(setup, setup.method.phases)
        data = cases.batch(batches(setup.method.phases), SIZE)
        if devices > 1:
            spec = jax.sharding.PartitionSpec(None, None, "data")
            data = jax.device_put(data, jax.sharding.NamedSharding(setup.mesh, spec))
        compiled = cycle.lower(state, frozen, data).compile()
        cost = compiled.cost_analysis()
        state, metrics = compiled(state, frozen, data)
        rows.append((float(cost["flops"]), jax.device_get((state.params, metrics))))
    (f1, (p1, m1)), (f8, (p8, m8)) = rows
    gap = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), p1, p8)
    metric = {k: abs(float(m1[k]) - float(m8[k])) / (1 + abs(float(m1[k]))) for k in m1}
    out[name] = dict(
        flops=f8 / f1, params=max(jax.tree.leaves(gap)), metrics=max(metric.values())
    )
print(json.dumps(out))
"""


# A process for some at a time, so that none takes long enough to look hung.
GROUPS = [NAMES[i : i + 8] for i in range(0, len(NAMES), 8)]


@functools.cache
def sharded(group):
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} "
        "--xla_force_host_platform_device_count=8",
        # Fewer threads than devices can deadlock collectives on the CPU.
        "PJRT_NPROC": "32",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, *GROUPS[group]],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("name", cases.with_marks(NAMES))
def test_sharding_splits_the_work_and_keeps_the_result(name):
    row = sharded(NAMES.index(name) // 8)[name]
    assert row["flops"] <= 0.2, row
    assert row["metrics"] < 2e-3, row
    assert row["params"] < 2e-5, row
