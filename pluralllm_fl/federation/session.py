"""One run from configuration to artefacts: what the ServerApp does, without Flower's entry."""

import importlib.metadata
import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from pluralllm_fl.config import RunConfig, toml
from pluralllm_fl.errors import ConfigError, PluralLLMError
from pluralllm_fl.evaluation.card import write_card
from pluralllm_fl.federation import results, resuming, trackers
from pluralllm_fl.federation.callbacks import (
    Callback,
    CheckpointWriter,
    EarlyStopping,
    Membership,
    MetricsLog,
)
from pluralllm_fl.federation.grid import GuardedGrid
from pluralllm_fl.federation.keys import NodeKeys
from pluralllm_fl.federation.loop import LearningRate, RoundLoop
from pluralllm_fl.federation.roster import Roster, collect
from pluralllm_fl.federation.strategy import check_private, strategy_of
from pluralllm_fl.runs.artefacts import RunDirectory, write_atomic, write_directory
from pluralllm_fl.runs.checkpoint import Checkpoint, RunState
from pluralllm_fl.runs.record import SCHEMA, now
from pluralllm_fl.strategies import state as strategy_state
from pluralllm_fl.wire.records import to_arrays, to_record

logger = logging.getLogger("flwr.pluralllm_fl")

_PACKAGES = ("torch", "flwr", "ray", "numpy", "transformers")


class Model(Protocol):
    """What a run needs of a predictor."""

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors by name."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Set the tensors."""
        ...

    def save_pretrained(self, path: Path, *, data: str) -> Any:
        """Write config.json and model.safetensors; `data` is the data's fingerprint."""
        ...


ModelBuilder = Callable[[int, str], Model]


def run_federation(
    grid: Grid,
    config: RunConfig,
    build_model: ModelBuilder,
    learning_rate_at: LearningRate,
) -> Path:
    """Run a federation and write its artefacts.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    config : RunConfig
        The run; with ``resume`` set, the run to continue.
    build_model : callable
        ``(embedding dimension, embedding fingerprint) -> model`` with the initial parameters.
    learning_rate_at : callable
        ``(config, round) -> learning rate``.

    Returns
    -------
    Path
        The run directory. However the run ends, its run.json says so; a refused resume leaves
        the directory as it was.
    """
    directory = RunDirectory.open(Path(config.resume)) if config.resume else _create(config)
    with directory.claimed():
        start = resuming.checkpoint_of(directory, config) if config.resume else None
        _run(_Session(grid, config, directory, start), build_model, learning_rate_at)
    return directory.path


def _run(session: "_Session", build_model: ModelBuilder, learning_rate_at: LearningRate) -> None:
    try:
        session.run(build_model, learning_rate_at)
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        path = session.directory.path
        session.close("interrupted", f'Interrupted. Continue with resume = "{path}".')
        raise
    except BaseException as error:
        text = (
            str(error) if isinstance(error, PluralLLMError) else f"{type(error).__name__}: {error}"
        )
        session.close("failed", text)
        raise
    session.close("completed", None)


