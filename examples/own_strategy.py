"""A strategy of one's own: FedAvg in which no node pulls further than is usual in the round.

    cd examples && pluralllm simulate --set strategy=own_strategy:ClippedMean \
        --set 'strategy-args={"times": 1.5}'
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg


class ClippedMean(FedAvg):
    """Shorten updates that are longer than `times` the median length, then average."""

    def __init__(self, times: float = 1.0, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.times = times
        self.sent: dict[str, Any] = {}  # numpy arrays, as checkpoints keep them

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.sent = {name: array.numpy() for name, array in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        records = [reply.content["arrays"] for reply in replies]
        updates = [{k: a.numpy() - self.sent[k] for k, a in record.items()} for record in records]
        lengths = [np.hypot.reduce([np.linalg.norm(u) for u in one.values()]) for one in updates]
        limit = self.times * np.median(lengths)
        for reply, update, length in zip(replies, updates, lengths, strict=True):
            share = float(min(1, limit / max(length, 1e-12)))
            new = {name: Array(self.sent[name] + share * u) for name, u in update.items()}
            reply.content["arrays"] = ArrayRecord(new)
        return super().aggregate_train(server_round, replies)
