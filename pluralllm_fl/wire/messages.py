"""What server and nodes say to each other, as Flower's records and back.

=========  =======================================  ============================================
message    from the server                          from a node
=========  =======================================  ============================================
query      nothing                                  `Introduction`
train      the model, `Order`                       the trained model, `TrainingReport`, and
                                                    scores of the model as received if asked for
evaluate   the model, `Order`                       scores of the model
reward     the model, `RewardRequest`               one number a rollout
=========  =======================================  ============================================

The last is a query with a name of its own. An order holds what changes by round; everything else
stands in the run config, which every node has. A strategy may write its own values into an order's
record before it is sent.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Self, get_type_hints

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from pluralllm_fl.errors import ConfigError
from pluralllm_fl.evaluation.scores import EVALUATION_SPLITS, EvaluationSplit, SplitScore
from pluralllm_fl.reward import Mode

ARRAYS, METRICS, ORDER, SCORES = "arrays", "metrics", "config", "evaluation"
REWARD, REWARDS = "query.reward", "rewards"  # the message's type, and the numbers in its reply
# Metrics of a reply: its weight in an average, and of training the loss and the questions.
WEIGHT, LOSS, QUESTIONS = "num-examples", "train-loss", "questions"
ROLES = ("train", "evaluate")
Scores = Mapping[EvaluationSplit, SplitScore]


def key(name: str) -> str:
    """Return a field's name as it is written in records."""
    return name.replace("_", "-")


@dataclass(frozen=True, slots=True)
class Introduction:
    """What a node says of itself before round 1; counts are questions.

    `groups` and `supernodes` are those of a simulation, 0 in deployment. `embedding` and
    `fingerprint` identify the language model and the data; `device` and `dtype` are the device type
    and number format in which that model computes.
    """

    group: str
    role: str
    dimension: int
    embedding: str
    device: str
    dtype: str
    groups: int
    supernodes: int
    fingerprint: str
    questions: int
    train_questions: int

    def records(self) -> RecordDict:
        """Return the content of the reply to a query."""
        values = {key(name): value for name, value in asdict(self).items()}
        counts = MetricRecord({k: values.pop(k) for k in _COUNTS})
        return RecordDict({"roster": ConfigRecord(values), METRICS: counts})

    @classmethod
    def parse(cls, content: RecordDict) -> Self:
        """Read a node's reply.

        Raises
        ------
        KeyError, TypeError, ValueError
            If it is not an introduction.
        """
        values = {**content.config_records["roster"], **content.metric_records[METRICS]}
        texts = {name: str(values[name]) for name in _TEXTS}
        counts = {
            field.name: _count(values[key(field.name)]) for field in fields(cls)
            if field.name not in texts
        }  # fmt: skip
        if texts["role"] not in ROLES:
            raise ValueError(f"role '{texts['role']}'")
        return cls(**texts, **counts)  # type: ignore[arg-type]


_TEXTS = ("group", "role", "embedding", "device", "dtype", "fingerprint")
_COUNTS = ("questions", "train-questions")


@dataclass(frozen=True, slots=True)
class Order:
    """What a node is to do in a round.

    `evaluate`: training, it also scores the model as received. `proximal_mu` is what FedProx adds.
    """

    server_round: int
    learning_rate: float = 0.0
    evaluate: bool = False
    proximal_mu: float = 0.0

    def record(self) -> ConfigRecord:
        """Return the record that strategies get, without what they add."""
        values = {key(name): value for name, value in asdict(self).items()}
        del values["proximal-mu"]
        return ConfigRecord(values)

    @classmethod
    def parse(cls, content: RecordDict) -> Self:
        """Read a message of the server.

        Raises
        ------
        ConfigError
            If a number is missing.
        """
        record = content.config_records[ORDER]
        return cls(
            int(_number(record, "server-round")),
            _number(record, "learning-rate", 0.0),
            bool(record.get("evaluate")),
            _number(record, "proximal-mu", 0.0),
        )


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """A node's own figures of its training; `num_examples` is its weight in the average."""

    num_examples: float
    train_loss: float
    questions: int
    seconds: float

    def record(self) -> MetricRecord:
        """Return the metrics of a training reply."""
        return MetricRecord({key(name): value for name, value in asdict(self).items()})


