"""A model in one piece: all arrays of a message travel as one.

Flower moves every array as an object of its own, with a signed HTTPS request for each, on every
node, in both directions. A model of forty arrays costs its SuperLink forty times the requests.
"""

import math
from collections.abc import Iterable

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from pluralllm_fl.errors import FederationError
from pluralllm_fl.wire.records import to_arrays, to_record

# Delete this file when Flower moves a record as one object.
Packings = dict[int, tuple[ArrayRecord, ConfigRecord]]

_PACKED, _LAYOUT = "packed", "layout/"
_DTYPES = {
    *("float16", "float32", "float64", "bool"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
}


def packed(content: RecordDict, known: Packings | None = None) -> RecordDict:
    """Return the records with every array record packed into one array of bytes, (bytes,).

    Parameters
    ----------
    content : RecordDict
    known : dict, optional
        Filled and read by the identity of array records: a strategy sends the same record to
        every node, so that it is packed once. Valid as long as those records live.
    """
    known = {} if known is None else known
    result = RecordDict()
    for key, record in content.items():
        if not isinstance(record, ArrayRecord):
            result[key] = record
            continue
        if id(record) not in known:
            known[id(record)] = _pack(record)
        result[key], result[_LAYOUT + key] = known[id(record)]
    return result


def _pack(record: ArrayRecord) -> tuple[ArrayRecord, ConfigRecord]:
    arrays = to_arrays(record)
    parts = [np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in arrays.values()]
    layout = ConfigRecord(
        {
            "names": list(arrays),
            "dtypes": [str(a.dtype) for a in arrays.values()],
            "shapes": [",".join(map(str, a.shape)) for a in arrays.values()],
        }
    )
    return to_record({_PACKED: np.concatenate([np.zeros(0, np.uint8), *parts])}), layout


def unpacked(content: RecordDict) -> RecordDict:
    """Undo `packed`; records that are not packed stay as they are.

    Raises
    ------
    FederationError
        If layout and bytes do not fit. Nothing larger than the bytes is ever allocated.
    """
    result = RecordDict()
    for key, record in content.items():
        if key.startswith(_LAYOUT):
            continue
        layout = content.config_records.get(_LAYOUT + key)
        if isinstance(record, ArrayRecord) and layout is not None:
            try:
                result[key] = _restored(record, layout)
            except (KeyError, TypeError, ValueError) as error:
                raise FederationError(f"record '{key}' cannot be unpacked ({error})") from None
        else:
            result[key] = record
    return result


def in_one_piece(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Unpack what a node receives and pack what it answers: a mod of its ClientApp."""
    if message.has_content():
        message.content = unpacked(message.content)
    reply = call_next(message, context)
    if reply.has_content():
        reply.content = packed(reply.content)
    return reply


def _restored(record: ArrayRecord, layout: ConfigRecord) -> ArrayRecord:
    [(name, array)] = record.items()
    if name != _PACKED or array.dtype != "uint8" or len(array.shape) != 1:
        raise ValueError("it is not one array of bytes")
    data = array.numpy().tobytes()
    names, dtypes, shapes = (_texts(layout[k]) for k in ("names", "dtypes", "shapes"))
    arrays: dict[str, Array] = {}
    start = 0
    for name, dtype, text in zip(names, dtypes, shapes, strict=True):
        if dtype not in _DTYPES or name in arrays:
            raise ValueError(f"array {name} has dtype {dtype} or is there twice")
        shape = tuple(int(size) for size in text.split(",") if size)
        count = math.prod(shape)
        end = start + count * np.dtype(dtype).itemsize
        if min(shape, default=0) < 0 or end > len(data):
            raise ValueError(f"array {name} does not lie within the {len(data)} bytes")
        arrays[name] = Array(np.frombuffer(data, dtype, count, start).reshape(shape))
        start = end
    if start != len(data):
        raise ValueError(f"{len(data) - start} bytes are left over")
    return ArrayRecord(arrays)


def _texts(value: object) -> Iterable[str]:
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise TypeError("its layout is no list of texts")
    return value
