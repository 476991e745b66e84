"""Experiment trackers as callbacks: offline, inside the run directory, never a login."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pluralllm_fl.config import RunConfig, split_names
from pluralllm_fl.errors import ConfigError
from pluralllm_fl.federation.callbacks import Callback, Moment
from pluralllm_fl.runs.events import Event


def build(folder: Path, config: RunConfig) -> list[Callback]:
    """Return a callback for each of the config's trackers, which write into the run's folder.

    Raises
    ------
    ConfigError
        If a tracker's package is not installed.
    """
    kinds: dict[str, Callable[[Path, RunConfig], Callback]] = {
        "tensorboard": TensorBoard,
        "mlflow": MLflow,
        "wandb": WandB,
    }
    return [kinds[name](folder, config) for name in split_names(config.trackers)]


def require_packages(config: RunConfig) -> None:
    """Check before a run that the trackers' packages are there.

    Raises
    ------
    ConfigError
        If one is not installed.
    """
    for name in split_names(config.trackers):
        _require(name, name)  # trackers are named after their packages


def scalars(event: Event) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a round or evaluation event as ``name, value``."""
    kind = event["event"]
    if kind not in ("round", "evaluation"):
        return
    for key, value in event.items():
        if key in ("time", "round", "event"):
            continue
        if isinstance(value, int | float):
            yield f"{kind}/{key}", float(value)
        elif key in ("seen", "unseen") and value:
            for name, number in value.items():
                if isinstance(number, int | float):
                    yield f"{key}/{name}", float(number)
            for group, number in value["by_group"].items():
                yield f"{key}_groups/{group}", float(number)


class _Tracker(Callback, ABC):
    def on_event(self, event: Event, moment: Moment) -> None:
        """Forward numbers; close at the end of the run."""
        del moment
        if values := dict(scalars(event)):
            self.log(values, event["round"])
        if event["event"] == "run_finished":
            self.close()

    @abstractmethod
    def log(self, values: dict[str, float], step: int) -> None:
        """Write the values of one round."""

    @abstractmethod
    def close(self) -> None:
        """Flush and release."""


class TensorBoard(_Tracker):
    """Event files in ``tensorboard/`` of the run directory."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        del config
        _require("tensorboard", "tensorboard")
        writer = _require("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self.writer = writer(str(folder / "tensorboard"))

    def log(self, values: dict[str, float], step: int) -> None:
        """Write the values of one round."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Flush and release."""
        self.writer.close()


class MLflow(_Tracker):
    """A SQLite store in ``mlflow/`` of the run directory; recent MLflow refuses file stores."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        _require("mlflow", "mlflow")
        tracking = _require("mlflow.tracking", "mlflow")
        store = folder.resolve() / "mlflow"
        store.mkdir(exist_ok=True)
        # MLflow unquotes this address, but makes the quoted folder too: quote only what must be.
        database = str(store / "mlflow.db").replace("%", "%25").replace("?", "%3F")
        self.client = tracking.MlflowClient(tracking_uri=f"sqlite:///{database}")
        experiment = self.client.get_experiment_by_name("pluralllm-fl")
        identity = (
            experiment.experiment_id
            if experiment
            else self.client.create_experiment(
                "pluralllm-fl", artifact_location=str(store / "artifacts")
            )
        )
        run = self.client.create_run(identity, run_name=folder.name)
        self.run_id = run.info.run_id
        for key, value in config.to_run_config().items():
            self.client.log_param(self.run_id, key, value)

    def log(self, values: dict[str, float], step: int) -> None:
        """Write the values of one round."""
        for name, value in values.items():
            self.client.log_metric(self.run_id, _ascii(name), value, step=step)

    def close(self) -> None:
        """Flush and release."""
        self.client.set_terminated(self.run_id)


class WandB(_Tracker):
    """An offline run in ``wandb/`` of the run directory; `wandb sync` uploads it by hand."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.run: Any = _require("wandb", "wandb").init(
            project="pluralllm-fl",
            name=folder.name,
            dir=str(folder),
            config=config.to_run_config(),
            mode="offline",
        )

    def log(self, values: dict[str, float], step: int) -> None:
        """Write the values of one round."""
        self.run.log({**values, "server_round": step})

    def close(self) -> None:
        """Flush and release."""
        self.run.finish()


def _ascii(name: str) -> str:
    """Return the name with characters that MLflow refuses replaced."""
    return "".join(c if c.isalnum() or c in "/_-. :" else "_" for c in name)


def _require(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"trackers = '{extra}' needs a package that is not installed ({error}). "
            f"Run: pip install 'pluralllm-fl[{extra}]', or in a checkout pip install -e "
            f"'.[{extra}]'."
        ) from None
