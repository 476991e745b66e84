"""Runs of a deployed federation: start, follow and resume them from the server's machine."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pluralllm_fl.cli.console import guarded, labelled, output, require_unix
from pluralllm_fl.cli.settings import Assignments, gather, gather_resumed
from pluralllm_fl.cli.simulate import simulate
from pluralllm_fl.cli.tables import show_groups, show_standing, show_summary, show_warnings
from pluralllm_fl.config import RunConfig
from pluralllm_fl.runs.lookup import resolve_run
from pluralllm_fl.runs.progress import EventTail, RoundProgress, duration
from pluralllm_fl.runs.record import RunRecord, read_json

if TYPE_CHECKING:
    from pluralllm_fl.processes.flower import FlowerConnection


@guarded
def run(
    folder: Annotated[Path, typer.Argument(metavar="SERVER_DIR", help="The server's folder.")],
    assignments: Assignments = None,
) -> None:
    """Run the federation to its end: start it, or go on where it was; resume it when it falls."""
    from pluralllm_fl.processes.flower import FlowerConnection

    require_unix()
    config = gather(folder / "federation.toml", {}, assignments or [])
    _supervise(config, FlowerConnection("federation", (folder / "flwr").absolute()))


@guarded
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, or the newest in it.")],
    rounds: Annotated[int | None, typer.Option(help="Go on to this number of rounds.")] = None,
    superlink: Annotated[
        str,
        typer.Option(
            help="Connection in Flower's config.toml; default: that of the server's folder in "
            "which the run lies, else Flower's default."
        ),
    ] = "",
    assignments: Assignments = None,
) -> None:
    """Continue an interrupted run, simulated or deployed, from its last completed round."""
    from pluralllm_fl.processes.flower import FlowerConnection

    require_unix()
    folder = resolve_run(run, completed=False)
    if RunRecord.read(folder).mode != "deployment":
        simulate(resume=folder, rounds=rounds, assignments=assignments)
        return
    config = gather_resumed(folder, {"num-server-rounds": rounds}, assignments or [])
    home = None if superlink else flower_home(folder)
    _supervise(config, FlowerConnection("federation" if home else superlink, home))


def flower_home(run: Path) -> Path | None:
    """Return the folder of Flower's settings that `deploy init` wrote above a run's directory."""
    homes = (parent / "flwr" for parent in run.absolute().parents)
    return next((home for home in homes if (home.parent / "federation.toml").is_file()), None)


def _supervise(config: RunConfig, connection: "FlowerConnection") -> None:
    from pluralllm_fl.processes.supervisor import Supervisor
    from pluralllm_fl.report import write_report

    console = output()
    folder = Path(config.output_dir) / config.run_name
    labelled(console, "run", folder)
    labelled(console, "", "Ctrl-C leaves it running; this command again follows it.")
    tail = EventTail(folder / "metrics.jsonl", since=time.time())
    with RoundProgress(console, tail) as progress:
        Supervisor(connection, config, progress.say, progress.update).bring_to_end()
    summary = read_json(folder / "summary.json")
    blocks = {side: summary.get(side) for side in ("seen", "unseen")}
    console.print()
    show_groups(console, blocks)
    console.print()
    show_summary(console, blocks)
    console.print()
    show_standing(console, blocks, {})  # the answers are at the organisations
    console.print()
    labelled(console, "time", f"{duration(summary['wall_seconds'])} rounds")
    labelled(console, "report", write_report(folder))
    show_warnings(console, summary.get("warnings", []))
