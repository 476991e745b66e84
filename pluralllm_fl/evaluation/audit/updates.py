"""What the server reads from one node's raw update, if no mask hides it."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from pluralllm_fl.arrays import FloatArray
from pluralllm_fl.errors import PluralLLMError
from pluralllm_fl.evaluation.audit.reading import NOTHING, Examiner, figures, mean_reading
from pluralllm_fl.evaluation.scores import predict_targets
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.predictor.training import learning_rate_at, round_seed, train_group

# An update is a step towards the node's answers; going on in its direction comes closer to them.
AMPLIFICATIONS = (1.0, 2.0, 4.0, 8.0, 16.0)

Weights = dict[str, Tensor]  # a model's, by name; any shape


def from_updates(
    examiner: Examiner,
    predictor: PreferencePredictor,
    received: Weights,
    server_round: int,
    tick: Callable[[], None],
) -> dict[str, Any]:
    """Train every seen group for one round as its node does, and attack its update.

    The attacker adds the update, amplified, to the model that the node received, and predicts with
    the sum, no answer known. He is given the best amplification: an upper bound for this attack.

    Parameters
    ----------
    received : dict of str to Tensor, any shape
        Weights of the model that the nodes received, by name.

    Returns
    -------
    dict
        Mean readings of the node's training questions: ``received`` by the model before the
        update, ``own`` by the attack, ``other`` by the same attack with another node's update.
        ``amplification`` by group, ``by_group`` the readings by the attack.
    """
    seen = examiner.workspace.seen
    predictor = copy.deepcopy(predictor)
    predict = partial(predict_targets, predictor.eval())

    def read(weights: Weights, group: str) -> FloatArray:
        predictor.load_state_dict(weights)
        return examiner.read(predict, group)

    rows: dict[str, list[FloatArray]] = {"received": [], "own": [], "other": []}
    chosen = {}
    for group, other in zip(seen, (*seen[1:], seen[0]), strict=True):
        rows["received"].append(read(received, group))
        update = _update(examiner, predictor, received, server_round, group)
        amplified = {a: {k: v + a * update[k] for k, v in received.items()} for a in AMPLIFICATIONS}
        chosen[group], own = _best(read, amplified, group)
        rows["own"].append(own)
        if other != group:
            rows["other"].append(_best(read, amplified, other)[1])
        tick()
    means = {
        name: figures(mean_reading(np.array(found))) if found else None
        for name, found in rows.items()
    }
    return {
        "round": server_round,
        **means,
        "amplification": chosen,
        "by_group": {g: figures(row) for g, row in zip(seen, rows["own"], strict=True)},
    }


def _update(
    examiner: Examiner,
    predictor: PreferencePredictor,
    received: Weights,
    server_round: int,
    group: str,
) -> Weights:
    """Return the change that a node makes of the model it received."""
    config = examiner.workspace.config
    predictor.load_state_dict(received)
    train_group(
        predictor, examiner.workspace.table(group), config, server_round=server_round,
        learning_rate=learning_rate_at(config, server_round), local_steps=config.local_steps,
        seed=round_seed(config.seed, server_round, group),
        proximal_mu=float(config.strategy_kwargs.get("proximal_mu", 0.0)),
    )  # fmt: skip
    predictor.eval()
    return {name: value - received[name] for name, value in predictor.state_dict().items()}


def _best(
    read: Callable[[Weights, str], FloatArray], amplified: dict[float, Weights], group: str
) -> tuple[float, FloatArray]:
    """Return the amplification with the closest reading of a group, and that reading."""
    found = {}
    for amplification, weights in amplified.items():
        try:
            found[amplification] = read(weights, group)
        except PluralLLMError:  # amplified until it predicts NaN: no use to the attacker
            continue
    best = max(found, key=lambda amplification: found[amplification][0], default=0.0)
    return best, found.get(best, NOTHING)
