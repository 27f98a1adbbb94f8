"""k-step sampling against k bare forward passes of the student's network.

The sampler is one program with the re-noising inside; against it stand k calls of the
jitted network, each on the result of the one before.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import measure, workload
from benchmarks.measure import Result, Scale
from distilljax.sampling.generation import student_sampler

CALLS = 8
BATCH = 512
LIMIT = 1.05
METHODS = ("scm", "mean_flow", "dmd2")
STEPS = (1, 2, 4)
# What a program says in StableHLO when it calls the host.
HOST = ("callback", "infeed", "outfeed", "send", "recv")


def inputs(work: workload.Work, scale: Scale) -> tuple[Any, ...]:
    """``(params, eps, cond, key)`` of a sampler, on the device."""
    size = 8 if scale.tiny else BATCH
    eps = jax.random.normal(jax.random.key(1), (size, *work.source.sample_shape))
    labels = jnp.arange(size, dtype=jnp.int32) % work.source.num_classes
    return workload.filled(student(work)), eps, labels, jax.random.key(2)


def student(work: workload.Work) -> Any:
    """The student's network."""
    return work.networks.get("student", work.networks["backbone"])


def host_calls(program: jax.stages.Lowered) -> list[str]:
    """Operations of a lowered program that involve the host."""
    text = program.as_text()
    lines = [line for line in text.splitlines() if "stablehlo." in line]
    return [
        line.strip()[:100]
        for line in lines
        if any(word in line.split("stablehlo.")[1] for word in HOST)
    ]


def bare(network: Any, steps: int) -> Callable[..., jax.Array]:
    """So many forward passes, a program call each."""
    forward = jax.jit(network.apply)
    second = "second_time" in network.capabilities

    def run(params, x, cond, t):
        for _ in range(steps):
            x = forward(params, x, t, cond, t if second else None)
        return x

    return run


def compare(method: str, steps: int, scale: Scale) -> list[Result]:
    """Ratio of a student at a number of steps, and what its program is."""
    work = workload.card(method, scale)
    args = inputs(work, scale)
    params, eps, cond, _ = args
    sampler = jax.jit(student_sampler(work.method, student(work), steps))
    t = workload.times_like(eps, 0.5)
    passes = functools.partial(bare(student(work), steps), params, eps, cond, t)
    with measure.compilations() as programs, jax.transfer_guard("disallow"):
        sampler(*args).block_until_ready()
        sampler(*args).block_until_ready()
    found = host_calls(sampler.lower(*args))
    calls = scale.steps(CALLS)
    pairs = measure.interleaved(
        measure.timed(lambda: jax.block_until_ready(sampler(*args)), calls),
        measure.timed(lambda: jax.block_until_ready(passes()), calls),
        scale.pairs,
    )
    label = f"{method}, {steps} step{'s' if steps > 1 else ''}"
    return [
        measure.ratio(
            f"sampling {label}",
            f"sampler over {steps} forward passes",
            pairs,
            limit=LIMIT,
            steps=calls,
        ),
        measure.fact(
            f"programs of sampling {label}",
            "programs compiled, with implicit transfers forbidden",
            len(programs),
            1,
            programs=programs,
        ),
        measure.fact(
            f"host calls of sampling {label}",
            "operations of the lowered program that involve the host",
            len(found),
            0,
            operations=found,
        ),
    ]


def run(scale: Scale) -> list[Result]:
    """All results of this file."""
    return [
        result
        for method in METHODS
        for steps in STEPS
        for result in compare(method, steps, scale)
    ]


if __name__ == "__main__":
    sys.exit(measure.main(run, "sampling", __doc__))
