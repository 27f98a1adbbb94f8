import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilljax.training import digests


def tree():
    rng = np.random.default_rng(0)
    large = rng.normal(size=(3, 70_001)).astype(np.float32)
    return {
        "float": jnp.asarray(large),
        "half": jnp.asarray(large[0], jnp.bfloat16),
        "int": jnp.arange(5),
        "bool": jnp.asarray([True, False]),
        "scalar": jnp.float32(2.5),
        "key": jax.random.key(4),
        "numpy": large[1],
    }


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_program_finds_what_the_host_finds(monkeypatch, bad):
    good = tree()
    broken = {**good, "half": good["half"].at[-1].set(bad)}
    found = []
    for _ in range(2):
        found.append([digests.fingerprint(good), digests.fingerprint(broken)])
        assert digests.not_finite(good) == []
        assert digests.not_finite(broken) == ["half"]
        # From here on all leaves are taken for those of an accelerator.
        monkeypatch.setattr(digests, "_near", lambda leaf: False)
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]


def test_the_fingerprint_is_that_of_checkpoints_written_before():
    """Numbers of version 0.1's program, one a leaf."""
    plain = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.arange(3)}
    assert digests.fingerprint(plain) == 3444880873
