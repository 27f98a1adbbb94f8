"""MeanFlow in a training loop of one's own: from data alone, no teacher.

    python examples/own_loop_mean_flow.py

Sliced Wasserstein distance of 8192 samples to exact ones: 0.043 at 1 step, 0.047 at
2 steps, 0.058 at 4 steps; exact samples among themselves have the floor 0.022, and
noise has 0.37. Cost: 47 s of CPU (two cores, AMD EPYC).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from own_loops import RING, adam, average, init, net, report, train

from distilljax import flow_maps, losses, paths, sampling, transforms

PATH = paths.linear()  # x_t = (1 - t) x0 + t eps


def student(params):
    """The average velocity from t to s as a flow map, ``x + (s - t) u``."""
    return flow_maps.AffineFlowMap(lambda x, t, s: net(params, x, t, s), PATH)


def loss(params, key, batch: int):
    """MeanFlow's identity on pairs of times, a quarter of them apart."""
    keys = jax.random.split(key, 4)
    x0 = RING.sample(keys[0], batch)
    eps = jax.random.normal(keys[1], x0.shape)
    both = jax.random.uniform(keys[2], (2, batch))
    t, s = both.max(0), both.min(0)
    s = jnp.where(jax.random.uniform(keys[3], (batch,)) < 0.5, s, t)
    # The velocity of the sample; its mean over samples is that of the flow.
    c = losses.eulerian(student(params), eps - x0, PATH.noise(x0, eps, t), t, s)
    return losses.regress(transforms.adaptive_l2(c, p=0.5)).mean()


def fit(steps: int = 5000, batch: int = 512, seed: int = 0):
    """Trains; the average of the parameters."""
    optimizer = adam(2e-3, steps)
    params = init(jax.random.key(seed), times=2)

    def step(state, key):
        params, opt, ema = state
        grads = jax.grad(loss)(params, key, batch)
        updates, opt = optimizer.update(grads, opt, params)
        params = optax.apply_updates(params, updates)
        return params, opt, average(ema, params)

    return train(step, (params, optimizer.init(params), params), steps, seed)[2]


def sample(params, eps, steps: int):
    """Jumps of equal length from noise to data."""
    times = tuple(1.0 - i / steps for i in range(steps + 1))
    rule = sampling.Deterministic()
    return sampling.sample(student(params), eps, times, renoise=rule)


if __name__ == "__main__":
    trained = fit()
    report("MeanFlow", lambda eps, steps: sample(trained, eps, steps))
