"""A node's side of every exchange: who it is, its local training and its scores."""

import contextlib
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context

from pluralllm_fl.config import RunConfig, Value
from pluralllm_fl.embedding import TextEmbedder
from pluralllm_fl.errors import ConfigError, DatasetError, FederationError, PluralLLMError
from pluralllm_fl.evaluation.scores import NO_SCORE, evaluate_group
from pluralllm_fl.inference import ConditionedGroup, Pluralist
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.predictor.networks import PredictorConfig
from pluralllm_fl.predictor.training import round_seed, train_group
from pluralllm_fl.preferences import Role
from pluralllm_fl.reward import PluralisticReward
from pluralllm_fl.wire.messages import (
    Introduction,
    Order,
    RewardRequest,
    Scores,
    TrainingReport,
)
from pluralllm_fl.workspace import (
    Workspace,
    for_nodes,
    held_by_nodes,
    is_elastic,
    open_workspace,
    text_embedder,
)

# A deployed node scores no fewer target questions than this: a mean over one is that answer.
MIN_TARGETS = 5

# Keys of --node-config that replace the run config's on this machine.
LOCAL_KEYS = ("device", "threads", "embedding-cache", "embedding-model")


@dataclass(frozen=True)
class LocalNode:
    """One group's data on this machine and the predictor to train and score on it.

    `reward_answers` is how many of the group's answers its rewards build on.
    """

    config: RunConfig
    workspace: Workspace
    group: str
    role: Role
    groups: int
    supernodes: int
    reward_answers: int

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
        shown = config.context_questions
        return cls(config, workspace, group, workspace.role(group), len(groups), supernodes, shown)

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
        return cls(own, workspace, group, kind, 0, 0, _reward_answers(node_config))

    @property
    def deployed(self) -> bool:
        """Whether this node runs on its own machine, not in a simulation."""
        return not self.groups

    def introduce(self) -> Introduction:
        """Say who this is, with counts; nothing of the answers themselves."""
        table = self.workspace.table(self.group)
        return Introduction(
            group=self.group,
            role=self.role,
            dimension=int(self.workspace.vectors.shape[1]),
            embedding=self.workspace.embedding_fingerprint,
            device=self.workspace.arithmetic[0],
            dtype=self.workspace.arithmetic[1],
            groups=self.groups,
            supernodes=self.supernodes,
            fingerprint=self.workspace.dataset.groups[self.group].fingerprint,
            questions=len(table),
            train_questions=len(table.members("train")),
        )

    def train(
        self, arrays: ArrayRecord, order: Order
    ) -> tuple[ArrayRecord, TrainingReport, Scores | None]:
        """Train the received predictor on this group's training questions.

        Its arrays, any shape, come back trained in the same shapes. If the order asks for it, the
        predictor is scored first, as it was received.

        Raises
        ------
        ConfigError
            On a node that is only evaluated, whatever the server asks.
        """
        if self.role != "train":
            raise ConfigError(f"Group '{self.group}' is evaluate-only: its node does not train.")
        predictor = self._predictor(arrays)
        scores = self._scores(predictor) if order.evaluate else None
        result = train_group(
            predictor,
            self.workspace.table(self.group),
            self.config,
            server_round=order.server_round,
            learning_rate=order.learning_rate,
            local_steps=self.config.local_steps,
            seed=round_seed(self.config.seed, order.server_round, self.group),
            proximal_mu=order.proximal_mu,
        )
        weight = float(result.questions) if self.config.client_weight == "answers" else 1.0
        report = TrainingReport(weight, result.loss, result.questions, result.seconds)
        weights = {k: v.detach().cpu() for k, v in predictor.state_dict().items()}
        return ArrayRecord(weights), report, scores

    def evaluate(self, arrays: ArrayRecord) -> Scores:
        """Score the received predictor on every split of this group's questions.

        Its arrays may have any shape that the run config gives them.
        """
        return self._scores(self._predictor(arrays))

    def reward(self, arrays: ArrayRecord, request: RewardRequest) -> list[float | None]:
        """Score a policy's rollouts by what this group is predicted to prefer.

        The predictor (its arrays, any shape) is conditioned on the group's own answers, which stay
        here. Returns one reward a completion, prompt by prompt; None where it cannot be scored.

        Raises
        ------
        ConfigError
            On a deployed node whose organisation has not said that it gives rewards.
        """
        reward = PluralisticReward(
            {self.group: self._conditioned(arrays)}, request.mode, nearest=request.nearest
        )
        rows = [(i, p, said) for i, p in enumerate(request.prompts) for said in p.completions]
        return reward(
            prompts=[i for i, _, _ in rows],
            completions=[said for _, _, said in rows],
            question=[prompt.question for _, prompt, _ in rows],
            options=[prompt.options for _, prompt, _ in rows],
            group=[self.group] * len(rows),
        )

    def _conditioned(self, arrays: ArrayRecord) -> ConditionedGroup:
        if self.deployed and not self.reward_answers:
            raise ConfigError(
                f"Group '{self.group}' gives no rewards: its organisation has not set "
                "REWARD_ANSWERS in node.env (reward-answers in --node-config)."
            )
        own = self.workspace.dataset.groups[self.group]
        # By the questions' ids, which are hashes: asked again in any way, the others stay unread.
        shown = dict(islice(own.answers.items(), self.reward_answers))
        predictor = self._predictor(arrays).cpu().eval()
        return Pluralist(predictor, _embedder(self.config)).fit(replace(own, answers=shown))

    def _scores(self, predictor: PreferencePredictor) -> Scores:
        scores = evaluate_group(
            predictor,
            self.workspace.table(self.group),
            context_questions=self.config.context_questions,
            seed=self.config.seed,
        )
        too_few = MIN_TARGETS if self.deployed else 0
        return {k: NO_SCORE if s.questions < too_few else s for k, s in scores.items()}

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


@lru_cache(maxsize=1)
def _embedder(config: RunConfig) -> TextEmbedder:
    """Return the embedder of new texts; it keeps the language model loaded."""
    return text_embedder(config)


def _reward_answers(node_config: Mapping[str, Value]) -> int:
    value = node_config.get("reward-answers", 0)
    if type(value) is not int or value < 0:
        raise ConfigError(
            f"reward-answers = {value!r} in --node-config: must be the number of answers that "
            "rewards may build on; 0: no rewards."
        )
    return value


def _listed_role(config: RunConfig, group: str) -> Role:
    if group in config.unseen or (config.seen and group not in config.seen):
        return "evaluate"
    return "train"
