"""pi-Flow."""
