"""Training steps against the official code of a paper, on this machine.

    python -m benchmarks.peers.meanflow --peer=FOLDER
    python -m benchmarks.peers.shortcut --peer=FOLDER
    python -m benchmarks.peers.imf --peer=FOLDER
    python -m benchmarks.peers.drifting --peer=FOLDER
    python -m benchmarks.peers.fastgen --peer=FOLDER --peer-python=PYTHON

The official code is not part of this repository: clone what a file names and say where
it is. Both sides have a DiT-S on 32x32x4 latents, batch 8, float32, the same optimizer
and averages, and take one update of random data. Where the catalogue does not have the
method yet, what comes next to it is measured for an operation, see the file.
"""
