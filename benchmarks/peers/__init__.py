"""Training steps against the official JAX code of a paper, on this machine.

    python -m benchmarks.peers.meanflow --peer=FOLDER
    python -m benchmarks.peers.shortcut --peer=FOLDER

The official code is not part of this repository: clone what a file names and say where
it is. Both sides have the same architecture (DiT-S on 32x32x4 latents, batch 8,
float32), optimizer and averages, and take one update of random data.
"""
