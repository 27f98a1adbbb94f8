"""Distillation joined with a reward."""