class _Session:
    """The parts of one run that must be closed whatever happens."""

    def __init__(
        self, grid: Grid, config: RunConfig, directory: RunDirectory, start: Checkpoint | None
    ) -> None:
        self.grid = grid
        self.config = config
        self.directory = directory
        self.start = start
        self.loop: RoundLoop | None = None
        self.writer: CheckpointWriter | None = None
        self.begun = start is None
        self.refused: set[str] = set()

    def run(self, build_model: ModelBuilder, learning_rate_at: LearningRate) -> None:
        config, directory = self.config, self.directory
        roster = collect(
            self.grid,
            expected_nodes=self._expected_nodes,
            join_timeout=config.join_timeout,
            answer_timeout=config.round_timeout,
            seen=config.seen,
            unseen=config.unseen,
            keys=NodeKeys(self.grid, config.node_keys, self._refused),
        )
        if not (roster.simulated or config.node_keys):
            logger.warning(
                "The nodes' keys are not bound to groups: any registered node can say that it is "
                "any group. docs/deploy.md says how to bind them (node-keys)."
            )
        found = resuming.facts(config, roster)
        if self.start is not None:
            resuming.require_same(directory, roster, config)
        model = build_model(roster.dimension, roster.embedding)
        strategy, progress = self._state(roster, model)
        stopping, callbacks = self._callbacks(roster)
        grid = GuardedGrid(self.grid, roster, config.round_timeout)
        loop = RoundLoop(grid, strategy, config, progress, learning_rate_at, callbacks)
        self.loop = loop
        if self.start is not None and stopping is not None:
            stopping.load(self.start.stopping, self.start.best_arrays)
            loop.stop = stopping.stopped
        self._begin(found)
        self._announce(loop, roster)
        loop.run()
        if stopping is not None:
            loop.finish(stopping.best_arrays or None, stopping.best_evaluation)
        else:
            loop.finish(None, None)
        _save_model(directory, model, loop, roster.fingerprint)
        warnings = results.warnings(directory.evaluation(0), loop.progress.evaluation)
        for text in warnings:
            loop.emit("warning", round=loop.progress.round, text=text)
        _save_summary(directory, loop.progress, warnings)
        write_card(directory.path)

    def close(self, status: str, error: str | None) -> None:
        """Save the last completed round and say how the run ended, as far as can be written."""
        if not self.begun:
            return
        steps: list[Callable[[], Any]] = []
        if status != "completed":
            steps += [self._flush]
        steps += [
            lambda: self.directory.end(status, error, self._completed),
            lambda: self._finish_event(status, error),
        ]
        for step in steps:
            try:
                step()
            except PluralLLMError as problem:
                if status == "completed":
                    raise
                logger.error("%s", problem)

    @property
    def _expected_nodes(self) -> int:
        """Nodes to wait for; a resumed run needs also those that joined it late."""
        if self.start is None or not self.config.expected_nodes:
            return self.config.expected_nodes
        return max(self.config.expected_nodes, len(self.directory.run.groups))

    @property
    def _first(self) -> int:
        return 1 + (self.start.progress.round if self.start else 0)

    @property
    def _completed(self) -> int:
        """The round that a resume continues from: that of the newest checkpoint."""
        written = self.writer.last_round if self.writer else None
        return self._first - 1 if written is None else written

    def _begin(self, found: Mapping[str, Any]) -> None:
        """Write down what was found; a resume's first change, after nothing can refuse it."""
        fields = dict(found)
        if self.start is not None:
            done = self.start.progress.round
            self.directory.rewind_events(done)
            fields |= {
                "status": "running",
                "error": None,
                "finished": None,
                "config": self.config.to_run_config(),
                "versions": _versions(),
                "completed_rounds": done,
            }
            logger.info("Resuming %s after round %d", self.directory.path, done)
        fields["flower_run"] = self.grid.run.run_id
        self.directory.update_run(**fields)
        self.begun = True

    def _flush(self) -> None:
        if self.writer is not None and self.loop is not None:
            self.writer.flush(self.loop.emit)

    def _finish_event(self, status: str, error: str | None) -> None:
        fields = {"status": status, "error": error}
        if self.loop is not None:
            self.loop.emit("run_finished", **fields)
        else:
            self.directory.append_event({"event": "run_finished", "time": time.time(), **fields})

    def _refused(self, reason: str) -> None:
        """Tell of a node that passes for another, once a run."""
        logger.warning("Refused: %s", reason)
        if self.begun and reason not in self.refused:
            self.refused.add(reason)
            event = {"event": "node_refused", "time": time.time(), "reason": reason}
            self.directory.append_event(event)

    def _keep(self, roster: Roster) -> None:
        self.directory.update_run(**resuming.facts(self.config, roster))

    def _callbacks(self, roster: Roster) -> tuple[EarlyStopping | None, list[Callback]]:
        config = self.config
        patience = config.early_stopping_patience
        stopping = EarlyStopping(patience) if patience else None
        self.writer = CheckpointWriter(self.directory, config.checkpoint_every, stopping)
        callbacks: list[Callback] = [
            MetricsLog(self.directory, config.num_server_rounds),
            Membership(roster, self._keep),
        ]
        callbacks += trackers.build(self.directory.path, config)
        callbacks += [stopping] if stopping else []
        return stopping, [*callbacks, self.writer]

    def _state(self, roster: Roster, model: Model) -> tuple[Strategy, RunState]:
        """Return strategy and progress: fresh ones, or those of the checkpoint."""
        config = self.config
        strategy = strategy_of(config, train_nodes=len(roster.seen), all_nodes=len(roster.nodes))
        check_private(strategy, config)
        arrays = to_arrays(ArrayRecord(model.state_dict()))
        progress = RunState(arrays)
        if self.start is not None:
            progress = self.start.progress
            shapes = {k: (v.shape, v.dtype) for k, v in arrays.items()}
            if {k: (v.shape, v.dtype) for k, v in progress.arrays.items()} != shapes:
                raise ConfigError("The checkpoint's model is not the one that the config builds.")
            strategy_state.restore(strategy, self.start.strategy, self.start.strategy_arrays)
        return strategy, progress

    def _announce(self, loop: RoundLoop, roster: Roster) -> None:
        loop.emit(
            "run_started",
            rounds=self.config.num_server_rounds,
            first_round=self._first,
            strategy=self.config.strategy,
            parameters=sum(array.size for array in loop.progress.arrays.values()),
        )
        loop.emit(
            "roster",
            nodes=[
                {"group": n.group, "role": n.role, "questions": n.questions} for n in roster.nodes
            ],
        )


def _create(config: RunConfig) -> RunDirectory:
    name = config.run_name or config.new_run_name()
    directory = RunDirectory.create(config.output_directory / name)
    directory.update_run(
        schema=SCHEMA,
        status="running",
        config=config.to_run_config(),
        versions=_versions(),
        dataset={"name": config.dataset, "fingerprint": None, "groups": {}},
        started=now(),
    )
    resume = {**config.to_run_config(), "resume": str(directory.path)}
    write_atomic(directory.path / "resume.toml", toml(resume).encode())
    logger.info("Run directory: %s", directory.path)
    return directory


def _save_model(directory: RunDirectory, model: Model, loop: RoundLoop, data: str) -> None:
    model.load_state_dict(to_record(loop.progress.arrays).to_torch_state_dict())
    write_directory(directory.path / "model", lambda path: model.save_pretrained(path, data=data))


def _save_summary(directory: RunDirectory, progress: RunState, warnings: list[str]) -> None:
    final = progress.evaluation or {}
    directory.write_json(
        "summary.json",
        {
            "status": "completed",
            "rounds": progress.round,
            "wall_seconds": progress.seconds,
            "bytes_up": progress.bytes_up,
            "bytes_down": progress.bytes_down,
            "seen": final.get("seen"),
            "unseen": final.get("unseen"),
            "warnings": warnings,
        },
    )


def _versions() -> dict[str, str]:
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return versions
