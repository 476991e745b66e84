"""RunConfig: Flower's flat run config, typed and validated.

The defaults live in ``pyproject.toml`` under ``[tool.flwr.app.config]`` and nowhere else.
"""

import dataclasses
import json
import math
import re
import tomllib
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pluralllm_fl.errors import ConfigError, nearest

Value = bool | float | int | str


class Bounds(NamedTuple):
    """What a number may be: ``low <= number`` and ``number < below``."""

    low: float
    below: float = math.inf

    def require(self, key: str, value: float) -> None:
        """Raise ConfigError unless the value lies within."""
        high = "" if self.below == math.inf else f" and below {self.below:g}"
        _require(self.low <= value < self.below, key, value, f"at least {self.low:g}{high}")


class OneOf(NamedTuple):
    """The names that a text may be."""

    names: Collection[str]

    def require(self, key: str, value: object) -> None:
        """Raise ConfigError for anything else."""
        if value not in self.names:
            raise ConfigError(
                f"{key} = {value!r}: must be one of {', '.join(self.names)}."
                f"{nearest(str(value), self.names)}"
            )


# The networks. Their classes are imported where a predictor is built, and not here.
ARCHITECTURES = {
    "transformer": "pluralllm_fl.predictor.transformer:TransformerNetwork",
    "published": "pluralllm_fl.predictor.published:PublishedNetwork",
}

