"""Restoration of degraded images."""
