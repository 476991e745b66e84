"""The bench command: run the scripts in ``benchmarks/`` of the source tree."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from pluralllm_fl.cli.console import FAILURE, guarded, labelled, output
from pluralllm_fl.config import app_directory
from pluralllm_fl.errors import ArtefactError, ConfigError, nearest
from pluralllm_fl.runs.progress import duration

_QUALITY = ("--dataset", "--seeds", "--processes", "--set")
# In the order of `all`, with the options that `all` passes on to each.
SCRIPTS: dict[str, tuple[str, ...]] = {
    "convergence": _QUALITY,
    "context_size": (),
    "speed": ("--dataset",),
    "api": ("--dataset",),
    "style": ("--dataset",),
    "scale": (),
    "transfer": (*_QUALITY, "--survey"),
    "ablation": _QUALITY,
    "embedders": (*_QUALITY, "--models"),
    "dialogues": ("--dialogues", "--split", "--seeds", "--processes", "--set"),
    "privacy": _QUALITY,
    "demo": ("--seeds", "--processes", "--set"),
    "summaries": ("--seeds", "--processes", "--set"),
    "strategies": _QUALITY,
    "align": ("--dataset", "--policy", "--seeds", "--set"),
    "figures": (),
}
ALL = "all"


@guarded
def bench(
    name: Annotated[str, typer.Argument(help=f"{', '.join(SCRIPTS)} or {ALL}.")],
    options: Annotated[
        list[str] | None, typer.Argument(help="Options of the benchmark; -- --help lists them.")
    ] = None,
) -> None:
    """Run a benchmark of the source tree, or all of them in order.

    `all` needs --dataset FILE (GlobalOpinionQA), --survey FILE (OpinionQA), --dialogues FILE
    (Global Dialogues) and --policy FILE (a language model), and hands each benchmark the options
    that it takes.
    """
    folder = app_directory() / "benchmarks"
    if name not in (*SCRIPTS, ALL):
        raise ConfigError(f"There is no benchmark '{name}'.{nearest(name, [*SCRIPTS, ALL])}")
    given = options or []
    if name != ALL:
        raise typer.Exit(_run(_script(folder, name), given))
    shared = _by_script(given)
    scripts = {script: _script(folder, script) for script in SCRIPTS}
    console, failed = output(), False
    lines = []
    for script, path in scripts.items():
        labelled(console, script, "…")
        start = time.monotonic()
        code = _run(path, shared[script])
        failed |= code != 0
        said = f"failed (exit code {code})" if code else "done"
        lines.append((script, f"{said} in {duration(time.monotonic() - start)}"))
    for line in lines:
        labelled(console, *line)
    if failed:
        raise typer.Exit(FAILURE)


def _script(folder: Path, name: str) -> Path:
    path = folder / f"{name}.py"
    if not path.is_file():
        raise ArtefactError(
            f"{path} is missing: benchmarks are part of the source tree, not of the installed "
            "package. Clone the repository and install it with pip install -e ."
        )
    return path


def _by_script(options: list[str]) -> dict[str, list[str]]:
    """Hand each script the options that it takes, with their values.

    Raises
    ------
    ConfigError
        For an option that no script takes, or if one that a script cannot do without is missing.
    """
    known = sorted({flag for flags in SCRIPTS.values() for flag in flags})
    values: dict[str, list[str]] = {}
    flag = ""
    for word in options:
        if word.startswith("--"):
            flag, *value = word.split("=", 1)
            if flag not in known:
                raise ConfigError(f"bench {ALL} has no option {flag}.{nearest(flag, known)}")
            values[flag] = value
        elif not flag:
            raise ConfigError(f"bench {ALL} takes options only, not '{word}'.")
        else:
            values[flag].append(word)
    for needed in ("--dataset", "--survey", "--dialogues", "--policy"):
        if not values.get(needed):
            raise ConfigError(f"bench {ALL} needs {needed} FILE.")
    return {
        script: [word for flag in flags if flag in values for word in (flag, *values[flag])]
        for script, flags in SCRIPTS.items()
    }


def _run(script: Path, options: list[str]) -> int:
    # The scripts import each other, and the package beside them.
    path = os.pathsep.join(filter(None, (str(script.parents[1]), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, str(script), *options]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}).returncode
