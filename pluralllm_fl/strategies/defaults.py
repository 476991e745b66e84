"""Arguments of stock strategies where Flower's own defaults do not fit this model.

`strategy-args` override them. Checked on countries of GlobalOpinionQA outside the paper's split.
"""

from collections.abc import Mapping
from typing import Any

import flwr.serverapp.strategy as stock
from flwr.serverapp.strategy import Strategy

from pluralllm_fl.wire.messages import LOSS

# A round moves a weight by about 0.005; Flower's eta = 0.1 and tau = 0.001 would move it by up to
# 0.1. Its beta_1 = 0.9 needs more than the usual 16 rounds to get going.
_ADAPTIVE: dict[type[Strategy], dict[str, Any]] = {
    stock.FedAdam: {"eta": 0.05, "beta_1": 0.5, "tau": 0.01},
    stock.FedYogi: {"eta": 0.02, "beta_1": 0.5, "tau": 0.01},
    stock.FedAdagrad: {"eta": 0.02, "tau": 0.01},
}


def defaults(cls: type[Strategy], given: Mapping[str, Any], train_nodes: int) -> dict[str, Any]:
    """Return our defaults for a strategy with `train_nodes` training nodes.

    The result may hold arguments that the class does not have.
    """
    ours: dict[str, Any] = {
        "train_loss_key": LOSS,
        # q-FedAvg divides the step by 1 + q |update|²/(client_learning_rate loss). Only the fairer
        # weighing should be left of it: |update|² is about 100.
        "client_learning_rate": 1e4,
        "num_sampled_clients": train_nodes,
        # About the length of an update; Flower's 0.1 would take 50 rounds to get there.
        "initial_clipping_norm": 10.0,
    }
    for kind, values in _ADAPTIVE.items():
        if issubclass(cls, kind):
            ours |= values
    if issubclass(cls, stock.FedTrimmedAvg):
        ours["beta"] = 0.25  # a quarter of the nodes; Flower's 0.2 cuts off one of two among eight
    if issubclass(cls, stock.Bulyan):
        ours["num_malicious_nodes"] = max(train_nodes - 3, 0) // 4  # as many as it can bear
    if issubclass(cls, stock.MultiKrum):
        bad = given.get("num_malicious_nodes", train_nodes // 4)
        ours["num_malicious_nodes"] = bad
        ours["num_nodes_to_select"] = max(train_nodes - bad, 1) if isinstance(bad, int) else 1
    return ours
