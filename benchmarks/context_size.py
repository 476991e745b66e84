"""How many answers does an unseen group have to give? Own and wrong context, by size.

Trains nothing: reads convergence.json, whose runs hold the unseen alignment with 0 to 100 context
questions of the group itself and of another group, mean over draws of the context. Prints
the tables and writes context_size.json beside this file.

    python benchmarks/context_size.py
"""

import argparse
import json
from pathlib import Path
from typing import Any

from convergence import gain, shown
from store import Measure, Run, read, script, show
from trained import HISTORY, MANY, SIZES


def minus_wrong(size: int) -> Measure:
    """Return the measure of own minus wrong context."""

    def measure(result: Run) -> float | None:
        own, wrong = shown(size)(result), shown(size, "wrong")(result)
        return None if own is None or wrong is None else own - wrong

    return measure


def main() -> None:
    """Print and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path(__file__).with_name("convergence.json"))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    store = read(arguments.runs)
    names = [name for name in ("ours", MANY, "published", HISTORY) if store.runs.get(name)]
    if not names:
        raise SystemExit(f"{arguments.runs} holds no run of ours or of the published recipe.")
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    for title, measure in (
        ("own context", shown),
        ("another group's context", lambda size: shown(size, "wrong")),
        ("own minus another's", minus_wrong),
        ("own minus none", gain),
    ):
        tables[title] = {
            str(size): {name: store.over_seeds(name, measure(size)) for name in names}
            for size in SIZES
        }
        show(f"questions shown: {title}", tables[title], names)
    record = {"about": store.about, "from": arguments.runs.name, "tables": tables}
    arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    script(main)
