"""Methods on meshes of eight fake devices against one: equal, at an eighth."""

import functools
import json
import os
import subprocess
import sys

import pytest

from distilljax.methods import CATALOGUE
from tests.methods import cases

NAMES = [*cases.CORE, *sorted(set(CATALOGUE) - set(cases.CORE))]
DATA = {"data": 8}
MESHES = [DATA, {"data": 2, "fsdp": 4}, {"fsdp": 8}]
MESHES.append({"data": 2, "fsdp": 2, "tensor": 2})
SPLIT = MESHES[3]

# Method, network, mesh, kind of the axes or fault.
DEFAULT = [
    *([name, "mlp", DATA, "auto"] for name in cases.CORE),
    ["flow_matching", "mlp", DATA, "explicit"],
    ["flow_matching", "dit", {"fsdp": 8}, "auto"],
]
FULL = [
    ["flow_matching", "dit", SPLIT, "auto"],
    *([name, "mlp", mesh, "auto"] for name in NAMES for mesh in MESHES),
    *([name, "dit", mesh, "auto"] for name in cases.CORE for mesh in MESHES),
    *([name, "mlp", DATA, "explicit"] for name in NAMES),
    ["flow_matching", "dit", SPLIT, "explicit"],
    *(["sid", "lora", mesh, "auto"] for mesh in ({"fsdp": 8}, SPLIT)),
]
ALL = [*DEFAULT, *(case for case in FULL if case not in DEFAULT)]
# A process for some at a time, so that none takes long enough to look hung.
GROUPS = [DEFAULT, *(ALL[i : i + 8] for i in range(len(DEFAULT), len(ALL), 8))]
GATHERED = ["flow_matching", "dit", {"fsdp": 8}, "gathered"]
LOOSE = ["flow_matching", "dit", {"fsdp": 8}, "loose"]


def run(group):
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} "
        "--xla_force_host_platform_device_count=8",
        # Fewer threads than devices can deadlock collectives on the CPU.
        "PJRT_NPROC": "32",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.methods.eight_devices", json.dumps(group)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.strip().splitlines()]


@functools.cache
def group_of(number):
    return run(GROUPS[number])


def found(case):
    number = next(i for i, group in enumerate(GROUPS) if case in group)
    return group_of(number)[GROUPS[number].index(case)]


def marked(case):
    mesh = "-".join(f"{axis}{size}" for axis, size in case[2].items())
    return pytest.param(
        case,
        marks=() if case in DEFAULT else pytest.mark.full,
        id=f"{case[0]}-{case[1]}-{mesh}-{case[3]}",
    )


def largest(row, kind):
    return max((size for k, _, size, _ in row["collectives"] if k == kind), default=0)


def work_is_shared(row):
    """Faults in how a program shares its work, empty for a sound one."""
    _, net, mesh, axes = row["case"]
    faults = []
    if mesh.get("tensor", 1) == 1:
        # The products are an eighth; what is beside them need not be.
        if row["flops"] > 0.2:
            faults.append(f"{row['flops']} of the FLOPs of one device")
        if row["temporaries"] > 0.3:
            faults.append(f"{row['temporaries']} of the temporaries of one device")
    elif row["flops"] > 0.3 or row["temporaries"] > 0.4:
        faults.append("more than a part of the rows")
    if largest(row, "all-gather") > row["layer"]:
        faults.append("more than a layer gathered at once")
    if net == "dit" and mesh == {"fsdp": 8} and row["held"] > 1.0 / 6.0:
        faults.append("parameters not split")
    if mesh == DATA and axes == "auto" and row["reduced"] > 1.05:
        faults.append(f"gradients summed over devices {row['reduced']} times")
    kinds = {kind for kind, *_ in row["collectives"]}
    if mesh == DATA and axes == "auto" and row["case"][0] not in MOVING:
        faults += sorted(kinds - {"all-reduce"})
    return faults


# The neighbour's condition, the misaligned pairs of its discriminator, is on the next
# device for one row of each.
MOVING = ("sana_sprint",)


@pytest.mark.parametrize("case", [marked(case) for case in ALL])
def test_a_mesh_shares_the_work_and_keeps_the_result(case):
    row = found(case)
    # Sums in another order, in float32; the optimizer is linear in the gradient.
    for part in ("params", "gradients", "ema", "metrics"):
        assert row[part] < 1e-4, (part, row[part])
    assert work_is_shared(row) == []
    assert row["recompiled"] == []
    assert row["host"] == []
    assert row["held"] < (1.0 if {"fsdp", "tensor"} & set(case[2]) else 1.001)


@pytest.mark.full
@pytest.mark.parametrize("case", [GATHERED, LOOSE], ids=["gathered", "loose"])
def test_faults_are_found(case):
    (row,) = run([case])
    wanted = {"gathered": "layer gathered", "loose": "temporaries"}[case[3]]
    assert wanted in " ".join(work_is_shared(row))
