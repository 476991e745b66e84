"""Checks of one node's reply before any strategy sees it."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from flwr.app import MetricRecord, RecordDict

from pluralllm_fl.arrays import Arrays
from pluralllm_fl.config import RunConfig
from pluralllm_fl.reward import Mode
from pluralllm_fl.wire.changes import in_use, received
from pluralllm_fl.wire.messages import (
    ARRAYS,
    EVALUATE_KEYS,
    LOSS,
    METRICS,
    REWARDS,
    WEIGHT,
    parse_scores,
)
from pluralllm_fl.wire.reading import BadReply
from pluralllm_fl.wire.records import to_record, update_norms

# No survey has more answers; a larger weight would silence every other group.
MAX_WEIGHT = 1e12
# A larger one would overflow the mean over groups.
MAX_LOSS = 1e12
# No two logits of a sound model are further apart; a mean over groups would be lost in more.
MAX_LOGIT = 1e4
# What a reward can be: log p, p minus a share, or a logit among others.
REWARD_RANGES: Mapping[Mode, tuple[float, float]] = {
    "likelihood": (-MAX_LOGIT, 0.0),
    "deficit": (-1.0, 1.0),
    "centred": (-MAX_LOGIT, MAX_LOGIT),
}


def train_reply(
    content: RecordDict,
    base: Arrays,
    *,
    weight_key: str,
    claims: Mapping[str, float],
    config: RunConfig,
) -> tuple[RecordDict, dict[str, float]]:
    """Return a checked copy of a training reply, and the L2 norm of its update of every array.

    The copy holds decoded arrays in the order of the base.

    Stock strategies such as Krum and QFedAvg pair arrays by position, so order matters.

    Parameters
    ----------
    content : RecordDict
    base : dict of str to ndarray, any shape
        The model that the node was sent.
    weight_key : str
        Name of the weight among the metrics.
    claims : mapping of str to float
        Metrics that must have this value if the reply holds them: what the node told before.
    config : RunConfig
        How updates travel, and ``max-update-norm``: their largest L2 norm; 0: no limit.

    Raises
    ------
    BadReply
        For wrong records, names, shapes or dtypes, NaN or infinite values, an impossible weight
        or loss, another weight than the one claimed, or an update whose norm exceeds
        ``max_update_norm``.
    """
    if set(content.array_records) != {ARRAYS}:
        raise BadReply(f"array records {sorted(content.array_records)} instead of ['{ARRAYS}']")
    metrics = _metrics(content, (LOSS, weight_key))
    weight = metrics[weight_key]
    if isinstance(weight, list) or not 0 < weight <= MAX_WEIGHT:
        raise BadReply(f"{weight_key} = {weight} is no possible weight")
    for key, value in claims.items():
        if metrics.get(key, value) != value:
            raise BadReply(f"{key} = {metrics[key]} instead of the {value:g} that the node told")
    if not abs(_number(metrics, LOSS)) <= MAX_LOSS:
        raise BadReply(f"{LOSS} = {metrics[LOSS]} is no possible loss")
    changes = in_use(config.to_run_config())
    arrays = received(content.array_records[ARRAYS], base, changes)
    norms = update_norms(arrays, base)
    norm = math.hypot(*norms.values())
    if config.max_update_norm and not norm <= config.max_update_norm:
        limit = f"max-update-norm = {config.max_update_norm:g}"
        raise BadReply(f"update norm {norm:.4g} exceeds {limit}")
    return RecordDict({ARRAYS: to_record(arrays), METRICS: metrics}), norms


def evaluate_reply(content: RecordDict) -> RecordDict:
    """Return a checked copy of an evaluation reply.

    Raises
    ------
    BadReply
        For wrong records, missing keys, NaN or infinite values, counts that are none, or scores
        of a split with questions that no distribution can have.
    """
    metrics = _metrics(content, EVALUATE_KEYS)
    for name in EVALUATE_KEYS:
        value = _number(metrics, name)
        if name.endswith("-questions") and not value.is_integer():
            raise BadReply(f"{name} = {value:g} is no count")
    for split, score in parse_scores(metrics).items():
        if problem := score.problem():
            raise BadReply(f"{split}-{problem}")
    if not 0 < _number(metrics, WEIGHT) <= MAX_WEIGHT:
        raise BadReply(f"{WEIGHT} = {metrics[WEIGHT]} is no possible weight")
    return RecordDict({METRICS: metrics})


def reward_reply(content: RecordDict, mode: Mode, expected: int) -> list[float]:
    """Return the rewards in a reply.

    Parameters
    ----------
    content : RecordDict
    mode : {"likelihood", "deficit", "centred"}
    expected : int
        Completions that can be scored.

    Raises
    ------
    BadReply
        For wrong records, another number of rewards, NaN or infinite values, or a value that no
        reward of this mode can have.
    """
    rewards = _metrics(content, (REWARDS,))[REWARDS]
    if not isinstance(rewards, list) or len(rewards) != expected:
        given = len(rewards) if isinstance(rewards, list) else "no list of"
        raise BadReply(f"{given} rewards for {expected} rollouts")
    low, high = REWARD_RANGES[mode]
    if odd := [reward for reward in rewards if not low <= reward <= high]:
        raise BadReply(f"reward {odd[0]:g} is not possible in mode {mode} ({low:g} to {high:g})")
    return [float(reward) for reward in rewards]


def odd_keys(replies: Mapping[str, RecordDict], expected: Iterable[str]) -> dict[str, str]:
    """Find replies whose metric keys differ from most others': a reason by group.

    Stock aggregation raises unless all replies have the same keys. In a tie the keys of our own
    nodes win.
    """
    shapes = {group: _shape(content[METRICS]) for group, content in replies.items()}
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
    if set(content.metric_records) != {METRICS}:
        raise BadReply(f"metric records {sorted(content.metric_records)} instead of ['{METRICS}']")
    metrics = content.metric_records[METRICS]
    if missing := sorted(set(required) - set(metrics)):
        raise BadReply(f"metrics lack {', '.join(missing)}")
    for key, value in metrics.items():
        if not all(math.isfinite(x) for x in (value if isinstance(value, list) else [value])):
            raise BadReply(f"metric {key} = {value!s:.60} is not finite")
    return metrics.copy()


def _number(metrics: MetricRecord, key: str) -> float:
    value = metrics[key]
    if isinstance(value, list):
        raise BadReply(f"metric {key} is a list")
    return float(value)


def _shape(metrics: object) -> frozenset[tuple[str, int]]:
    assert isinstance(metrics, MetricRecord)
    return frozenset((k, len(v) if isinstance(v, list) else 0) for k, v in metrics.items())
