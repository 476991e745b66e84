"""The generated survey fits any number of simulated nodes, and a run remembers how."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pluralllm_fl.config import RunConfig
from pluralllm_fl.evaluation.opening import run_config
from pluralllm_fl.workspace import (
    for_nodes,
    held_by_nodes,
    is_elastic,
    read_dataset,
    split_data,
)

DEFAULT = RunConfig.default({"synthetic-questions": 2})


def roles(nodes: int) -> tuple[int, int]:
    """Return how many seen and unseen groups so many nodes hold."""
    config = for_nodes(DEFAULT, nodes)
    _, seen, unseen = split_data(config)
    workspace = SimpleNamespace(config=config, seen=seen, unseen=unseen)
    held = held_by_nodes(workspace, nodes)  # type: ignore[arg-type]
    assert len(held) == len(set(held)) == nodes
    assert held == tuple(g for g in (*seen, *unseen) if g in held)
    return len(set(held) & set(seen)), len(set(held) & set(unseen))


def test_every_number_of_nodes_gets_groups() -> None:
    """Two nodes train before one is left to an unseen group; the shares are those of the split."""
    assert [roles(n) for n in (1, 2, 3, 4, 5)] == [(1, 0), (2, 0), (2, 1), (2, 2), (3, 2)]
    assert [roles(n) for n in (7, 8, 14)] == [(4, 3), (5, 3), (8, 6)]


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "answers.jsonl"},
        {"synthetic_groups": 6},
        {"seen_groups": "Northland"},
        {"unseen_groups": "Northland"},
    ],
)
def test_what_the_user_fixed_stays(changes: dict[str, str]) -> None:
    config = replace(DEFAULT, **changes)  # type: ignore[arg-type]
    assert not is_elastic(config)
    assert for_nodes(config, 3) == config


@pytest.mark.parametrize("nodes", [2, 10])
def test_a_run_remembers_its_survey(tmp_path: Path, nodes: int) -> None:
    """Tools that read the run later see the groups that trained as seen, all others as unseen."""
    groups = list(read_dataset(for_nodes(DEFAULT, nodes)).groups)
    record = {
        "config": DEFAULT.to_run_config(),
        "seen": groups[:2],
        "dataset": {"groups": dict.fromkeys(groups[:nodes], 2), "generated": len(groups)},
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    config = run_config(tmp_path)
    dataset, seen, unseen = split_data(config)
    assert len(dataset.groups) == len(groups)
    assert seen == tuple(sorted(groups[:2]))
    assert set(unseen) == set(groups[2:])


@pytest.mark.parametrize(("nodes", "generated"), [(2, 8), (8, 8), (10, 10)])
def test_a_run_that_does_not_say_is_of_a_survey_of_eight(
    tmp_path: Path, nodes: int, generated: int
) -> None:
    """So large it was before runs said how large."""
    groups = [f"Group {i}" for i in range(nodes)]
    record = {
        "config": DEFAULT.to_run_config(),
        "seen": groups[:2],
        "dataset": {"groups": dict.fromkeys(groups, 2)},
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert run_config(tmp_path).synthetic_groups == generated
