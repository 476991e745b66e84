"""The simulate command: every group on this machine, from data to report."""

import contextlib
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from pluralllm_fl.cli.console import (
    FAILURE,
    INTERRUPTED,
    drop_output,
    guarded,
    labelled,
    messages,
    output,
    require_unix,
    show_error,
)
from pluralllm_fl.cli.heading import show_data
from pluralllm_fl.cli.interrupts import one_interrupt
from pluralllm_fl.cli.settings import (
    Assignments,
    Dataset,
    Recipe,
    Seed,
    Seen,
    Unseen,
    gather,
    gather_resumed,
)
from pluralllm_fl.cli.tables import (
    show_diagnostics,
    show_groups,
    show_standing,
    show_summary,
    show_warnings,
)
from pluralllm_fl.config import RunConfig, Value, app_directory
from pluralllm_fl.errors import ArtefactError, ConfigError, FederationError
from pluralllm_fl.runs.artefacts import RunDirectory
from pluralllm_fl.runs.lookup import close_run
from pluralllm_fl.runs.progress import EventTail, RoundProgress, duration
from pluralllm_fl.runs.record import RunRecord, read_json

if TYPE_CHECKING:
    from pluralllm_fl.processes.launcher import PrivateSuperLink, RunEnd
    from pluralllm_fl.workspace import SplitData


@guarded
def simulate(
    dataset: Dataset = None,
    seen: Seen = None,
    unseen: Unseen = None,
    rounds: Annotated[int | None, typer.Option(help="Federated rounds.")] = None,
    seed: Seed = None,
    final: Annotated[
        bool,
        typer.Option(
            "--final",
            help="For a model to use: train on every question. None is left to measure it by.",
        ),
    ] = False,
    recipe: Recipe = None,
    assignments: Assignments = None,
    output_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="Holds one folder a run; default: ./runs.")
    ] = None,
    gpus: Annotated[
        float, typer.Option(min=0, metavar="FRACTION", help="Share of a GPU that each node uses.")
    ] = 0.0,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Continue an interrupted run.")
    ] = None,
    verbose: Annotated[bool, typer.Option(help="Show the traceback of errors.")] = False,
) -> None:
    """Simulate a federation of every group on this machine."""
    require_unix()
    named: dict[str, Value | None] = {
        "dataset": dataset, "seen-groups": seen, "unseen-groups": unseen,
        "num-server-rounds": rounds, "seed": seed, "output-dir": output_dir,
    }  # fmt: skip
    if final:
        named |= {"validation-fraction": 0.0, "test-fraction": 0.0}
    assignments = assignments or []
    if resume is None:
        config = gather(recipe, named, assignments)
    else:
        if recipe is not None:
            raise typer.BadParameter("A resumed run keeps its recipe; leave --recipe out.")
        if final:
            raise typer.BadParameter("A resumed run keeps its questions; leave --final out.")
        config = gather_resumed(resume, named, assignments)
        with RunDirectory.open(Path(config.resume)).claimed():
            pass  # the server will claim it; until then, none else may have it
    _check_gpus(config, gpus)
    with one_interrupt():
        _Simulation(config, gpus, verbose=verbose).run()