# Upper bounds keep a slip or a changed file from asking for more than any machine has.
Count = Annotated[int, Bounds(0, 1e9)]
Positive = Annotated[int, Bounds(1, 1e9)]
Size = Annotated[int, Bounds(1, 2**16 + 1)]
Few = Annotated[int, Bounds(1, 1025)]
Seconds = Annotated[float, Bounds(0, 1e8)]
Amount = Annotated[float, Bounds(0)]
Share = Annotated[float, Bounds(0, 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Every run-config key (``learning-rate`` is `learning_rate` here); see pyproject.toml."""

    # -- data
    dataset: str
    seen_groups: str
    unseen_groups: str
    unseen_fraction: Share
    on_bad_row: Literal["auto", "raise", "skip"]
    zeros: Literal["answers", "not-offered"]
    validation_fraction: Share
    test_fraction: Share
    synthetic_groups: Count
    synthetic_questions: Annotated[int, Bounds(2, 1e9)]
    synthetic_respondents: Count
    # -- embedding
    embedding_model: str
    embedding_pooling: Literal["mean", "last"]
    embedding_template: str
    embedding_standardise: bool
    embedding_cache: str
    # -- predictor
    architecture: Annotated[str, OneOf(ARCHITECTURES)]
    width: Size
    layers: Few
    heads: Few
    feed_forward: Size
    dropout: Share
    question_features: Annotated[int, Bounds(2, 2**16 + 1)]
    factors: Few
    # -- local training
    loss: Literal["alignment", "cross-entropy", "normal-nll"]
    local_steps: Positive
    batch_questions: Positive
    learning_rate: float
    learning_rate_schedule: Literal["cosine", "constant"]
    weight_decay: Amount
    gradient_clip: Amount
    context_min: Count
    context_max: Count
    target_min: Positive
    target_max: Positive
    # -- federation
    strategy: str
    strategy_args: str
    num_server_rounds: Annotated[int, Bounds(1, 10**6 + 1)]
    client_weight: Literal["uniform", "answers"]
    expected_nodes: Count
    node_keys: str
    min_nodes: Positive
    join_timeout: Seconds
    round_timeout: Annotated[float, Bounds(1, 1e8)]
    round_retries: Annotated[int, Bounds(0, 1001)]
    max_update_norm: Amount
    max_update_ratio: float
    update_dtype: Literal["float32", "bfloat16"]
    # -- evaluation
    evaluate_every: Positive
    context_questions: Count
    # -- run
    seed: Annotated[int, Bounds(0, 2**63)]
    output_dir: str
    run_name: str
    resume: str
    checkpoint_every: Positive
    early_stopping_patience: Count
    trackers: str
    device: Literal["auto", "cpu", "cuda"]
    threads: Few

    @classmethod
    def from_run_config(cls, values: Mapping[str, Value]) -> Self:
        """Build from kebab-case keys.

        Raises
        ------
        ConfigError
            For unknown or missing keys, wrong types and impossible values, naming the key.
        """
        fields = {f.name.replace("_", "-"): f for f in dataclasses.fields(cls)}
        for key in values:
            if key not in fields:
                raise ConfigError(f"Unknown config key '{key}'.{nearest(key, fields)}")
        if missing := sorted(set(fields) - set(values)):
            raise ConfigError(
                f"Missing config keys: {', '.join(missing)}. A run of an earlier version lacks "
                "them: train again, or use it with the version that wrote it."
            )
        hints = typing.get_type_hints(cls, include_extras=True)
        config = cls(**{f.name: _coerce(k, values[k], hints[f.name]) for k, f in fields.items()})
        config._validate()
        return config

    @classmethod
    def default(cls, changes: Mapping[str, Value] | None = None) -> Self:
        """Build from the defaults, with changes by kebab-case key; raises as `from_run_config`."""
        return cls.from_run_config(default_run_config() | dict(changes or {}))

    def to_run_config(self) -> dict[str, Value]:
        """Return the flat kebab-case form, in declaration order."""
        return {k.replace("_", "-"): v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def checked(cls, name: str, value: Value) -> Any:
        """Return one field's value; raises ConfigError for a wrong type or an impossible value."""
        hint = typing.get_type_hints(cls, include_extras=True)[name]
        return _coerce(name.replace("_", "-"), value, hint)

    @property
    def seen(self) -> tuple[str, ...]:
        """Names in ``seen-groups``."""
        return split_names(self.seen_groups)

    @property
    def unseen(self) -> tuple[str, ...]:
        """Names in ``unseen-groups``."""
        return split_names(self.unseen_groups)

    @property
    def strategy_kwargs(self) -> dict[str, Any]:
        """Keyword arguments in ``strategy-args``."""
        try:
            kwargs = json.loads(self.strategy_args, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"strategy-args is not JSON ({error}): {self.strategy_args[:200]!r}. "
                """Write it as '{"proximal_mu": 0.1}'."""
            ) from None
        if not isinstance(kwargs, dict):
            raise ConfigError(f"strategy-args must be a JSON object, not {self.strategy_args!r}.")
        return kwargs

    @property
    def output_directory(self) -> Path:
        """The folder that holds the runs: that of ``output-dir``, or one in the user's home."""
        return Path(self.output_dir) if self.output_dir else Path.home() / "pluralllm-runs"

    def new_run_name(self) -> str:
        """Return a name of data set, time and seed that no run in the output directory has yet."""
        stem = re.sub(r"[^\w.-]+", "-", Path(self.dataset).stem).strip("-.") or "run"
        name = f"{stem}-{datetime.now():%Y%m%d-%H%M%S}-seed{self.seed}"
        free, number = name, 2
        while (self.output_directory / free).exists():
            free, number = f"{name}-{number}", number + 1
        return free

    def _validate(self) -> None:
        held_out = self.validation_fraction + self.test_fraction
        _require(held_out < 1, "test_fraction", self.test_fraction,
                 "below 1 together with validation-fraction")  # fmt: skip
        _require(
            self.question_features % 2 == 0, "question_features", self.question_features, "even"
        )
        ratio = self.max_update_ratio
        _require(ratio == 0 or ratio > 1, "max_update_ratio", ratio, "0 or above 1")
        if self.early_stopping_patience and not self.validation_fraction:
            raise ConfigError(
                f"early-stopping-patience = {self.early_stopping_patience}: needs validation "
                "questions, but every question trains or is a test question. Set "
                "validation-fraction above 0 (for example 0.1), or early-stopping-patience = 0."
            )
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "above 0")
        _require(self.width % self.heads == 0, "width", self.width,
                 f"a multiple of heads ({self.heads})")  # fmt: skip
        for kind in ("context", "target"):
            smallest, largest = getattr(self, f"{kind}_min"), getattr(self, f"{kind}_max")
            _require(largest >= smallest, f"{kind}_max", largest,
                     f"at least {kind}-min ({smallest})")  # fmt: skip
        embedding_parts(self.embedding_template)
        for name in ("output_dir", "resume", "node_keys"):
            value = getattr(self, name)
            _require(not value or Path(value).is_absolute(), name, value,
                     "an absolute path (Flower runs the apps in a folder of its own)")  # fmt: skip
        plain = Path(self.run_name).name == self.run_name and self.run_name not in (".", "..")
        _require(plain, "run_name", self.run_name, "a plain folder name")
        for tracker in split_names(self.trackers):
            _require(tracker in TRACKERS, "trackers", tracker, f"one of {', '.join(TRACKERS)}")
        _ = self.strategy_kwargs


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not a number")


TRACKERS = ("tensorboard", "mlflow", "wandb")


def split_names(text: str) -> tuple[str, ...]:
    """Split a semicolon-separated list of names, without empty ones."""
    return tuple(name.strip() for name in text.split(";") if name.strip())


def embedding_parts(template: str) -> list[str]:
    """Split an ``embedding-template`` into the texts that are embedded apart, one or two.

    Raises
    ------
    ConfigError
        If it is no such template.
    """
    parts = template.split("||")
    _require("{question}" in parts[0] and "{option}" in parts[-1] and len(parts) <= 2,
             "embedding_template", template,
             "a text with {question} and {option}, or two texts with '||' between, "
             "{option} in the second")  # fmt: skip
    return parts


def app_directory() -> Path:
    """Return the folder with the Flower app: the source tree, or its copy in the wheel."""
    package = Path(__file__).parent
    source = package.parent
    return source if (source / "server_app.py").is_file() else package / "app"


def default_run_config() -> dict[str, Value]:
    """Read every key with its default from the app's pyproject.toml."""
    project = tomllib.loads((app_directory() / "pyproject.toml").read_text(encoding="utf-8"))
    defaults: dict[str, Value] = project["tool"]["flwr"]["app"]["config"]
    return defaults


def toml(values: Mapping[str, Value]) -> str:
    """Write plain keys and values as TOML: like JSON, but that DEL must be escaped."""
    text = (f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
    return "".join(text).replace("\x7f", "\\u007f")


def _require(valid: bool, name: str, value: object, demand: str) -> None:
    if not valid:
        raise ConfigError(f"{name.replace('_', '-')} = {value!r}: must be {demand}.")


def _coerce(key: str, value: Value, hint: object) -> Any:
    if typing.get_origin(hint) is Annotated:
        kind, demand = typing.get_args(hint)
        coerced = _coerce(key, value, kind)
        demand.require(key, coerced)
        return coerced
    if typing.get_origin(hint) is Literal:
        OneOf(typing.get_args(hint)).require(key, value)
        return value
    if hint is float and type(value) is int:
        value = float(value) if abs(value) < 2**63 else math.inf
    if type(value) is not hint:
        wanted: dict[object, str] = {int: "a whole number", float: "a number",
                                     str: "a text in quotes", bool: "true or false"}  # fmt: skip
        raise ConfigError(f"{key} = {value!r}: must be {wanted[hint]}.")
    if hint is float and not float("-inf") < value < float("inf"):  # type: ignore[operator]
        raise ConfigError(f"{key} = {value!r}: must be finite.")
    return value
