"""Methods that are compositions of others."""
