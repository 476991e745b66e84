"""Checks of one node's reply before any strategy sees it."""

import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from pluralllm_fl.evaluation.scores import EVALUATION_SPLITS
from pluralllm_fl.wire import rounding
from pluralllm_fl.wire.records import Arrays, to_record, update_norms
from pluralllm_fl.wire.rounding import Layout

TRAIN_KEYS = frozenset({"num-examples", "train-loss", "questions", "seconds"})
SCORE_KEYS = ("alignment", "alignment-offered", "low", "high", "uniform", "questions")
EVALUATE_KEYS = frozenset(
    {"num-examples"} | {f"{split}-{key}" for split in EVALUATION_SPLITS for key in SCORE_KEYS}
)
# No survey has more answers; a larger weight would silence every other group.
MAX_WEIGHT = 1e12
# A larger one would overflow the mean over groups.
MAX_LOSS = 1e12
_ROUNDING = 1e-6


class BadReply(Exception):  # noqa: N818 - a verdict on a reply, not an error of the program
    """A reply that must not be aggregated, with the reason."""


def train_reply(
    content: RecordDict,
    base: Arrays,
    *,
    weight_key: str,
    claims: Mapping[str, float],
    max_update_norm: float,
    update_dtype: str = "float32",
) -> tuple[RecordDict, dict[str, float]]:
    """Return a checked copy of a training reply, and the L2 norm of its update of every array.

    The copy holds decoded arrays in the order of the base.

    Stock strategies such as Krum and QFedAvg pair arrays by position, so order matters.

    Parameters
    ----------
    content : RecordDict
    base : dict of str to array
        The model that the node was sent.
    weight_key : str
        Name of the weight among the metrics.
    claims : mapping of str to float
        Metrics that must have this value if the reply holds them: what the node told before.
    max_update_norm : float
        Largest L2 norm of the difference to the base; 0: no limit.
    update_dtype : str
        With bfloat16 the reply holds an encoded update to the base.

    Raises
    ------
    BadReply
        For wrong records, names, shapes or dtypes, NaN or infinite values, an impossible weight
        or loss, another weight than the one claimed, or an update whose norm exceeds
        ``max_update_norm``.
    """
    if set(content.array_records) != {"arrays"}:
        raise BadReply(f"array records {sorted(content.array_records)} instead of ['arrays']")
    metrics = _metrics(content, ("train-loss", weight_key))
    weight = metrics[weight_key]
    if isinstance(weight, list) or not 0 < weight <= MAX_WEIGHT:
        raise BadReply(f"{weight_key} = {weight} is no possible weight")
    for key, value in claims.items():
        if metrics.get(key, value) != value:
            raise BadReply(f"{key} = {metrics[key]} instead of the {value:g} that the node told")
    if not abs(_number(metrics, "train-loss")) <= MAX_LOSS:
        raise BadReply(f"train-loss = {metrics['train-loss']} is no possible loss")
    received, expected = content.array_records["arrays"], _layout(base)
    if update_dtype == "float32":
        arrays = _arrays(received, expected)
    else:
        encoded = _arrays(received, rounding.layout(base))
        arrays = _ordered(rounding.decode(encoded, base), expected)
    norms = update_norms(arrays, base)
    norm = math.hypot(*norms.values())
    if max_update_norm and not norm <= max_update_norm:
        raise BadReply(f"update norm {norm:.4g} exceeds max-update-norm = {max_update_norm:g}")
    return RecordDict({"arrays": to_record(arrays), "metrics": metrics}), norms


def evaluate_reply(content: RecordDict) -> RecordDict:
    """Return a checked copy of an evaluation reply.

    Raises
    ------
    BadReply
        For wrong records, missing keys, NaN or infinite values, counts that are none, or scores
        of a split with questions that no distribution can have.
    """
    metrics = _metrics(content, EVALUATE_KEYS)
    for split in EVALUATION_SPLITS:
        _check_scores(metrics, split)
    if not 0 < _number(metrics, "num-examples") <= MAX_WEIGHT:
        raise BadReply(f"num-examples = {metrics['num-examples']} is no possible weight")
    return RecordDict({"metrics": metrics})


