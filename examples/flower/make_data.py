"""Write directories for three clinics, with digits that ship with scikit-learn: ``python make_data.py DIR``.

Clinic north and south see mostly the digits 0 to 4, clinic east mostly 5 to 9; each has few of them, and no labels of
the public ones.
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

CLINICS = {"north": range(5), "south": range(5), "east": range(5, 10)}
TRAIN, TEST, PUBLIC = 60, 150, 400


def main(directory: Path) -> None:
    """Write the files."""
    rng = np.random.default_rng(0)
    inputs, labels = load_digits(return_X_y=True)
    inputs = (inputs / 16).astype(np.float32)
    order = rng.permutation(len(labels))
    public, rest = order[:PUBLIC], order[PUBLIC:]
    directory.mkdir(parents=True, exist_ok=True)
    np.savez(directory / "public.npz", inputs=inputs[public])
    for clinic, classes in CLINICS.items():
        own = directory / clinic
        own.mkdir(exist_ok=True)
        np.savez(own / "public.npz", inputs=inputs[public])
        often = np.isin(labels[rest], list(classes))
        for file, n in (("train", TRAIN), ("test", TEST)):
            chance = np.where(often, 0.95, 0.05)
            drawn = rng.choice(rest, n, replace=False, p=chance / chance.sum())
            keep = ~np.isin(rest, drawn)  # no sample is in two files
            rest, often = rest[keep], often[keep]
            np.savez(own / f"{file}.npz", inputs=inputs[drawn], labels=labels[drawn])
    print(f"{directory}: {', '.join(CLINICS)} and public.npz")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
