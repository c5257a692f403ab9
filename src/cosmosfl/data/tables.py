"""Tables of numbers with a column of labels: ``train.csv`` and ``test.csv``."""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from cosmosfl.data.sets import FloatArray
from cosmosfl.data.splits import Contents, Labels, Split

if TYPE_CHECKING:
    from cosmosfl.data.layouts import Expected

SUFFIXES = (".csv", ".csv.gz")
ROWS = 4096
"""Rows in a block."""
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class TableLayout:
    """Two files with a header: one column is called ``label``, all others are features and hold numbers."""

    train: Path
    test: Path

    @property
    def files(self) -> Sequence[Path]:
        """Both files."""
        return self.train, self.test

    def read(self, expected: Expected) -> Contents:
        """Read the labels, and prepare to read the features, which the training file names and orders."""
        names, label_columns = _header(self.train), expected.label_columns
        column = next((name for name in label_columns if name in names), None)
        if column is None:
            wanted = " or ".join(repr(name) for name in label_columns)
            raise ValueError(f"{self.train}: columns {_some(names)}; expected one of labels, {wanted}")
        features = [name for name in names if name != column]
        if not features:
            raise ValueError(f"{self.train}: a column of labels and no other; expected features")
        train, test = (_split(path, column, features) for path in self.files)
        return Contents(train, test, None, tuple(features))


def _split(path: Path, column: str, features: Sequence[str]) -> Split:
    names = _header(path)
    if sorted(names) != sorted([column, *features]):
        missing = sorted({column, *features} - set(names))
        more = sorted(set(names) - {column, *features})
        what = f"without {_some(missing)}" if missing else f"with {_some(more)}"
        raise ValueError(f"{path}: a table {what}; expected the columns of the training table, each once")
    order, at = [names.index(name) for name in features], names.index(column)
    labels = []
    for line, row in _rows(path, len(names)):
        if not row[at]:
            raise ValueError(f"{path}, line {line}: no label; expected one in every row")
        labels.append(_label(row[at]))

    def blocks() -> Iterator[FloatArray]:
        block: list[list[float]] = []
        for line, row in _rows(path, len(names)):
            block.append([_number(row[i], path, line, names[i]) for i in order])
            if len(block) == ROWS:
                yield np.array(block, np.float32)
                block = []
        if block:
            yield np.array(block, np.float32)

    return Split(Labels(str(path), np.array(labels, np.str_)), (len(features),), blocks, np.float32)


def _header(path: Path) -> list[str]:
    with _opened(path) as file:
        names = [name.strip() for name in next(csv.reader(file), [])]
    if not names or "" in names or len(set(names)) < len(names):
        raise ValueError(f"{path}: the first line is {_some(names)}; expected a name for each column, no two alike")
    return names


def _rows(path: Path, width: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of each line after the header, and its cells; empty lines are left out."""
    with _opened(path) as file:
        reader = csv.reader(file)
        next(reader)
        for row in reader:
            if len(row) not in (0, width):
                raise ValueError(f"{path}, line {reader.line_num}: {len(row)} cells; expected {width}")
            if row:
                yield reader.line_num, [cell.strip() for cell in row]


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """Open a table; what is said about a broken one becomes an error that names it."""
    packed = path.suffix.lower() == ".gz"
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig", newline="")
            if packed
            else path.open(encoding="utf-8-sig", newline="") as file
        ):
            yield file
    except (UnicodeDecodeError, csv.Error, EOFError, zlib.error, gzip.BadGzipFile) as error:
        what = "gzip-compressed table in UTF-8" if packed else "table in UTF-8"
        raise ValueError(f"{path}: not a readable {what} ({error})") from error


def _label(cell: str) -> str:
    """Return a label as it is, but whole numbers in one way, for some programs write 1 as 1.0."""
    try:
        value = float(cell)
    except ValueError:
        return cell
    return str(int(value)) if math.isfinite(value) and value == int(value) else cell


def _number(cell: str, path: Path, line: int, column: str) -> float:
    try:
        value = math.nan if "_" in cell else float(cell)  # Python reads 1_000
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or abs(value) > LARGEST:
        raise ValueError(f"{path}, line {line}, column {column!r}: {cell!r}; expected a finite number")
    return value


def _some(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:8]) + (", ..." if len(names) > 8 else "") or "empty"
