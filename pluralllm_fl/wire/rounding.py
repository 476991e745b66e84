"""Model updates as they travel from node to server with ``update-dtype = "bfloat16"``.

The new model minus the received one is a small number beside a large one, so it bears rounding that
the model itself would not. float32 arrays are flattened in the order of their names into one
vector; other arrays travel as they are. Both sides compute in float64 without sums, so every
machine gets the same bits.
"""

from collections.abc import Mapping

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable
from numpy.typing import NDArray

from pluralllm_fl.arrays import Arrays
from pluralllm_fl.config import RunConfig
from pluralllm_fl.wire.messages import ARRAYS
from pluralllm_fl.wire.reading import Layout, layout_of, ordered, read_arrays
from pluralllm_fl.wire.records import to_arrays, to_record

_UPDATE = "update/bfloat16"
_NAN = 0x7FC0


def rounded(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Round what a node trained if the run says so: a mod of its ClientApp."""
    reply = call_next(message, context)
    training = message.metadata.message_type.startswith(MessageType.TRAIN)
    if training and reply.has_content() and context.run_config["update-dtype"] == "bfloat16":
        received = to_arrays(message.content.array_records[ARRAYS])
        trained = to_arrays(reply.content.array_records[ARRAYS])
        reply.content[ARRAYS] = to_record(encode(trained, received))
    return reply


def received(record: ArrayRecord, base: Arrays, config: RunConfig) -> Arrays:
    """Return the model that a node trained, in the base's order: the server's end.

    Raises
    ------
    BadReply
        If the arrays are not what the run config says.
    """
    if config.update_dtype == "float32":
        return read_arrays(record, layout_of(base))
    return ordered(decode(read_arrays(record, layout(base)), base), layout_of(base))


def layout(reference: Mapping[str, NDArray[np.generic]]) -> dict[str, Layout]:
    """Return names, shapes and dtypes of what `encode` makes of an update to ``reference``."""
    wire = {n: Layout(v.shape, v.dtype) for n, v in reference.items() if v.dtype != np.float32}
    values = sum(reference[name].size for name in _compressed(reference))
    return wire | {_UPDATE: Layout((values,), np.dtype(np.uint16))}


def encode(new: Arrays, reference: Arrays) -> Arrays:
    """Encode ``new - reference``, the trained minus the received model, as `layout` describes.

    Values are rounded to nearest even. NaN and infinite values arrive as such or as NaN.
    """
    wire = {name: value for name, value in new.items() if reference[name].dtype != np.float32}
    update = _flat(new, reference) - _flat(reference, reference)
    return wire | {_UPDATE: _to_bfloat16(update)}


def decode(encoded: Arrays, reference: Arrays) -> Arrays:
    """Return the new model, in the reference's order, from arrays that fit `layout`.

    Overflow gives infinite values.
    """
    names = _compressed(reference)
    ends = np.cumsum([reference[name].size for name in names], dtype=np.int64)
    with np.errstate(over="ignore", invalid="ignore"):
        bits = encoded[_UPDATE].astype(np.uint32) << 16
        update = bits.view(np.float32).astype(np.float64)
        model = (_flat(reference, reference) + update).astype(np.float32)
    parts = dict(zip(names, np.split(model, ends[:-1]), strict=True)) if names else {}
    return {
        name: parts[name].reshape(value.shape) if name in parts else encoded[name]
        for name, value in reference.items()
    }


def _compressed(reference: Mapping[str, NDArray[np.generic]]) -> list[str]:
    return sorted(name for name, value in reference.items() if value.dtype == np.float32)


def _flat(arrays: Arrays, reference: Arrays) -> NDArray[np.float64]:
    parts = [arrays[name].ravel() for name in _compressed(reference)]
    return np.concatenate([np.zeros(0), *parts]).astype(np.float64, copy=False)


def _to_bfloat16(update: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Round to nearest even; the bits of a bfloat16 are the upper half of a float32's."""
    with np.errstate(over="ignore"):
        values = update.astype(np.float32)
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), _NAN, rounded).astype(np.uint16)
