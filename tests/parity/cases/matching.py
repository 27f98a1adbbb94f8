"""Distribution matching, adversarial and restoration."""
