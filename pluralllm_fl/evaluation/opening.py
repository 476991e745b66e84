"""Opening a finished run: its config, its data and its predictor."""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from pluralllm_fl.config import RunConfig
from pluralllm_fl.devices import torch_threads
from pluralllm_fl.errors import ArtefactError
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.runs.record import RunRecord, number
from pluralllm_fl.workspace import Workspace, is_elastic, open_workspace

Work = TypeVar("Work", bound=Callable[..., Any])
UNSAID = 8  # groups of the survey of a run that does not say how many were generated


def open_run(run: Path, **changes: Any) -> tuple[Workspace, PreferencePredictor]:
    """Open the data and the model of a finished run.

    Parameters
    ----------
    changes
        Replace values of the run's config.

    Raises
    ------
    ArtefactError
        When run.json or the model is missing or damaged, or the language model is another one.
    """
    config = replace(run_config(run), device="auto", **changes)
    workspace = open_workspace(config)
    predictor = PreferencePredictor.from_pretrained(run / "model")
    require_same_embedding(predictor, workspace.embedding_fingerprint)
    return workspace, predictor.to(workspace.vectors.device)


def with_threads_of_run(work: Work) -> Work:
    """Let a function of a run compute with as many torch threads as the run had.

    The predictor is small: more threads would only wait for each other.
    """

    @wraps(work)
    def with_threads(run: Path, *args: Any, **options: Any) -> Any:
        with torch_threads(run_config(run).threads):
            return work(run, *args, **options)

    return cast(Work, with_threads)


def run_config(run: Path) -> RunConfig:
    """Read the run config that a run directory holds.

    Of a generated survey that was made to fit the nodes it has the size and the groups that
    trained.

    Raises
    ------
    ArtefactError
        When run.json is missing or damaged.
    """
    record = RunRecord.read(run, "config")
    config = RunConfig.from_run_config(record.config)
    if not is_elastic(config):
        return config
    record = RunRecord.read(run, "seen", "dataset")
    groups = max(int(number(record.dataset.get("generated")) or UNSAID), len(record.groups))
    groups = RunConfig.checked("synthetic_groups", groups)
    return replace(config, synthetic_groups=groups, seen_groups=";".join(record.seen))


def require_same_embedding(predictor: PreferencePredictor, fingerprint: str) -> None:
    """Refuse a language model other than the one that the predictor was trained with."""
    trained = predictor.config.embedding_fingerprint
    if trained and trained != fingerprint:
        raise ArtefactError(
            f"The predictor was trained on embeddings of '{predictor.config.embedding_model}' "
            f"({trained[:12]}), but the model found here is another ({fingerprint[:12]}). "
            "Install the same model and version of pluralllm-fl, or retrain."
        )
