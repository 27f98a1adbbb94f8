"""Hand-made methods and data for tests of the trainer."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from distilljax.core.method import Follow, Method, Out, Phase, Role, Term, check
from tests import toy

NETWORK = toy.mlp((2,))


class Stream:
    """Batches ``[n, accumulate, B, 2]`` as a function of their number."""

    def __init__(self, n=1, accumulate=1, size=32, seed=0, labels=0):
        self.shape, self.seed, self.labels = (n, accumulate, size), seed, labels
        self.index = 0

    def __iter__(self):
        return self

    def __next__(self):
        rng = np.random.default_rng((self.seed, self.index))
        self.index += 1
        batch = {"x0": 0.5 * rng.normal(size=(*self.shape, 2)).astype(np.float32) + 0.5}
        if self.labels:
            batch["cond"] = rng.integers(0, self.labels, self.shape).astype(np.int32)
        return batch

    def get_state(self):
        return {"index": self.index}

    def set_state(self, state):
        self.index = state["index"]


def velocity_error(role: str, x: str = "x0"):
    """Term: flow matching of a role on a data field."""

    def loss(ctx):
        x0, bound = ctx.data[x], ctx.nets[role]
        eps, t = ctx.normal("eps", x0), ctx.uniform("t")
        v = bound.velocity(ctx.cond)(bound.path.noise(x0, eps, t), t)
        return jnp.mean((v - (eps - x0)) ** 2, axis=-1)

    return loss


def jump(ctx, role: str, x: jax.Array) -> jax.Array:
    return ctx.nets[role].flow_map(ctx.cond)(x, 1.0, 0.0)


def regression(init: str = "random", **phase) -> Method:
    """Flow matching of the student, from random numbers."""
    terms = (Term("fit", velocity_error("student")),)
    return check(
        Method(
            "regression",
            {"student": Role(init=init)},
            (Phase("student", ("student",), terms, **phase),),
        )
    )


def imitate(ctx):
    """Term: the student's jump is the teacher's velocity step, no randomness."""
    x = ctx.data["x0"]
    target = x - ctx.nets.teacher.velocity(ctx.cond)(x, 1.0)
    return jnp.mean((jump(ctx, "student", x) - target) ** 2, axis=-1)


@dataclasses.dataclass(frozen=True)
class Generated:
    """Draw: samples of the student."""

    def __call__(self, ctx):
        return jump(ctx, "student", ctx.normal("z"))


def critic_and_student(repeat: int = 3) -> Method:
    """A critic fitted to the student's samples in repeats, then the student."""

    def chase(ctx):
        x = ctx.data["x"]
        real = ctx.nets.teacher.denoiser()(jax.lax.stop_gradient(x), 0.5)
        fake = ctx.nets.fake.denoiser()(jax.lax.stop_gradient(x), 0.5)
        return Out(
            jnp.mean((x - jax.lax.stop_gradient(x + real - fake)) ** 2, axis=-1),
            metrics={"gap": jnp.mean(jnp.abs(real - fake))},
        )

    draws = {"x": Generated()}
    critic = Phase(
        "fake",
        ("fake",),
        (Term("fit", velocity_error("fake", "x")),),
        draws=draws,
        repeat=repeat,
    )
    student = Phase("student", ("student",), (Term("chase", chase, 0.5),), draws=draws)
    return check(
        Method(
            "critic_and_student",
            {"teacher": Role(), "student": Role(), "fake": Role()},
            (critic, student),
        )
    )


def following(**follow) -> Method:
    """The student regresses to the data, a target follows it."""
    method = regression()
    return check(
        method._replace(
            roles={
                **method.roles,
                "target": Role(init="student", follow=Follow("student", **follow)),
            }
        )
    )
