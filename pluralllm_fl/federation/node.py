"""A node's side of every exchange: who it is, its local training and its scores."""

import contextlib
import dataclasses
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord

from pluralllm_fl.config import RunConfig, Value
from pluralllm_fl.errors import ConfigError, DatasetError, FederationError, PluralLLMError
from pluralllm_fl.evaluation.scores import NO_SCORE, evaluate_group
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.predictor.networks import PredictorConfig
from pluralllm_fl.predictor.training import round_seed, train_group
from pluralllm_fl.preferences import Role
from pluralllm_fl.wire import rounding
from pluralllm_fl.wire.records import Arrays, to_arrays, to_record
from pluralllm_fl.workspace import (
    Workspace,
    for_nodes,
    held_by_nodes,
    is_elastic,
    open_workspace,
)

# A deployed node scores no fewer target questions than this: a mean over one is that answer.
MIN_TARGETS = 5

# Keys of --node-config that replace the run config's on this machine.
LOCAL_KEYS = ("device", "threads", "embedding-cache", "embedding-model")


@dataclass(frozen=True)
class LocalNode:
    """One group's data on this machine and the predictor to train and score on it."""

    config: RunConfig
    workspace: Workspace
    group: str
    role: Role
    groups: int
    supernodes: int

    @classmethod
    def from_context(cls, context: Context) -> "LocalNode":
        """Find out which group this node holds.

        In a simulation partition i is the i-th of the seen, then the unseen groups; a generated
        survey has groups without a node if there are fewer nodes. In deployment
        ``--node-config 'dataset-path="…" group="…"'`` names the node's own file; its role follows
        from seen-groups and unseen-groups, or from ``role="evaluate"`` in the node config.

        Raises
        ------
        ConfigError
            When the node config does not say which group this is, or the data lacks it.
        """
        config = RunConfig.from_run_config(context.run_config)
        simulated = "partition-id" in context.node_config
        if simulated and "dataset-path" not in context.node_config:
            node = cls._simulated(config, context.node_config)
        else:
            node = cls._deployed(config, context.node_config)
        torch.set_num_threads(node.config.threads)
        return node

    @classmethod
    def _simulated(cls, config: RunConfig, node_config: Mapping[str, Value]) -> "LocalNode":
        partition, supernodes = int(node_config["partition-id"]), int(node_config["num-partitions"])
        elastic, config = is_elastic(config), for_nodes(config, supernodes)
        workspace = open_workspace(config)
        groups = held_by_nodes(workspace, supernodes) if elastic else workspace.groups
        group = groups[min(partition, len(groups) - 1)]
        return cls(config, workspace, group, workspace.role(group), len(groups), supernodes)

    @classmethod
    def _deployed(cls, config: RunConfig, node_config: Mapping[str, Value]) -> "LocalNode":
        for key in ("dataset-path", "group"):
            if not node_config.get(key):
                raise ConfigError(
                    f"This node's --node-config lacks {key}: start it with "
                    """--node-config 'dataset-path="/path/to/answers.jsonl" group="My group"'."""
                )
        group, path = str(node_config["group"]), str(node_config["dataset-path"])
        local = {key: node_config[key] for key in LOCAL_KEYS if key in node_config}
        role = str(node_config.get("role", _listed_role(config, group)))
        if role not in ("train", "evaluate"):
            raise ConfigError(f"role = '{role}' in --node-config: must be train or evaluate.")
        # The split of questions is a hash, so a node needs to know no other group.
        own = RunConfig.from_run_config(
            config.to_run_config()
            | {"dataset": path, "seen-groups": group, "unseen-groups": ""}
            | local
        )
        try:
            workspace = open_workspace(own)
        except (DatasetError, ConfigError):
            # The reason may quote the data, and an error reply leaves this machine.
            raise DatasetError(
                f"The data file of group '{group}' cannot be used, or lacks that group. On its "
                f"node, `pluralllm data check {path}` says why."
            ) from None
        kind: Role = "train" if role == "train" else "evaluate"
        return cls(own, workspace, group, kind, 0, 0)

    @property
    def deployed(self) -> bool:
        """Whether this node runs on its own machine, not in a simulation."""
        return not self.groups

    def introduce(self) -> tuple[ConfigRecord, MetricRecord]:
        """Answer the roster: group, role and counts; nothing of the answers themselves."""
        table = self.workspace.table(self.group)
        roster = ConfigRecord(
            {
                "group": self.group,
                "role": self.role,
                "dimension": int(self.workspace.vectors.shape[1]),
                "embedding": self.workspace.embedding_fingerprint,
                "groups": self.groups,
                "supernodes": self.supernodes,
                "fingerprint": self.workspace.dataset.groups[self.group].fingerprint,
            }
        )
        counts = MetricRecord(
            {
                "questions": len(table),
                "train-questions": len(table.members("train")),
                "test-questions": len(table.members("test")),
            }
        )
        return roster, counts

    def train(
        self, arrays: ArrayRecord, orders: Mapping[str, object]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Train the received predictor on this group's training questions.

        The arrays returned are those of the trained predictor, or with ``update-dtype`` bfloat16
        the encoded update (see `updates`).

        Raises
        ------
        ConfigError
            On a node that is only evaluated, whatever the server asks; for an ``update-dtype``
            unknown here.
        """
        if self.role != "train":
            raise ConfigError(f"Group '{self.group}' is evaluate-only: its node does not train.")
        predictor = self._predictor(arrays)
        server_round = int(_number(orders, "server-round"))
        result = train_group(
            predictor,
            self.workspace.table(self.group),
            self.config,
            server_round=server_round,
            learning_rate=_number(orders, "learning-rate"),
            local_steps=int(_number(orders, "local-steps")),
            seed=round_seed(int(_number(orders, "seed")), server_round, self.group),
            proximal_mu=_number(orders, "proximal-mu", 0.0),
        )
        weight = float(result.questions) if self.config.client_weight == "answers" else 1.0
        metrics = MetricRecord(
            {
                "num-examples": weight,
                "train-loss": result.loss,
                "questions": result.questions,
                "seconds": result.seconds,
            }
        )
        return to_record(_encoded(_arrays(predictor), arrays, orders)), metrics

    def evaluate(self, arrays: ArrayRecord, orders: Mapping[str, object]) -> MetricRecord:
        """Score the received predictor on every split of this group's questions."""
        scores = evaluate_group(
            self._predictor(arrays),
            self.workspace.table(self.group),
            context_questions=int(_number(orders, "context-questions")),
            seed=int(_number(orders, "seed")),
        )
        metrics: dict[str, int | float] = {"num-examples": float(scores["all"].questions)}
        for split, score in scores.items():
            if self.deployed and score.questions < MIN_TARGETS:
                score = NO_SCORE
            metrics |= {
                f"{split}-{name.replace('_', '-')}": value
                for name, value in dataclasses.asdict(score).items()
            }
        return MetricRecord(dict(metrics))

    def _predictor(self, arrays: ArrayRecord) -> PreferencePredictor:
        config = PredictorConfig.from_run_config(self.config, self.workspace.vectors.shape[1])
        predictor = PreferencePredictor(config)
        predictor.load_state_dict(arrays.to_torch_state_dict())
        return predictor.to(self.workspace.vectors.device)


@contextlib.contextmanager
def discreet(context: Context) -> Iterator[None]:
    """Keep unexpected errors of a deployed node from quoting its data in the error reply.

    Raises
    ------
    FederationError
        With the kind and place of the error instead of its text.
    """
    try:
        yield
    except PluralLLMError:
        raise
    except Exception as error:
        if "dataset-path" not in context.node_config:
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise FederationError(
            f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}, on the "
            f"node of group '{context.node_config.get('group')}'."
        ) from None


def _listed_role(config: RunConfig, group: str) -> Role:
    if group in config.unseen or (config.seen and group not in config.seen):
        return "evaluate"
    return "train"


def _arrays(predictor: PreferencePredictor) -> Arrays:
    return {k: v.detach().cpu().numpy() for k, v in predictor.state_dict().items()}


def _encoded(new: Arrays, received: ArrayRecord, orders: Mapping[str, object]) -> Arrays:
    dtype = orders.get("update-dtype", "float32")
    if dtype == "float32":
        return new
    if dtype != "bfloat16":
        raise ConfigError(f"The server asks for update-dtype '{dtype}', unknown here.")
    return rounding.encode(new, to_arrays(received))


def _number(orders: Mapping[str, object], key: str, default: float | None = None) -> float:
    value = orders.get(key, default)
    if not isinstance(value, int | float):
        raise ConfigError(f"The server's message lacks the number '{key}'.")
    return float(value)
