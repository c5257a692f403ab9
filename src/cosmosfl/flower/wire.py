"""Messages of a method as Flower's records, and back; nothing is trusted on arrival.

A message is a `flwr.app.RecordDict` of up to four records: ``about`` (who, which federation, which round), ``numbers``
and ``arrays`` (the fields of a `cosmosfl.protocol.Message`), and ``metrics``. What a method's message may hold is what
its class says: another field, a field of another kind or a missing one is an error, and so is an array that is not what
its header says. Contents (shapes, finite values, sums) are checked by the method, as in one process.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import fields
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from cosmosfl.evaluation.metrics import Measurement, Moment
from cosmosfl.protocol import InvalidMessageError, Message

PROTOCOL = 1
"""Version of what is on the wire. Parties with another one refuse each other."""
ABOUT, NUMBERS, ARRAYS, METRICS = "about", "numbers", "arrays", "metrics"
OWN_MOMENTS: tuple[Moment, ...] = ("local", "client_after_fit", "client")
"""What a client can measure: the server's models are not there."""
Scalar = int | float | str | bool
Content = TypeVar("Content", bound=Message)


def encode(
    message: Message | None, about: Mapping[str, Scalar], metrics: list[Measurement] | None = None
) -> RecordDict:
    """Return a message, what it is about, and measurements, as Flower's records."""
    numbers: dict[str, Scalar] = {}
    arrays: dict[str, Array] = {}
    for field in fields(message) if message is not None else ():
        match value := getattr(message, field.name):
            case None:
                pass
            case np.ndarray():
                arrays[field.name] = Array(np.ascontiguousarray(value))
            case int() | float() | str():
                numbers[field.name] = value
            case _:
                raise TypeError(
                    f"{type(message).__name__}.{field.name}: {type(value).__name__}; expected what federations over "
                    "Flower exchange: arrays, numbers, strings"
                )
    content: dict[str, Any] = {ABOUT: ConfigRecord({"protocol": PROTOCOL, **about})}
    if message is not None:
        content |= {NUMBERS: ConfigRecord({**numbers}), ARRAYS: ArrayRecord({**arrays})}
    if metrics:
        columns: dict[str, list[float]] = {
            m.moment: [float(m.round), m.top1, m.top5, float(m.samples)] for m in metrics
        }
        content[METRICS] = MetricRecord({**columns})
    return RecordDict(content)


def decode(content: RecordDict, kind: type[Content], source: str, limit: int) -> Content:
    """Return the message that records hold.

    Parameters
    ----------
    kind
        What it has to be.
    source
        Who sent it, for the errors: ``"client 'north'"``.
    limit
        Largest size of all arrays together, in bytes.

    Raises
    ------
    InvalidMessageError
        If it is anything else.
    """
    numbers, arrays = content.get(NUMBERS), content.get(ARRAYS)
    if not isinstance(numbers, ConfigRecord) or not isinstance(arrays, ArrayRecord):
        raise InvalidMessageError(f"{source}: no {kind.__name__} in the message; found {sorted(content) or 'nothing'}")
    if (size := sum(len(array.data) for array in arrays.values())) > limit:
        raise InvalidMessageError(f"{source}: {size:,} bytes; expected at most {limit:,}")
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    if unknown := sorted({*numbers, *arrays} - set(names)):
        raise InvalidMessageError(f"{source}: {', '.join(unknown)}; a {kind.__name__} holds {', '.join(names)} only")
    values: dict[str, Any] = {}
    for name in names:
        if name in arrays:
            values[name] = read_array(arrays[name], f"{source}: {name}")
        elif name in numbers:
            values[name] = numbers[name]
        elif NoneType in get_args(hints[name]):
            values[name] = None
        else:
            raise InvalidMessageError(f"{source}: {name} is missing; a {kind.__name__} holds {', '.join(names)}")
        if hints[name] in (int, float, str) and type(values[name]) is not hints[name]:
            found = type(values[name]).__name__
            raise InvalidMessageError(f"{source}: {name}: {found}; expected {hints[name].__name__}")
    return kind(**values)


def read_array(array: Array, source: str) -> npt.NDArray[Any]:
    """Return an array of numbers, after a look at its header: no pickle, no more memory than has come.

    Raises
    ------
    InvalidMessageError
        If it is anything else.
    """
    buffer = io.BytesIO(array.data)
    try:
        version = np.lib.format.read_magic(buffer)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = read_header[version](buffer)
    except (ValueError, KeyError) as error:
        raise InvalidMessageError(f"{source}: no array of numpy; {error}") from None
    if dtype.kind not in "biuf":
        raise InvalidMessageError(f"{source}: dtype {dtype}; expected numbers")
    count, start = int(np.prod(shape, dtype=object)), buffer.tell()
    if len(array.data) - start != count * dtype.itemsize:
        raise InvalidMessageError(
            f"{source}: {len(array.data) - start:,} bytes; expected {count * dtype.itemsize:,} for {dtype} {shape}"
        )
    values = np.frombuffer(array.data, dtype, count, start).reshape(shape, order="F" if fortran else "C")
    return values.copy()  # what comes from a buffer is read-only


def about(content: RecordDict, source: str) -> dict[str, Scalar]:
    """Return what a message says of itself.

    Raises
    ------
    InvalidMessageError
        If it says nothing, or its sender speaks another version.
    """
    record = content.get(ABOUT)
    if not isinstance(record, ConfigRecord):
        raise InvalidMessageError(f"{source}: the message does not say what it is about; is it from cosmosfl?")
    if record.get("protocol") != PROTOCOL:
        raise InvalidMessageError(
            f"{source}: protocol version {record.get('protocol')!r}; expected {PROTOCOL}: all parties need a "
            "cosmosfl of the same protocol version"
        )
    return {key: value for key, value in record.items() if isinstance(value, Scalar)}


def text(about: Mapping[str, Scalar], key: str, source: str) -> str:
    """Return a text of what a message says of itself; see `whole` for the errors."""
    if not isinstance(value := about.get(key), str):
        raise InvalidMessageError(f"{source}: {key}: {value!r}; expected a text")
    return value


def whole(about: Mapping[str, Scalar], key: str, source: str) -> int:
    """Return a whole number of at least 0.

    Raises
    ------
    InvalidMessageError
        If it is missing or something else.
    """
    value = about.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidMessageError(f"{source}: {key}: {value!r}; expected a whole number of at least 0")
    return value


def measurements(content: RecordDict, client: str, latest: int) -> list[Measurement]:
    """Return what a client measured of its own models, if it says; in rounds up to `latest`.

    Raises
    ------
    InvalidMessageError
        If it is not that.
    """
    record = content.get(METRICS)
    if record is None:
        return []
    result = []
    for moment, values in record.items() if isinstance(record, MetricRecord) else ():
        numbers = values if isinstance(values, list) else []
        if moment not in OWN_MOMENTS or len(numbers) != 4 or not np.isfinite(numbers).all():
            break
        round, top1, top5, samples = numbers
        if not (0 <= top1 <= top5 <= 100 and samples >= 1 and 0 <= round <= latest):
            break
        result.append(Measurement(int(round), moment, client, float(top1), float(top5), int(samples)))
    if len(result) != len(record):
        raise InvalidMessageError(f"client {client!r}: metrics: {dict(record)!r}; expected moments with four numbers")
    return result