class _Simulation:
    def __init__(self, config: RunConfig, gpus: float, *, verbose: bool) -> None:
        self.config = config
        self.gpus = gpus
        self.verbose = verbose
        self.console = output()
        self.started, self.began = time.monotonic(), time.time()
        self.folder = Path(config.output_dir) / config.run_name
        self.log = Path(config.output_dir) / f"{config.run_name}.flower.log"

    def run(self) -> None:
        from pluralllm_fl.processes.launcher import PrivateSuperLink

        _find_own_strategy(self.config.strategy)
        with contextlib.ExitStack() as flower:
            # Flower starts while this process loads torch and the data.
            superlink = flower.enter_context(PrivateSuperLink(threads=self.config.threads))
            data = self._prepare()
            with _writable(
                Path(self.config.output_dir), self.folder, resumed=bool(self.config.resume)
            ):
                show_data(self.console, self.config, data)
                labelled(self.console, "output", self.folder)
                self._federate(flower, superlink, data)
        try:
            self._finish()
        except KeyboardInterrupt:
            self._interrupted()

    def _prepare(self) -> "SplitData":
        """Read data and groups; refuse here what would fail in Flower's processes."""
        from pluralllm_fl.federation import trackers
        from pluralllm_fl.federation.strategy import strategy_of
        from pluralllm_fl.runs import checkpoint
        from pluralllm_fl.workspace import for_nodes, require_questions, split_data

        config = self.config
        trackers.require_packages(config)
        if config.resume:
            checkpoint.read(checkpoint.newest(self.folder / "checkpoints"))
            config = for_nodes(config, len(RunRecord.read(self.folder).groups))
        data = split_data(config)
        require_questions(data.dataset, data.groups, config.context_questions)
        strategy_of(config, train_nodes=len(data.seen), all_nodes=len(data.groups))
        return data

    def _federate(
        self,
        flower: contextlib.ExitStack,
        superlink: "PrivateSuperLink",
        data: "SplitData",
    ) -> None:
        try:
            with flower:  # a run that still lives cannot be closed
                self._embed(data)
                outcome = self._follow(superlink, len(data.groups))
        except KeyboardInterrupt:
            self._interrupted()
        except BrokenPipeError:
            drop_output()
            self._interrupted("Interrupted: nobody reads the output any more (as after `| head`).")
        except BaseException as error:
            close_run(self.folder, "failed", str(error))
            raise
        finally:
            self._keep_log()
        if outcome.status == "stopped":
            self._interrupted()
        if outcome.status != "completed":
            self._failed(outcome)

    def _follow(self, superlink: "PrivateSuperLink", supernodes: int) -> "RunEnd":
        from pluralllm_fl.processes.launcher import RunEnd

        tail = EventTail(self.folder / "metrics.jsonl", since=time.time())
        with RoundProgress(self.console, tail) as progress:

            def tick() -> bool:
                self._keep_log()
                progress.update()
                return progress.completed and not self.config.trackers  # these finish after it

            try:
                return superlink.run(
                    app_directory(),
                    self.config.to_run_config(),
                    supernodes=supernodes,
                    gpus=self.gpus,
                    log=self.log,
                    tick=tick,
                )
            except FederationError:
                progress.update()
                if not progress.completed:
                    raise
        return RunEnd("completed", "")  # all results are there, whatever fell over afterwards

    def _embed(self, data: "SplitData") -> None:
        from rich.progress import Progress

        from pluralllm_fl.workspace import text_embedder

        started = time.monotonic()
        with Progress(console=self.console, transient=True, disable=not sys.stdout.isatty()) as bar:
            task = bar.add_task("embedding", total=None)
            table = text_embedder(self.config).embed(
                data.dataset.questions,
                lambda done, total: bar.update(task, completed=done, total=total),
            )
        seconds = duration(time.monotonic() - started)
        labelled(self.console, "embedding", f"{len(table.vectors)} options ready in {seconds}")

    def _finish(self) -> None:
        """Show the results, then write diagnostics and report."""
        from pluralllm_fl.evaluation.diagnostics import write_diagnostics
        from pluralllm_fl.report import write_report

        summary = read_json(self.folder / "summary.json")
        blocks = {side: summary.get(side) for side in ("seen", "unseen")}
        self.console.print()
        show_groups(self.console, blocks)
        self.console.print()
        show_summary(self.console, blocks)
        diagnostics = write_diagnostics(self.folder)
        show_diagnostics(self.console, diagnostics)
        self.console.print()
        show_standing(self.console, blocks, diagnostics["references"])
        self.console.print()
        elapsed = duration(time.monotonic() - self.started)
        labelled(
            self.console, "time", f"{elapsed}, of it {duration(summary['wall_seconds'])} rounds"
        )
        labelled(self.console, "report", write_report(self.folder))
        show_warnings(self.console, summary.get("warnings", []))

    def _failed(self, outcome: "RunEnd") -> None:
        from pluralllm_fl.processes.launcher import last_lines

        recorded, record = None, self.folder / "run.json"
        # A refused resume leaves run.json as it was, with the old error.
        if record.is_file() and record.stat().st_mtime > self.began:
            recorded = RunRecord.read(self.folder).error
        cause = recorded or outcome.details or last_lines(self.log) or "no reason given"
        close_run(self.folder, "failed", cause)
        show_error(FederationError(cause), f"Flower's log: {self.log}", *self._resume_hint())
        if self.verbose:
            for line in last_lines(self.log, 200).split("\n"):
                messages().print(line, markup=False, highlight=False)
        raise typer.Exit(FAILURE)

    def _interrupted(self, what: str = "Interrupted.") -> NoReturn:
        from pluralllm_fl.processes.launcher import ignored_interrupts

        with ignored_interrupts():
            close_run(self.folder, "interrupted", None)
        if self.log.parent != self.folder:
            self.log.unlink(missing_ok=True)
        if (self.folder / "summary.json").is_file():
            report = f"pluralllm report {shlex.quote(str(self.folder))}"
            hints = [f"All rounds are done. Write the report with: {report}"]
        else:
            hints = self._resume_hint() or ["No round was completed: there is nothing to resume."]
        for line in [what, *hints]:
            messages().print(line, markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED)

    def _resume_hint(self) -> list[str]:
        if not any((self.folder / "checkpoints").glob("round-*")):
            return []
        program = "python simulation.py"
        if Path(sys.argv[0]).name.startswith("pluralllm"):
            program = "pluralllm simulate"
        gpus = f" --gpus {self.gpus:g}" if self.gpus else ""
        return [f"Continue it with: {program} --resume {shlex.quote(str(self.folder))}{gpus}"]

    def _keep_log(self) -> None:
        """Move Flower's log into the run folder once the server made it (it must be empty)."""
        if self.log.parent != self.folder and (self.folder / "run.json").is_file():
            with contextlib.suppress(FileNotFoundError):
                self.log = self.log.replace(self.folder / "flower.log")


