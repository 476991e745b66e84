"""What an audit is of: a finished simulation run, and the models that its rounds began with."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file

from pluralllm_fl.errors import ArtefactError, ConfigError
from pluralllm_fl.evaluation.audit.updates import Weights
from pluralllm_fl.evaluation.baselines import federated, untrained
from pluralllm_fl.evaluation.opening import open_run
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.runs.record import RunRecord
from pluralllm_fl.workspace import Workspace

# What is being done, how much of it is done, how much there is.
OnWork = Callable[[str, int, int], None]


class AuditedRun(NamedTuple):
    """A finished run: its folder, data, final model and number of rounds."""

    path: Path
    workspace: Workspace
    predictor: PreferencePredictor
    rounds: int


def open_audited(run: Path) -> AuditedRun:
    """Open a run with its data and its model."""
    record = RunRecord.read(run)
    if record.mode == "deployment":
        raise ConfigError(
            f"{run} is a deployed run: an audit needs every group's answers, which a deployment "
            "keeps apart. Audit a simulation on data of the same kind."
        )
    if not (run / "model").is_dir():
        raise ArtefactError(
            f"{run} holds no model: the run is {record.status or 'unfinished'}. Finish it "
            f"with: pluralllm simulate --resume '{run}'."
        )
    workspace, predictor = open_run(run)
    config = workspace.config
    held = {g: len(answers) for g, answers in workspace.dataset.groups.items()}
    if changed := [g for g, number in record.groups.items() if held.get(g) != number]:
        raise ConfigError(
            f"The data in {config.dataset} are not those of the run: group '{changed[0]}' had "
            f"{record.groups[changed[0]]} questions and has {held.get(changed[0], 0)}. "
            "Restore the file."
        )
    rounds = record.completed_rounds or config.num_server_rounds
    return AuditedRun(run, workspace, predictor, rounds)


def kept(subject: AuditedRun, server_round: int) -> tuple[str, Weights] | None:
    """Return where the model that a round began with is from, and its weights by name, any shape.

    None if it is not at hand.
    """
    workspace = subject.workspace
    if server_round == 1:
        return "initial", weights_of(untrained(workspace, workspace.config))
    folder = subject.path / "checkpoints" / f"round-{server_round - 1:04d}"
    file = folder / "arrays.safetensors"
    if not file.is_file():
        return None
    try:
        found = load_file(file, device=str(workspace.vectors.device))
        for name, value in subject.predictor.state_dict().items():
            if found[name].shape != value.shape:
                raise ValueError(f"{name} has another shape than in the model")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ArtefactError(
            f"{file} is damaged: {error}. Delete {folder}: the audit does without it."
        ) from None
    return "checkpoint", found


def is_fedavg(workspace: Workspace) -> bool:
    """Whether training in this process gives the models that the run had."""
    config = workspace.config
    return config.strategy.lower() == "fedavg" and "fraction_train" not in config.strategy_kwargs


def train_again(
    subject: AuditedRun, rounds: Sequence[int], on_work: OnWork
) -> tuple[PreferencePredictor, dict[int, tuple[str, Weights]]]:
    """Train the federation in this process; return it and the models that `rounds` began with.

    The latter by round, as in `kept`: where a model is from, and its weights by name, any shape.
    """
    config = subject.workspace.config
    found = {}

    def on_round(server_round: int, predictor: PreferencePredictor) -> None:
        if server_round + 1 in rounds:
            found[server_round + 1] = ("trained again", weights_of(predictor))
        on_work("training again", server_round, config.num_server_rounds)

    return federated(subject.workspace, config, on_round).eval(), found


def weights_of(predictor: PreferencePredictor) -> Weights:
    """Return a copy of a model's weights by name, any shape."""
    return {name: value.detach().clone() for name, value in predictor.state_dict().items()}