_TYPES: dict[str, type] = get_type_hints(SplitScore)
SCORE_KEYS = tuple(map(key, _TYPES))
TRAIN_KEYS = frozenset(key(field.name) for field in fields(TrainingReport))
EVALUATE_KEYS = frozenset(
    {WEIGHT} | {f"{split}-{name}" for split in EVALUATION_SPLITS for name in SCORE_KEYS}
)


def score_record(scores: Scores) -> MetricRecord:
    """Return scores as metrics; their weight is the number of questions of all splits."""
    values: dict[str, Any] = {WEIGHT: float(scores["all"].questions)}
    for split, score in scores.items():
        values |= {f"{split}-{key(name)}": value for name, value in asdict(score).items()}
    return MetricRecord(values)


def parse_scores(metrics: Mapping[str, Any]) -> dict[EvaluationSplit, SplitScore]:
    """Read scores; the metrics hold a number for each of `EVALUATE_KEYS`."""
    return {
        split: SplitScore(**{k: kind(metrics[f"{split}-{key(k)}"]) for k, kind in _TYPES.items()})
        for split in EVALUATION_SPLITS
    }


def query(node_id: int) -> Message:
    """Ask a node who it is."""
    return Message(RecordDict({ORDER: ConfigRecord()}), dst_node_id=node_id, message_type="query")


def task(arrays: ArrayRecord, order: ConfigRecord) -> RecordDict:
    """Return the content of a message to a node: the model, any shape, and what to do with it."""
    return RecordDict({ARRAYS: arrays, ORDER: order})


def evaluated(scores: Scores) -> RecordDict:
    """Return the content of an evaluation reply."""
    return RecordDict({METRICS: score_record(scores)})


def trained(arrays: ArrayRecord, report: TrainingReport, scores: Scores | None) -> RecordDict:
    """Return the content of a training reply; the model's `arrays` may have any shape."""
    content = RecordDict({ARRAYS: arrays, METRICS: report.record()})
    if scores is not None:
        content[SCORES] = score_record(scores)
    return content


class Rollouts(NamedTuple):
    """What a policy said to one prompt: the question and options that the predictor reads."""

    question: str
    options: tuple[str, ...]
    completions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RewardRequest:
    """Rollouts that a node is to score; `mode` and `nearest` as in `PluralisticReward`.

    These are the policy's texts, nobody's answers. The reply holds a number for each completion,
    in this order, but for those that no group can score.
    """

    mode: Mode
    nearest: bool
    prompts: tuple[Rollouts, ...]

    def record(self) -> ConfigRecord:
        """Return the record of a request."""
        return ConfigRecord(
            {"mode": self.mode, "nearest": self.nearest, "prompts": json.dumps(self.prompts)}
        )

    @classmethod
    def parse(cls, content: RecordDict) -> Self:
        """Read a message of the server.

        Raises
        ------
        ConfigError
            If it is none that this version knows.
        """
        try:
            record = content.config_records[ORDER]
            read = json.loads(str(record["prompts"]))
            prompts = tuple(Rollouts(text, tuple(o), tuple(c)) for text, o, c in read)
            return cls(str(record["mode"]), bool(record["nearest"]), prompts)  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"The server's request for rewards cannot be read ({error!r:.200}). Server and "
                "nodes need the same version of pluralllm-fl."
            ) from None


def rewarded(rewards: Sequence[float | None]) -> RecordDict:
    """Return the content of a reply to a request for rewards."""
    given = [reward for reward in rewards if reward is not None]
    return RecordDict({METRICS: MetricRecord({REWARDS: given})})


def _count(value: object) -> int:
    if not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"{value!r} is not a count")
    return int(value)


def _number(record: Mapping[str, object], name: str, default: float | None = None) -> float:
    value = record.get(name, default)
    if not isinstance(value, int | float):
        raise ConfigError(f"The server's message lacks the number '{name}'.")
    return float(value)
