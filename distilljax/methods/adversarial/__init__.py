"""Students that fool a discriminator."""
