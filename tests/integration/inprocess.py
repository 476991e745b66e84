"""A Grid that runs a real ClientApp in this process: random node ids, shuffled replies, faults."""

import json
import random
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
    UserConfig,
)
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from safetensors.numpy import load_file
from safetensors.torch import save_file

from client_app import app
from pluralllm_fl.config import RunConfig, default_run_config
from pluralllm_fl.evaluation.opening import run_config
from pluralllm_fl.evaluation.scores import EVALUATION_SPLITS, SplitScore
from pluralllm_fl.federation.session import run_federation
from pluralllm_fl.predictor.model import initial_predictor
from pluralllm_fl.predictor.training import learning_rate_at
from pluralllm_fl.runs.record import RunRecord
from pluralllm_fl.wire import messages
from pluralllm_fl.wire.messages import (
    Introduction,
    Order,
    Scores,
    TrainingReport,
)
from pluralllm_fl.wire.packing import unpacked

Fault = Callable[[Message, Message, int], Message | None]


class InProcessGrid(Grid):
    """N nodes in this process.

    Parameters
    ----------
    app : ClientApp
        Runs every message as Flower would.
    nodes : int
        Number of nodes; node i gets ``partition-id = i``.
    run_config : mapping
        The nodes' run config.
    node_configs : sequence of mapping, optional
        Node configs instead of partitions.
    fault : callable, optional
        ``(request, reply, partition) -> reply`` or None to lose the reply.
    """

    def __init__(
        self,
        app: ClientApp,
        nodes: int,
        run_config: UserConfig | None = None,
        *,
        node_configs: Sequence[UserConfig] | None = None,
        fault: Fault | None = None,
    ) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.app = app
        self.fault = fault
        self.contexts: dict[int, Context] = {}
        self.partitions: dict[int, int] = {}
        self.offline: set[int] = set()
        self.sent: list[Message] = []
        self._order = random.Random(secrets.randbits(64))
        self._replies: dict[str, Message] = {}
        self._run_config = dict(run_config or {})
        for index in range(nodes):
            partition: UserConfig = {"partition-id": index, "num-partitions": nodes}
            self.join(index, node_configs[index] if node_configs else partition)

    def join(self, partition: int, node_config: UserConfig) -> int:
        """Add a node with a random id, as a restarted SuperNode would come back."""
        node_id = secrets.randbits(63)
        self.partitions[node_id] = partition
        self.contexts[node_id] = Context(
            run_id=1,
            node_id=node_id,
            node_config=dict(node_config),
            state=RecordDict(),
            run_config=dict(self._run_config),
        )
        return node_id

    def leave(self, partition: int) -> None:
        """Take a node offline."""
        for node_id, index in list(self.partitions.items()):
            if index == partition:
                self.offline.add(node_id)

    @property
    def run(self) -> Run:
        return Run.create_empty(run_id=1)

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        ids = [node_id for node_id in self.contexts if node_id not in self.offline]
        self._order.shuffle(ids)
        return ids

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        identifiers = []
        for message in messages:
            identifier = secrets.token_hex(8)
            message.metadata.__dict__["_message_id"] = identifier
            self.sent.append(message)
            identifiers.append(identifier)
            reply = self._answer(message)
            if reply is not None:
                self._replies[identifier] = reply
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Hand out at most three replies at a time, in random order."""
        ready = [identifier for identifier in message_ids if identifier in self._replies]
        self._order.shuffle(ready)
        return [self._replies.pop(identifier) for identifier in ready[:3]]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        del timeout
        identifiers = self.push_messages(messages)
        return [self._replies.pop(i) for i in identifiers if i in self._replies]

    def _answer(self, message: Message) -> Message | None:
        node_id = message.metadata.dst_node_id
        # Nodes must not share records with the server, as over a real network.
        received = Message(
            unpacked(message.content.copy()),
            dst_node_id=node_id,
            message_type=message.metadata.message_type,
        )
        received.metadata.__dict__["_message_id"] = message.metadata.message_id
        try:
            reply = self.app(received, self.contexts[node_id])
        except Exception as error:
            reason = f"{type(error)}:<'{error}'>"
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=received)
        if reply.has_content():
            reply.content = unpacked(reply.content)
        if self.fault is not None:
            return self.fault(received, reply, self.partitions[node_id])
        return reply


# -- a tiny federation: every group pulls a linear model towards its own point

GROUPS = ("Aland", "Borduria", "Cascadia", "Drusselstein", "Elbonia")
UNSEEN = ("Elbonia",)


class TinyModel(torch.nn.Module):
    """Two arrays, one of them 0-dimensional, and what a run needs of a predictor."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, dimension))
        self.bias = torch.nn.Parameter(torch.tensor(0.25))

    def save_pretrained(self, folder: Path, *, data: str) -> None:  # noqa: ARG002
        (folder / "config.json").write_text("{}\n")
        save_file({k: v.contiguous() for k, v in self.state_dict().items()},
                  folder / "model.safetensors")  # fmt: skip


