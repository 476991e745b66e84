"""Model updates as they travel from node to server: whole, as bfloat16, or as int8.

A node that owns a prototype sends no other. int8 goes with error feedback. The new model minus the
received one is a small number beside a large one, so it bears rounding that the model itself would
not. float32 arrays are flattened in the order of their names into one vector; other arrays travel
as they are. Both sides compute in float64 without sums, so every machine gets the same bits.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pluralllm_fl.federation.records import Arrays, update_norm
from pluralllm_fl.memory import OWNED

Residual = NDArray[np.float32]

# Values that share a scale; blocks end with their array. Smaller blocks fit outliers better,
# but 4 bytes of scale are to stay below 2% of the values.
BLOCK = 256
_BFLOAT16, _INT8, _SCALES = "update/bfloat16", "update/int8", "update/scales"
_LARGEST = 127
_BFLOAT16_NAN = 0x7FC0


class Layout(NamedTuple):
    """Shape and dtype that an array must have."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


def own(arrays: Arrays, prototype: int) -> Arrays:
    """Return views of what training of a prototype's group can change.

    Of arrays with an entry for each prototype that is one entry, shape (1, …); all others, and
    all of a model without prototypes, are whole.
    """
    mine = slice(prototype, prototype + 1)
    return {name: value[mine] if name in OWNED else value for name, value in arrays.items()}


def size(reference: Mapping[str, NDArray[np.generic]]) -> int:
    """Return the number of values in an update to ``reference``, and so in a residual."""
    return sum(reference[name].size for name in _compressed(reference))


def layout(reference: Mapping[str, NDArray[np.generic]], dtype: str) -> dict[str, Layout]:
    """Return names, shapes and dtypes of what `encode` makes of an update to ``reference``."""
    values = (size(reference),)
    wire = {n: Layout(v.shape, v.dtype) for n, v in reference.items() if v.dtype != np.float32}
    if dtype == "bfloat16":
        return wire | {_BFLOAT16: Layout(values, np.dtype(np.uint16))}
    scales = (len(_blocks(reference)),)
    return wire | {
        _INT8: Layout(values, np.dtype(np.int8)),
        _SCALES: Layout(scales, np.dtype(np.float32)),
    }


def encode(
    new: Arrays,
    reference: Arrays,
    dtype: str,
    residual: Residual | None = None,
    *,
    max_update_norm: float = 0.0,
) -> tuple[Arrays, Residual]:
    """Encode ``new - reference``.

    int8 has one scale for `BLOCK` values and error feedback: what rounding took from an update is
    added to the next one, so that errors do not add up over rounds (Seide et al. 2014;
    Karimireddy et al. 2019, arXiv 1901.09847). bfloat16 rounds to nearest even without
    feedback, which gains nothing there.

    Parameters
    ----------
    new, reference : dict of str to array
        The trained and the received model.
    residual : array of float32, optional
        The error carried over, from the last call; None: zeros.
    max_update_norm : float
        L2 norm above which the server drops the update; 0: no limit.

    Returns
    -------
    encoded : dict of str to array
        As described by `layout`. NaN and infinite values arrive as such or as NaN.
    residual : array of float32
        The error to carry over; empty for bfloat16. It is the given one if the server will drop
        the update, because then nothing arrives.
    """
    wire = {name: value for name, value in new.items() if reference[name].dtype != np.float32}
    before = _flat(reference, reference)
    update = _flat(new, reference) - before
    if dtype == "bfloat16":
        return wire | {_BFLOAT16: _to_bfloat16(update)}, np.zeros(0, np.float32)
    if residual is None:
        residual = np.zeros(update.size, np.float32)
    update += residual
    encoded = wire | dict(zip((_INT8, _SCALES), _to_int8(update, _blocks(reference)), strict=True))
    received = decode(encoded, reference, dtype)
    norm = update_norm(received, reference)
    if not np.isfinite(norm) or (max_update_norm and norm > max_update_norm):
        return encoded, residual
    # The server rounds when it adds, so the error is that of what it will have.
    arrived = _flat(received, reference) - before
    return encoded, (update - arrived).astype(np.float32)


def decode(encoded: Arrays, reference: Arrays, dtype: str) -> Arrays:
    """Return the new model, in the reference's order, from arrays that fit `layout`.

    Overflow gives infinite values.
    """
    names = _compressed(reference)
    ends = np.cumsum([reference[name].size for name in names], dtype=np.int64)
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "bfloat16":
            bits = encoded[_BFLOAT16].astype(np.uint32) << 16
            update = bits.view(np.float32).astype(np.float64)
        else:
            scales = np.repeat(encoded[_SCALES].astype(np.float64), _blocks(reference))
            update = encoded[_INT8].astype(np.float64) * scales
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


def _blocks(reference: Mapping[str, NDArray[np.generic]]) -> NDArray[np.int64]:
    """Return the number of values in each block."""
    lengths: list[int] = []
    for name in _compressed(reference):
        full, rest = divmod(reference[name].size, BLOCK)
        lengths += [BLOCK] * full + [rest] * bool(rest)
    return np.array(lengths, dtype=np.int64)


def _to_int8(
    update: NDArray[np.float64], lengths: NDArray[np.int64]
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return whole numbers and the scale of each block; a block with NaN has scale NaN."""
    starts = np.cumsum(lengths) - lengths
    largest = np.maximum.reduceat(np.abs(update), starts) if len(starts) else np.zeros(0)
    with np.errstate(over="ignore"):
        scales = (largest / _LARGEST).astype(np.float32)
    spread = np.repeat(scales.astype(np.float64), lengths)
    # A zero scale is a zero block, or one too small for float32.
    usable = (spread > 0) & np.isfinite(spread)
    ratios = np.divide(update, spread, out=np.zeros_like(update), where=usable)
    return np.rint(ratios).clip(-_LARGEST, _LARGEST).astype(np.int8), scales


def _to_bfloat16(update: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Round to nearest even; the bits of a bfloat16 are the upper half of a float32's."""
    with np.errstate(over="ignore"):
        values = update.astype(np.float32)
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), _BFLOAT16_NAN, rounded).astype(np.uint16)