def odd_keys(replies: Mapping[str, RecordDict], expected: Iterable[str]) -> dict[str, str]:
    """Find replies whose metric keys differ from most others': a reason by group.

    Stock aggregation raises unless all replies have the same keys. In a tie the keys of our own
    nodes win.
    """
    shapes = {group: _shape(content["metrics"]) for group, content in replies.items()}
    if len(set(shapes.values())) <= 1:
        return {}
    ours = frozenset((key, 0) for key in expected)
    counts = Counter(shapes.values())
    usual = max(counts, key=lambda s: (counts[s], -len(s ^ ours), sorted(s)))
    return {
        group: f"metrics {sorted({key for key, _ in shape ^ usual})} differ from the other nodes'"
        for group, shape in shapes.items()
        if shape != usual
    }


def _metrics(content: RecordDict, required: Iterable[str]) -> MetricRecord:
    if set(content.metric_records) != {"metrics"}:
        raise BadReply(f"metric records {sorted(content.metric_records)} instead of ['metrics']")
    metrics = content.metric_records["metrics"]
    if missing := sorted(set(required) - set(metrics)):
        raise BadReply(f"metrics lack {', '.join(missing)}")
    for key, value in metrics.items():
        if not all(math.isfinite(x) for x in (value if isinstance(value, list) else [value])):
            raise BadReply(f"metric {key} = {value} is not finite")
    return metrics.copy()


def _check_scores(metrics: MetricRecord, split: str) -> None:
    alignment, offered, low, high, uniform, questions = (
        _number(metrics, f"{split}-{key}") for key in SCORE_KEYS
    )
    if not (0 <= questions <= MAX_WEIGHT and questions.is_integer()):
        raise BadReply(f"{split}-questions = {questions:g} is no count")
    if not questions:
        return
    above_zero = {"alignment": alignment, "alignment-offered": offered, "uniform": uniform}
    for name, value in above_zero.items():
        # Two distributions never have alignment 0, and fairness divides by the mean.
        if not 0 < value <= 1 + _ROUNDING:
            raise BadReply(f"{split}-{name} = {value:g} is not above 0 and at most 1")
    if not -_ROUNDING <= low <= high + _ROUNDING <= 1 + 2 * _ROUNDING:
        raise BadReply(f"{split}-low = {low:g} and {split}-high = {high:g} are no interval in 0..1")


def _number(metrics: MetricRecord, key: str) -> float:
    value = metrics[key]
    if isinstance(value, list):
        raise BadReply(f"metric {key} is a list")
    return float(value)


def _layout(arrays: Arrays) -> dict[str, Layout]:
    return {name: Layout(value.shape, value.dtype) for name, value in arrays.items()}


def _arrays(record: ArrayRecord, expected: Mapping[str, Layout]) -> Arrays:
    _check_names(record, expected)
    return _ordered({name: _array(name, record[name], expected[name]) for name in record}, expected)


def _array(name: str, array: Array, expected: Layout) -> NDArray[np.generic]:
    """Decode one array; memory is taken only for the expected shape and dtype."""
    try:
        shape, dtype = _header(array.data)
    except Exception as error:  # a node can send any bytes
        raise BadReply(f"arrays cannot be decoded ({error})") from None
    _check_layout(name, Layout(shape, dtype), expected)
    try:
        return np.asarray(array.numpy())
    except Exception as error:
        raise BadReply(f"arrays cannot be decoded ({error})") from None


def _header(data: bytes) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Return the shape and dtype that the bytes claim."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("another format than numpy's 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError("pickled objects")
    return shape, dtype


def _ordered(arrays: Arrays, expected: Mapping[str, Layout]) -> Arrays:
    """Return the arrays in the expected order, every one checked."""
    _check_names(arrays, expected)
    for name, value in arrays.items():
        _check_layout(name, Layout(value.shape, value.dtype), expected[name])
        if not np.isfinite(value).all():
            raise BadReply(f"array {name} holds NaN or infinite values")
    return {name: arrays[name] for name in expected}


def _check_names(names: Iterable[str], expected: Mapping[str, Layout]) -> None:
    if odd := sorted(set(names) ^ set(expected)):
        raise BadReply(f"array names differ from the expected ones: {', '.join(odd[:5])}")


def _check_layout(name: str, found: Layout, expected: Layout) -> None:
    if found.shape != expected.shape:
        raise BadReply(f"array {name} has shape {found.shape} instead of {expected.shape}")
    if found.dtype != expected.dtype:
        raise BadReply(f"array {name} has dtype {found.dtype} instead of {expected.dtype}")


def _shape(metrics: object) -> frozenset[tuple[str, int]]:
    assert isinstance(metrics, MetricRecord)
    return frozenset((k, len(v) if isinstance(v, list) else 0) for k, v in metrics.items())
