"""Operations that networks share and that decide their speed and memory."""

from distilljax.kernels.attention import IMPLEMENTATIONS, attention

__all__ = ["IMPLEMENTATIONS", "attention"]
