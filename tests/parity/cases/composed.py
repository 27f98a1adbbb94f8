"""rCM and SANA-Sprint."""
