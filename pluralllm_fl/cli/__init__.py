"""The command line: ``pluralllm …`` and ``python simulation.py``.

Heavy libraries are imported inside the commands: ``--help`` must answer at once.
"""

import os
from typing import Annotated

import typer

from pluralllm_fl import __version__
from pluralllm_fl.cli.align_evaluate import align
from pluralllm_fl.cli.audit import audit
from pluralllm_fl.cli.baselines import baselines
from pluralllm_fl.cli.bench import bench
from pluralllm_fl.cli.deploy import deploy
from pluralllm_fl.cli.federate import resume, run
from pluralllm_fl.cli.simulate import simulate
from pluralllm_fl.cli.use import check, evaluate, predict, report

# Before torch is imported: threads that wait actively for each other make embedding several times
# slower when other processes want the cores too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__all__ = ["app", "main", "simulate_main"]

_OPTIONS = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}

app = typer.Typer(
    help="Learn, without pooling anyone's answers, how groups distribute their preferences.",
    no_args_is_help=True,
    **_OPTIONS,  # type: ignore[arg-type]
)
data = typer.Typer(help="Look at data files.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(deploy, name="deploy")
app.add_typer(align, name="align")

app.command()(simulate)
app.command()(resume)
app.command()(baselines)
app.command()(evaluate)
app.command()(predict)
app.command()(report)
app.command()(audit)
app.command(context_settings={"ignore_unknown_options": True})(bench)
data.command()(check)
deploy.command()(run)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"pluralllm-fl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run ``pluralllm``."""
    app()


def simulate_main() -> None:
    """Run ``python simulation.py``: the simulate command alone."""
    alone = typer.Typer(**_OPTIONS)  # type: ignore[arg-type]
    alone.command()(simulate)
    alone()
