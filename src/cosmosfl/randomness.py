"""Random streams keyed by what they are for.

Every stream derives from the one seed of the run and a key such as ``("fit", "hospital-a", 3)``. Results therefore
do not depend on which client is stepped first, on the number of workers, or on whether another part of the program
draws one number more than it used to.
"""

from __future__ import annotations

import hashlib

import numpy as np


def stream(seed: int, *key: str | int) -> np.random.Generator:
    """Return the random generator that belongs to `key` under `seed`.

    Parameters
    ----------
    seed
        The seed of the run, a non-negative integer.
    *key
        What the stream is for. ``("fit", "a", 1)`` and ``("fit", "a1")`` are different streams.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, dtype="<u4").tolist()])


def draw_seed(rng: np.random.Generator) -> int:
    """Draw a 31-bit seed for a library that wants an integer (torch, scikit-learn, boosting)."""
    return int(rng.integers(2**31))
