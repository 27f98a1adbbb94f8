"""Collectives and host transfers, read from programs written by hand and compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax.training.collectives import (
    Collective,
    collectives,
    counts,
    host_transfers,
)

PROGRAM = """
HloModule jit_cycle, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%x, %y)
}

%inner (p: f32[2]) -> f32[16] {
  %p = f32[2]{0} parameter(0)
  ROOT %all-gather.3 = f32[16]{0} all-gather(%p), replica_groups=[1,8]<=[8]
}

%body (s: (s32[], f32[2])) -> (s32[], f32[2]) {
  %s = (s32[], f32[2]{0}) parameter(0)
  %call.1 = f32[16]{0} call(%p), to_apply=%inner
  %reduce-scatter.2 = bf16[2]{0} reduce-scatter(%call.1), to_apply=%add
}

%cond (s: (s32[], f32[2])) -> pred[] {
  ROOT %less = pred[] compare(%a, %b), direction=LT
}

ENTRY %main.9 (a: f32[4,8], b: f32[2]) -> f32[4,8] {
  %while.1 = (s32[], f32[2]) while(%t), condition=%cond, body=%body
  %all-reduce.1 = (f32[4,8]{1,0}, f32[]) all-reduce(%a, %c), to_apply=%add
  %all-gather-start.1 = (f32[4,1]{1,0}, f32[4,8]{1,0}) all-gather-start(%a)
  %all-gather-done.1 = f32[4,8]{1,0} all-gather-done(%all-gather-start.1)
  %get = f32[] get-tuple-element(%all-reduce.1), index=1
  ROOT %permute = u8[3]{0} collective-permute(%a), source_target_pairs={{0,1}}
}
"""


def test_collectives_are_read_with_shapes_bytes_and_loops():
    found = collectives(PROGRAM)
    assert found == [
        Collective("all-gather", ((16,),), 64, True),
        Collective("reduce-scatter", ((2,),), 4, True),
        Collective("all-reduce", ((4, 8), ()), 132, False),
        Collective("all-gather", ((4, 8),), 128, False),
        Collective("collective-permute", ((3,),), 3, False),
    ]
    assert counts(found) == {
        "all-gather": 2,
        "all-reduce": 1,
        "collective-permute": 1,
        "reduce-scatter": 1,
    }
    assert host_transfers(PROGRAM) == []


@pytest.mark.parametrize(
    "line",
    [
        "  %infeed = ((f32[2]), token[]) infeed(%token)",
        "  %send.1 = (f32[], u32[], token[]) send(%x, %t), is_host_transfer=true",
        '  %c = f32[] custom-call(%x), custom_call_target="xla_python_cpu_callback"',
    ],
)
def test_waiting_for_the_host_is_seen(line):
    assert host_transfers(f"ENTRY %main (x: f32[]) -> f32[] {{\n{line}\n}}") == [
        line.strip()
    ]


def test_callbacks_of_compiled_programs_are_seen():
    def told(x):
        jax.debug.callback(lambda value: None, jnp.sum(x))
        return x * 2.0

    def asked(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(np.sin, shape, x)

    x = jnp.ones((3,))
    for function in (told, asked):
        assert host_transfers(jax.jit(function).lower(x).compile())
    compiled = jax.jit(lambda x: x * 2.0).lower(x).compile()
    assert host_transfers(compiled) == collectives(compiled) == []
