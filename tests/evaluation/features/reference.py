"""The blocks of the FID's Inception-v3 written out once more, in numpy, NCHW."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

ONE, THREE, FIVE = (1, 1), (3, 3), (5, 5)
WIDE, TALL = (1, 7), (7, 1)


def convs_of(block):
    """``{name: (channels out, input or the name it reads, kernel)}``."""
    if block == "":
        return {
            "Conv2d_1a_3x3": (32, None, THREE),
            "Conv2d_2a_3x3": (32, "Conv2d_1a_3x3", THREE),
            "Conv2d_2b_3x3": (64, "Conv2d_2a_3x3", THREE),
            "Conv2d_3b_1x1": (80, "Conv2d_2b_3x3", ONE),
            "Conv2d_4a_3x3": (192, "Conv2d_3b_1x1", THREE),
        }
    if block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        return {
            "branch1x1": (64, None, ONE),
            "branch5x5_1": (48, None, ONE),
            "branch5x5_2": (64, "branch5x5_1", FIVE),
            "branch3x3dbl_1": (64, None, ONE),
            "branch3x3dbl_2": (96, "branch3x3dbl_1", THREE),
            "branch3x3dbl_3": (96, "branch3x3dbl_2", THREE),
            "branch_pool": (32 if block == "Mixed_5b" else 64, None, ONE),
        }
    if block == "Mixed_6a":
        return {
            "branch3x3": (384, None, THREE),
            "branch3x3dbl_1": (64, None, ONE),
            "branch3x3dbl_2": (96, "branch3x3dbl_1", THREE),
            "branch3x3dbl_3": (96, "branch3x3dbl_2", THREE),
        }
    if block.startswith("Mixed_6"):
        c = {"Mixed_6b": 128, "Mixed_6e": 192}.get(block, 160)
        return {
            "branch1x1": (192, None, ONE),
            "branch7x7_1": (c, None, ONE),
            "branch7x7_2": (c, "branch7x7_1", WIDE),
            "branch7x7_3": (192, "branch7x7_2", TALL),
            "branch7x7dbl_1": (c, None, ONE),
            "branch7x7dbl_2": (c, "branch7x7dbl_1", TALL),
            "branch7x7dbl_3": (c, "branch7x7dbl_2", WIDE),
            "branch7x7dbl_4": (c, "branch7x7dbl_3", TALL),
            "branch7x7dbl_5": (192, "branch7x7dbl_4", WIDE),
            "branch_pool": (192, None, ONE),
        }
    if block == "Mixed_7a":
        return {
            "branch3x3_1": (192, None, ONE),
            "branch3x3_2": (320, "branch3x3_1", THREE),
            "branch7x7x3_1": (192, None, ONE),
            "branch7x7x3_2": (192, "branch7x7x3_1", WIDE),
            "branch7x7x3_3": (192, "branch7x7x3_2", TALL),
            "branch7x7x3_4": (192, "branch7x7x3_3", THREE),
        }
    return {
        "branch1x1": (320, None, ONE),
        "branch3x3_1": (384, None, ONE),
        "branch3x3_2a": (384, "branch3x3_1", (1, 3)),
        "branch3x3_2b": (384, "branch3x3_1", (3, 1)),
        "branch3x3dbl_1": (448, None, ONE),
        "branch3x3dbl_2": (384, "branch3x3dbl_1", THREE),
        "branch3x3dbl_3a": (384, "branch3x3dbl_2", (1, 3)),
        "branch3x3dbl_3b": (384, "branch3x3dbl_2", (3, 1)),
        "branch_pool": (192, None, ONE),
    }


# Convolutions whose outputs a block joins; None is the pool of Mixed_6a and Mixed_7a.
OUTPUTS = {
    "": ("Conv2d_4a_3x3",),
    "Mixed_5": ("branch1x1", "branch5x5_2", "branch3x3dbl_3", "branch_pool"),
    "Mixed_6a": ("branch3x3", "branch3x3dbl_3", None),
    "Mixed_6": ("branch1x1", "branch7x7_3", "branch7x7dbl_5", "branch_pool"),
    "Mixed_7a": ("branch3x3_2", "branch7x7x3_4", None),
    "Mixed_7": (
        "branch1x1",
        "branch3x3_2a",
        "branch3x3_2b",
        "branch3x3dbl_3a",
        "branch3x3dbl_3b",
        "branch_pool",
    ),
}


def outputs_of(block):
    return OUTPUTS[block if block in OUTPUTS else block[:-1]]


def weights(rng, block, channels, shrink=1):
    """Random weights of a block with `channels` inputs, and its channels out."""
    out, convs = {}, convs_of(block)
    width = {name: -(-spec[0] // shrink) for name, spec in convs.items()}
    for name, (_, source, kernel) in convs.items():
        stem = f"{block}.{name}" if block else name
        fan = channels if source is None else width[source]
        n = width[name]
        scale = (2.0 / (fan * kernel[0] * kernel[1])) ** 0.5
        made = {
            "conv.weight": rng.normal(0.0, scale, size=(n, fan, *kernel)),
            "bn.weight": rng.normal(1.0, 0.2, size=(n,)),
            "bn.bias": rng.normal(0.0, 0.2, size=(n,)),
            "bn.running_mean": rng.normal(0.0, 0.2, size=(n,)),
            "bn.running_var": rng.uniform(0.5, 2.0, size=(n,)),
        }
        out |= {f"{stem}.{k}": np.asarray(v, np.float32) for k, v in made.items()}
    joined = sum(channels if n is None else width[n] for n in outputs_of(block))
    return out, joined


def windows(x, kernel, stride, padding, fill=0.0):
    pad = ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2)
    x = np.pad(x, pad, constant_values=fill)
    return sliding_window_view(x, kernel, (2, 3))[:, :, ::stride, ::stride]


def maximum(x, stride, padding=0):
    return windows(x, (3, 3), stride, (padding,) * 2, -np.inf).max((4, 5))


def mean(x):
    """Over the pixels that are there: the padding counts as not a number."""
    return np.nanmean(windows(x, (3, 3), 1, (1, 1), np.nan), (4, 5))


def run(given, block, x):
    """The block's output for ``x [n, C, H, W]`` in float64."""

    def conv(name, x, stride=1, padding=(0, 0)):
        stem = f"{block}.{name}" if block else name
        w = {k: given[f"{stem}.{k}"].astype(np.float64) for k in (
            "conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"
        )}  # fmt: skip
        kernel = w["conv.weight"]
        y = windows(x, kernel.shape[2:], stride, padding)
        y = np.einsum("nchwij,ocij->nohw", y, kernel)
        g, b, m, v = (
            w[k][:, None, None]
            for k in ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
        )
        return np.maximum(g * (y - m) / np.sqrt(v + 0.001) + b, 0.0)

    if block == "":
        x = conv("Conv2d_1a_3x3", x, 2)
        x = conv("Conv2d_2b_3x3", conv("Conv2d_2a_3x3", x), 1, (1, 1))
        x = conv("Conv2d_3b_1x1", maximum(x, 2))
        return maximum(conv("Conv2d_4a_3x3", x), 2)
    out = {}
    if block in ("Mixed_6a", "Mixed_7a"):
        out[None] = maximum(x, 2)
        last = {"branch3x3", "branch3x3dbl_3", "branch3x3_2", "branch7x7x3_4"}
    else:
        last = set()
    for name, (_, source, kernel) in convs_of(block).items():
        value = x if source is None else out[source]
        if name == "branch_pool":
            value = maximum(x, 1, 1) if block == "Mixed_7c" else mean(x)
        if name in last:
            out[name] = conv(name, value, 2)
        else:
            out[name] = conv(name, value, 1, (kernel[0] // 2, kernel[1] // 2))
    return np.concatenate([out[name] for name in outputs_of(block)], 1)
