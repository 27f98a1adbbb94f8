"""Maps between any two times."""