def _find_own_strategy(strategy: str) -> None:
    """Let ``module:Class`` name a file in the working folder, here and in Flower's processes.

    Only then: a folder before the installed packages could hide one of them.
    """
    if ":" in strategy:
        folder = str(Path.cwd())
        sys.path.append(folder)
        entries = [os.environ.get("PYTHONPATH", ""), folder]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, entries))


def _check_gpus(config: RunConfig, gpus: float) -> None:
    if config.device == "cuda" and not gpus:
        raise ConfigError(
            "device = 'cuda', but the nodes get no GPU: add --gpus 0.25 (a share per node)."
        )
    if gpus and "RAY_ADDRESS" not in os.environ:
        import torch

        if not torch.cuda.is_available():
            raise ConfigError(f"--gpus {gpus:g}: no CUDA device is usable here; leave --gpus out.")


@contextlib.contextmanager
def _writable(output_dir: Path, folder: Path, *, resumed: bool) -> Iterator[None]:
    """Make sure that the run can be written; leave no empty folder behind if it fails."""
    made = [p for p in (output_dir, *output_dir.parents) if not p.exists()]
    try:
        taken = folder.exists() and any(folder.iterdir())
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise ArtefactError(
            f"Cannot write to output-dir {output_dir}: {error.strerror or error}. "
            "Choose another with --output-dir."
        ) from None
    if taken and not resumed:
        raise ArtefactError(
            f"{folder} is not empty. Choose another run-name, or continue that run with "
            f"--resume {shlex.quote(str(folder))}."
        )
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()
        raise
