"""From command-line options to a complete, typed run config."""

import shlex
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pluralllm_fl.config import RunConfig, Value, default_run_config
from pluralllm_fl.errors import ArtefactError, ConfigError, nearest
from pluralllm_fl.runs.lookup import resolve_run
from pluralllm_fl.runs.record import RunRecord

# Options of several commands that become run-config keys.
Dataset = Annotated[
    str | None, typer.Option(metavar="NAME_OR_PATH", help="Data set; default: synthetic.")
]
Seen = Annotated[str | None, typer.Option(metavar='"A;B;…"', help="Groups that train.")]
Unseen = Annotated[str | None, typer.Option(metavar='"C;D;…"', help="Groups that never train.")]
Seed = Annotated[int | None, typer.Option(help="Model, sampling and splits.")]
Recipe = Annotated[Path | None, typer.Option(metavar="FILE.toml", help="File of run-config keys.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any run-config key; repeatable."),
]


def gather(
    recipe: Path | None, named: Mapping[str, Value | None], assignments: Sequence[str]
) -> RunConfig:
    """Merge defaults, recipe and options (later wins) and make every path absolute.

    Parameters
    ----------
    recipe : Path or None
        TOML file of run-config keys.
    named : mapping of str to value or None
        The named options; None: not given.
    assignments : sequence of str
        ``key=value`` of ``--set``; they win over the named options.

    Raises
    ------
    ConfigError
        For an unreadable recipe, unknown keys (with the nearest) and impossible values.
    """
    defaults = default_run_config()
    values = defaults | {"output-dir": "runs"}
    values |= _recipe(recipe) if recipe else {}
    values |= _overrides(named, assignments, defaults)
    if values["output-dir"] == "":  # the server would take its own default, elsewhere
        values["output-dir"] = "runs"
    return _finished(values)


def gather_resumed(
    run: Path, named: Mapping[str, Value | None], assignments: Sequence[str]
) -> RunConfig:
    """Return the config of an interrupted run, to continue it in its own directory.

    Raises
    ------
    ArtefactError
        If there is no such run or it is already completed.
    """
    run = resolve_run(run, completed=False)
    recorded = RunRecord.read(run, "config")
    config = _continued(run, recorded, named, assignments)
    done = recorded.completed_rounds
    if recorded.status == "completed" and done >= config.num_server_rounds:
        raise ArtefactError(
            f"{run} is already completed ({done} rounds). Nothing to resume; more rounds: add "
            f"--rounds N. Its report: pluralllm report {shlex.quote(str(run))}"
        )
    return config


def gather_finished(run: Path, recorded: RunRecord, assignments: Sequence[str]) -> RunConfig:
    """Return the config of a finished run, for what goes on with its model.

    Raises
    ------
    ArtefactError
        If the run is not completed.
    """
    if recorded.status != "completed":
        raise ArtefactError(
            f"{run} is {recorded.status}, not completed: it has no final model. Continue it with: "
            f"pluralllm resume {shlex.quote(str(run))}"
        )
    return _continued(run, recorded, {}, assignments)


def _continued(
    run: Path,
    recorded: RunRecord,
    named: Mapping[str, Value | None],
    assignments: Sequence[str],
) -> RunConfig:
    values = {**recorded.config} | _overrides(named, assignments, default_run_config())
    values |= {"resume": str(run), "output-dir": str(run.parent), "run-name": run.name}
    return _finished(values)


def absolute_source(source: str) -> str:
    """Make a data set's path absolute; names and hub ids stay as they are.

    Raises
    ------
    DatasetError
        If it is a path that cannot be.
    """
    from pluralllm_fl.datasets import SOURCES, local_path, rated_source
    from pluralllm_fl.datasets.files import FORMATS

    if source in SOURCES:
        return source
    form, path_text = rated_source(source)
    if form:
        return f"{form}:{local_path(path_text).absolute()}"
    path = local_path(source)
    looks_like_path = source.startswith((".", "~", "/")) or path.suffix.lower() in FORMATS
    return str(path.absolute()) if looks_like_path or path.exists() else source


def _finished(values: dict[str, Value]) -> RunConfig:
    for key in ("output-dir", "resume", "embedding-cache"):
        if isinstance(text := values.get(key), str) and text:
            values[key] = str(_path(key, text).absolute())
    if isinstance(model := values.get("embedding-model"), str) and model != "auto":
        path = _path("embedding-model", model)
        if path.exists():
            values["embedding-model"] = str(path.absolute())
    if isinstance(source := values.get("dataset"), str):
        values["dataset"] = absolute_source(source)
    config = RunConfig.from_run_config(values)
    return config if config.run_name else RunConfig.from_run_config(
        values | {"run-name": config.new_run_name()}
    )  # fmt: skip


def _path(key: str, text: str) -> Path:
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # name too long, unknown ~user, …
        raise ConfigError(f"{key} = '{text[:80]}' is no usable path: {error}.") from None
    return path


def _recipe(path: Path) -> dict[str, Value]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        raise ConfigError(f"No recipe {path}.{nearest(path.name, siblings)}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"Recipe {path} cannot be read: {error}.") from None


def _overrides(
    named: Mapping[str, Value | None], assignments: Sequence[str], defaults: Mapping[str, Value]
) -> dict[str, Value]:
    given = {key: value for key, value in named.items() if value is not None}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {assignment}: write it as key=value.")
        key = key.strip()
        given[key] = _value(text.strip(), defaults.get(key))
    return given


def _value(text: str, default: Value | None) -> Value:
    """Read a value like TOML; a bare word, and anything else for a text key, is text."""
    try:
        parsed: dict[str, Any] = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = parsed["value"]
    scalar = len(parsed) == 1 and isinstance(value, bool | int | float | str)
    if not scalar or (isinstance(default, str) and not isinstance(value, str)):
        return text
    return value  # type: ignore[no-any-return]
