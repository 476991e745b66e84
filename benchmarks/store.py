"""What the benchmarks of quality share: runs at the same time, their JSON file, and its table.

A file holds what was measured, ``{"runs": {name: [one run a seed]}}``, and what follows from it.
Measuring a name again with some seeds replaces its runs with these and keeps all others.
"""

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from alignment import interval
from trained import configured

from pluralllm_fl.errors import PluralLLMError
from pluralllm_fl.workspace import read_dataset, text_embedder

Run = dict[str, Any]
Measure = Callable[[Run], float | None]


class Store:
    """Runs by name, kept in a JSON file.

    Parameters
    ----------
    path : Path
        Read if it exists, to keep its runs.
    about : dict
        What all runs share, such as data set and language model.

    Raises
    ------
    SystemExit
        If the file holds runs that share something else.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.about = path, about
        path.parent.mkdir(parents=True, exist_ok=True)
        self.runs: dict[str, list[Run]] = {}
        if not path.is_file():
            return
        held = json.loads(path.read_text(encoding="utf-8"))
        if "runs" not in held:
            raise SystemExit(f"{path} is of an earlier format: delete it or choose --output.")
        if held["about"] != about:
            raise SystemExit(
                f"{path} holds runs of {held['about']}, not of {about}: choose another --output."
            )
        self.runs = held["runs"]

    def measure(
        self,
        run: Callable[..., dict[str, Run]],
        tasks: Sequence[tuple[Any, ...]],
        names: Sequence[str],
        processes: int,
    ) -> None:
        """Call ``run(*task)``, which returns runs by name, for every task, each on a core.

        A run takes the place of an earlier one of the same name and seed. The file is written
        after each task.
        """
        for name in names:
            self.runs.setdefault(name, [])
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            started = [pool.submit(run, *task) for task in tasks]
            try:
                for done, future in enumerate(as_completed(started), start=1):
                    for name, found in future.result().items():
                        kept = [one for one in self.runs[name] if one["seed"] != found["seed"]]
                        self.runs[name] = sorted([*kept, found], key=lambda one: int(one["seed"]))
                        print(f"{done}/{len(tasks)}: {name}, seed {found['seed']}", flush=True)
                    self.write()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # else all others run first
                raise

    def write(self, **derived: Any) -> None:
        """Write the runs, and what was derived from them."""
        record = {
            "about": self.about,
            "versions": {p: version(p) for p in ("torch", "transformers")},
            "machine": {"python": platform.python_version(), "arch": platform.machine()},
            **derived,
            "runs": self.runs,
        }
        self.path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def over_seeds(self, name: str, measure: Measure) -> dict[str, Any] | None:
        """Return mean and interval of a measure; None if no run of the name has it."""
        values = [value for run in self.runs[name] if (value := measure(run)) is not None]
        return interval(values) if values else None

    def paired(
        self,
        first: tuple[str, Measure],
        second: tuple[str, Measure],
        compare: Callable[[float, float], float] = lambda a, b: a - b,
    ) -> dict[str, Any] | None:
        """Compare two measures seed by seed; None if no seed has both."""
        sides = []
        for name, measure in (first, second):
            sides.append({run["seed"]: measure(run) for run in self.runs.get(name, [])})
        values = [
            compare(a, b)
            for seed, a in sides[0].items()
            if a is not None and (b := sides[1].get(seed)) is not None
        ]
        return interval(values) if values else None


def read(path: Path) -> Store:
    """Return the runs of a file that must exist.

    Raises
    ------
    SystemExit
        If it does not, or is no such file.
    """
    if not path.is_file():
        raise SystemExit(f"{path} is missing: run benchmarks/convergence.py first.")
    return Store(path, json.loads(path.read_text(encoding="utf-8")).get("about", {}))


def measured(name: str) -> Measure:
    """Return the measure of this name."""
    return lambda run: run["measures"].get(name)


def show(title: str, table: dict[str, dict[str, Any]], columns: Sequence[str]) -> None:
    """Print rows of intervals as Markdown, with their numbers of seeds if these differ."""
    cells = {label: [row.get(column) for column in columns] for label, row in table.items()}
    uneven = len({len(value["values"]) for row in cells.values() for value in row if value}) > 1
    print(f"\n| {title} | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for label, row in cells.items():
        print(f"| {label} | " + " | ".join(cell(value, uneven) for value in row) + " |")


def cell(value: dict[str, Any] | None, with_seeds: bool) -> str:
    """Write a mean with its interval, which one seed has not, and the number of seeds."""
    if value is None:
        return "–"
    seeds = f", n = {len(value['values'])}" if with_seeds else ""
    if value["low"] is None:
        return f"{value['mean']:.4f}{seeds}"
    return f"{value['mean']:.4f} ({value['low']:.4f} to {value['high']:.4f}){seeds}"


def options(
    description: str | None,
    script: str,
    changes: Sequence[str] = (),
    *,
    dataset: str = "",
    flags: Sequence[str] = ("--dataset",),
) -> argparse.ArgumentParser:
    """Return the options that all benchmarks of quality take; --set comes after `changes`.

    With a `dataset` it is the default; else it must be given, by any of the `flags`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(*flags, required=not dataset, default=dataset, help="a file or a name")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, a core each")
    parser.add_argument("--set", nargs="*", action="extend", default=list(changes),
                        help="config changes, as TOML; before them: %(default)s")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path(script).with_suffix(".json"))
    return parser


def script(main: Callable[[], None]) -> None:
    """Run a benchmark; errors of the package are told without a traceback."""
    try:
        main()
    except PluralLLMError as error:
        raise SystemExit(str(error)) from None


def shared_facts(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what runs must share to stand in one file: data, language model, config changes."""
    config = configured("ours", arguments.dataset, 0, arguments.set)
    # Whether vectors are standardised is the recipe's affair, not what runs must share.
    language_model = replace(config, embedding_standardise=False)
    return {
        "dataset": Path(arguments.dataset).name,
        "fingerprint": read_dataset(config).fingerprint,
        "embedder": text_embedder(language_model).fingerprint,
        "changes": arguments.set,
    }


def one_recipe(
    description: str | None,
    file: str,
    run: Callable[[str, list[str], int], dict[str, Run]],
    recipe: str,
    title: str,
    *,
    dataset: str,
    changes: Sequence[str] = (),
) -> None:
    """Run all seeds of one recipe, and print and write its measures."""
    arguments = options(description, file, changes, dataset=dataset).parse_args()
    store = Store(arguments.output, shared_facts(arguments))
    tasks = [(arguments.dataset, arguments.set, seed) for seed in range(arguments.seeds)]
    store.measure(run, tasks, [recipe], arguments.processes)
    names = list(store.runs[recipe][0]["measures"])
    table = {name: {recipe: store.over_seeds(recipe, measured(name))} for name in names}
    store.write(table=table)
    show(title, table, [recipe])
