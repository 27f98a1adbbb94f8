"""DMD2 in a training loop of one's own: a student against two score networks.

    python examples/own_loop_dmd2.py

Sliced Wasserstein distance of 8192 samples to exact ones: 0.071 at 1 step, 0.078 at
2 steps; exact samples among themselves have the floor 0.022, and noise has 0.37. Cost:
53 s of CPU (two cores, AMD EPYC).

The GAN of DMD2 is left out; `losses.generator_nonsaturating` and
`losses.discriminator_nonsaturating` add it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from own_loops import RING, adam, average, init, net, report, train

from distilljax import losses, paths, sampling, transforms

PATH = paths.linear()  # x_t = (1 - t) x0 + t eps
# Any function (x, t) -> E[x0 | x_t] will do; this one is exact.
TEACHER = RING.denoised(PATH)
GRID = {1: (1.0, 0.0), 2: (1.0, 0.5, 0.0)}
TOP, LOW = 0.98, 0.02


def denoised(params, x, t):
    """A guess of the clean sample, ``x_t - t u``: exact at ``t = 0`` by itself.

    The student is one (a flow map to ``s = 0``), and so is the fake score.
    """
    t = jnp.broadcast_to(t, x.shape[:1])
    return x - t[:, None] * net(params, x, t)


def made(params, key, batch: int):
    """Samples of the student, half of them after each step (backward simulation).

    Only the last step of each gets a gradient.
    """
    keys = jax.random.split(key)
    first = denoised(params, jax.random.normal(keys[0], (batch, 2)), 1.0)
    half, middle = first[batch // 2 :], jnp.full(batch - batch // 2, GRID[2][1])
    x = PATH.noise(half, jax.random.normal(keys[1], half.shape), middle)
    second = denoised(params, jax.lax.stop_gradient(x), middle)
    return jnp.concatenate([first[: batch // 2], second])


def renoised(x, key):
    """A point on the way back to noise, and its time."""
    keys = jax.random.split(key)
    t = jax.random.uniform(keys[0], x.shape[:1], minval=LOW, maxval=TOP)
    return PATH.noise(x, jax.random.normal(keys[1], x.shape), t), t


def student_loss(params, fake, key, batch: int):
    """Samples move to where the teacher's score exceeds that of their own law."""
    keys = jax.random.split(key)
    x = made(params, keys[0], batch)
    x_t, t = renoised(jax.lax.stop_gradient(x), keys[1])
    real = TEACHER(x_t, t)
    c = losses.score_gap(x, real, denoised(fake, x_t, t))
    c = transforms.normalize_by_error(c, reference=real, floor=0.3)
    return losses.regress(c).mean()


def fake_loss(fake, params, key, batch: int):
    """The fake score denoises the student's samples."""
    keys = jax.random.split(key)
    x = jax.lax.stop_gradient(made(params, keys[0], batch))
    x_t, t = renoised(x, keys[1])
    return losses.regress(losses.toward(denoised(fake, x_t, t), x)).mean()


def fit(steps: int = 1800, batch: int = 256, critic_steps: int = 5, seed: int = 0):
    """Trains student and fake score in turn; the average of the student."""
    ours, theirs = adam(5e-4, steps), adam(1e-3, critic_steps * steps)
    # With an output of 0 the student makes noise of noise. Started from a denoiser, as
    # in the paper, it would make one point of all noise here, the mean of the ring.
    params = init(jax.random.key(seed), times=1)
    fake = init(jax.random.key(seed + 1), times=1)

    def step(state, key):
        params, fake, ema, opt, opt_fake = state
        keys = jax.random.split(key, critic_steps + 1)

        def critic(carry, key):
            fake, opt = carry
            grads = jax.grad(fake_loss)(fake, params, key, batch)
            updates, opt = theirs.update(grads, opt, fake)
            return (optax.apply_updates(fake, updates), opt), None

        (fake, opt_fake), _ = jax.lax.scan(critic, (fake, opt_fake), keys[1:])
        grads = jax.grad(student_loss)(params, fake, keys[0], batch)
        updates, opt = ours.update(grads, opt, params)
        params = optax.apply_updates(params, updates)
        return params, fake, average(ema, params), opt, opt_fake

    start = (params, fake, params, ours.init(params), theirs.init(fake))
    return train(step, start, steps, seed)[2]


def sample(params, eps, steps: int):
    """To the data and back to lower noise levels, as in training."""

    def jump(x, t, s):
        return denoised(params, x, t)

    key = jax.random.key(0)
    return sampling.sample(jump, eps, GRID[steps], path=PATH, key=key)


if __name__ == "__main__":
    trained = fit()
    report("DMD2", lambda eps, steps: sample(trained, eps, steps), (1, 2))