def tiny_app(
    groups: Sequence[str] = GROUPS, unseen: Sequence[str] = UNSEEN, *, uniform: bool = False
) -> ClientApp:
    """Return a ClientApp that speaks the project's protocol without any data.

    Groups have as many answers, and so weigh as much, as letters; `uniform`: they weigh 1.
    """
    app = ClientApp()

    def group_of(context: Context) -> str:
        # Partition order differs from name order, so ranks are not partitions.
        return sorted(groups, reverse=True)[int(context.node_config["partition-id"])]

    @app.query()
    def query(message: Message, context: Context) -> Message:
        group = group_of(context)
        introduction = Introduction(
            group=group,
            role="evaluate" if group in unseen else "train",
            dimension=3,
            embedding="tiny",
            device="cpu",
            dtype="float32",
            groups=len(groups),
            supernodes=int(context.node_config["num-partitions"]),
            fingerprint=f"data of {group}",
            questions=10,
            train_questions=len(group),
        )
        return Message(introduction.records(), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        group, order = group_of(context), Order.parse(message.content)
        arrays = {k: v.numpy() for k, v in message.content["arrays"].items()}
        seed = int(context.run_config.get("seed", 0))
        noise = np.random.default_rng([seed, order.server_round, *group.encode()])
        step = np.float32(2 * order.learning_rate)
        trained = {
            # Arrays come back in another order than they were sent.
            name: np.asarray(
                value + step * (noise.normal(size=value.shape) - value), dtype=value.dtype
            )
            for name, value in reversed(arrays.items())
        }
        weight = 1.0 if uniform else float(len(group))
        loss = float(np.square(arrays["weight"]).mean())
        record = ArrayRecord({k: Array(v) for k, v in trained.items()})
        report = TrainingReport(weight, loss, len(group), 0.01)
        told = scores(group, message) if order.evaluate else None
        return Message(messages.trained(record, report, told), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(messages.evaluated(scores(group_of(context), message)), reply_to=message)

    def scores(group: str, message: Message) -> Scores:
        score = 1 / (1 + float(np.square(message.content["arrays"]["weight"].numpy()).mean()))
        score = score - 0.01 * sorted(groups).index(group)
        counts = zip(EVALUATION_SPLITS, (10, 7, 1, 2), strict=True)
        return {
            split: SplitScore(
                score, score, score - 0.1, min(score + 0.05, 1.0), 0.5, count, 0.6, 0.1, count
            )
            for split, count in counts
        }

    return app


def tiny_config(output: Path, **changes: bool | float | int | str) -> RunConfig:
    """Return a run config with short waits; keys with underscores."""
    values: dict[str, bool | float | int | str] = {
        **default_run_config(),
        "num-server-rounds": 4,
        "local-steps": 2,
        "learning-rate": 0.1,
        "join-timeout": 1.0,
        "round-timeout": 1.0,
        "output-dir": str(output),
        "run-name": "run",
        **{key.replace("_", "-"): value for key, value in changes.items()},
    }
    return RunConfig.from_run_config(values)


def real_config(output: Path, **changes: bool | float | int | str) -> RunConfig:
    """Return a run config of four generated groups and a small predictor; keys with underscores."""
    values = {
        **default_run_config(),
        "synthetic-groups": 4, "synthetic-questions": 60, "unseen-fraction": 0.25,
        "width": 16, "feed-forward": 16, "heads": 2, "question-features": 32, "factors": 2,
        "num-server-rounds": 3, "local-steps": 8, "learning-rate": 4e-3, "target-min": 2,
        "join-timeout": 20.0, "round-timeout": 20.0, "device": "cpu",
        "output-dir": str(output), "run-name": "run",
        **{key.replace("_", "-"): value for key, value in changes.items()},
    }  # fmt: skip
    return RunConfig.from_run_config(values)


def tiny_run(
    config: RunConfig, *, grid: InProcessGrid | None = None, fault: Fault | None = None
) -> Path:
    """Run the tiny federation and return its run directory."""
    grid = grid or InProcessGrid(tiny_app(), len(GROUPS), config.to_run_config(), fault=fault)
    return run_federation(
        grid, config, lambda dimension, _: TinyModel(dimension), lambda c, _: c.learning_rate
    )


def run_on(grid: InProcessGrid, config: RunConfig) -> Path:
    """Train the real predictor on a grid's nodes and return the run directory."""
    return run_federation(grid, config, partial(initial_predictor, config), learning_rate_at)


def federate(
    config: RunConfig,
    nodes: Callable[[Message, Context], Message] = app,
    *,
    node_configs: Sequence[UserConfig] | None = None,
    fault: Fault | None = None,
) -> Path:
    """Run real nodes, one for each generated group or node config, with the real predictor."""
    count = len(node_configs) if node_configs else config.synthetic_groups
    values = config.to_run_config()
    return run_on(
        InProcessGrid(nodes, count, values, node_configs=node_configs, fault=fault), config
    )


def in_this_process(run: Path, output: Path, **changes: bool | float | int | str) -> Path:
    """Repeat a finished run with the real nodes in this process; return its run directory."""
    own = {"output_dir": str(output), "run_name": "here", "resume": ""}
    config = replace(run_config(run), **own | changes)
    nodes = len(RunRecord.read(run, "seen", "unseen").groups)
    return run_on(InProcessGrid(app, nodes, config.to_run_config()), config)


def scores_in(request: Message, reply: Message) -> tuple[int, MetricRecord] | None:
    """Return the round that made the model which a reply scores, and the scores; None without."""
    server_round = int(request.content.config_records.get("config", {}).get("server-round", 0))
    if request.metadata.message_type == "evaluate":
        return server_round, reply.content["metrics"]
    if "evaluation" in reply.content.metric_records:  # of the model as it came
        return server_round - 1, reply.content["evaluation"]
    return None


def events(run: Path, kind: str = "") -> list[dict[str, Any]]:
    """Return the events of a run, all or of one kind."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if not kind or e["event"] == kind]


def final_arrays(run: Path) -> dict[str, bytes]:
    """Return the final model's arrays as bytes, for exact comparison."""
    return {k: v.tobytes() for k, v in load_file(run / "model" / "model.safetensors").items()}
