"""Model updates as they travel from node to server with ``update-dtype = "bfloat16"``.

The new model minus the received one is a small number beside a large one, so it bears rounding that
the model itself would not. float32 arrays are flattened in the order of their names into one
vector; other arrays travel as they are. Both sides compute in float64 without sums, so every
machine gets the same bits.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pluralllm_fl.arrays import Arrays
from pluralllm_fl.wire.reading import Layout

KEY, OFF = "update-dtype", "float32"
_UPDATE = "update/bfloat16"
_NAN = 0x7FC0


def layout(arrays: Mapping[str, Layout]) -> dict[str, Layout]:
    """Return names, shapes and dtypes of what `encode` makes of a model of this layout.

    All values of its float32 arrays become one array of uint16, (values,).
    """
    kept = {name: one for name, one in arrays.items() if one.dtype != np.float32}
    values = sum(math.prod(arrays[name].shape) for name in _compressed(arrays))
    return kept | {_UPDATE: Layout((values,), np.dtype(np.uint16))}


def encode(arrays: Arrays, received: Arrays) -> Arrays:
    """Encode ``arrays - received``, the trained minus the received model, as `layout` describes.

    Arrays may have any shape, the same in both. Values are rounded to nearest even. NaN and
    infinite values arrive as such or as NaN.
    """
    names = _compressed(received)
    kept = {name: value for name, value in arrays.items() if name not in names}
    update = _flat(arrays, names) - _flat(received, names)
    return kept | {_UPDATE: _to_bfloat16(update)}


def decode(encoded: Arrays, received: Arrays) -> Arrays:
    """Return the trained model, in the received one's order, from arrays that fit `layout`.

    These may have any shape, which is that of the received one. Overflow gives infinite values.
    """
    names = _compressed(received)
    ends = np.cumsum([received[name].size for name in names], dtype=np.int64)
    with np.errstate(over="ignore", invalid="ignore"):
        bits = encoded[_UPDATE].astype(np.uint32) << 16
        update = bits.view(np.float32).astype(np.float64)
        model = (_flat(received, names) + update).astype(np.float32)
    parts = dict(zip(names, np.split(model, ends[:-1]), strict=True)) if names else {}
    return {
        name: parts[name].reshape(value.shape) if name in parts else encoded[name]
        for name, value in received.items()
    }


def _compressed(arrays: Mapping[str, NDArray[np.generic]] | Mapping[str, Layout]) -> list[str]:
    return sorted(name for name, value in arrays.items() if value.dtype == np.float32)


def _flat(arrays: Arrays, names: Sequence[str]) -> NDArray[np.float64]:
    parts = [arrays[name].ravel() for name in names]
    return np.concatenate([np.zeros(0), *parts]).astype(np.float64, copy=False)


def _to_bfloat16(update: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Round to nearest even; the bits of a bfloat16 are the upper half of a float32's."""
    with np.errstate(over="ignore"):
        values = update.astype(np.float32)
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), _NAN, rounded).astype(np.uint16)
