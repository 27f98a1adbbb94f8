"""Networks as pure functions of their parameters, and the adapter that makes them."""

from distilljax.runtime.extras import needed

with needed("distilljax.networks"):
    from distilljax.networks.adapter import functionalize
    from distilljax.networks.dit import dit
    from distilljax.networks.embeddings import Frequencies
    from distilljax.networks.heads import head, log_weight, policy, taps_shape
    from distilljax.networks.lora import LoRA, lora, with_lora
    from distilljax.networks.mlp import MLP, mlp
    from distilljax.networks.unet import unet

__all__ = [
    "LoRA",
    "MLP",
    "Frequencies",
    "dit",
    "functionalize",
    "head",
    "log_weight",
    "lora",
    "mlp",
    "policy",
    "taps_shape",
    "unet",
    "with_lora",
]

# Floors that modules here may import.
IMPORTS = ("runtime", "diffusion", "core")
