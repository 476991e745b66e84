"""Resume: bit-identical with the uninterrupted run, and what it refuses."""

import json
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Message

from pluralllm_fl.config import RunConfig
from pluralllm_fl.errors import ArtefactError, ConfigError, FederationError
from pluralllm_fl.federation.session import run_federation
from pluralllm_fl.runs import checkpoint
from tests.integration.inprocess import (
    GROUPS,
    InProcessGrid,
    TinyModel,
    events,
    final_arrays,
    scores_in,
    tiny_app,
    tiny_config,
    tiny_run,
)

STRATEGIES = {
    "fedavg": "{}",
    "fedadam": '{"eta": 0.05}',
    "fedavgm": '{"server_momentum": 0.9, "server_learning_rate": 0.5}',
    "qfedavg": '{"q": 0.5}',
}


class CrashError(Exception):
    """What a killed server looks like from inside."""


def crash_in(server_round: int, phase: str = "train") -> object:
    def fault(request: Message, reply: Message, partition: int) -> Message:
        config = request.content.config_records.get("config", {})
        here = partition == 2 and request.metadata.message_type == phase
        if here and config["server-round"] == server_round:
            raise CrashError
        return reply

    return fault


def crashed(config: RunConfig, server_round: int, phase: str = "train") -> Path:
    with pytest.raises(CrashError):
        tiny_run(config, fault=crash_in(server_round, phase))  # type: ignore[arg-type]
    return Path(config.output_dir) / config.run_name


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("server_round", "phase"), [(1, "train"), (3, "train"), (5, "evaluate")])
def test_resumed_run_is_bit_identical(
    tmp_path: Path, strategy: str, server_round: int, phase: str
) -> None:
    settings = {"strategy": strategy, "strategy_args": STRATEGIES[strategy], "num_server_rounds": 5}
    whole = tiny_run(tiny_config(tmp_path / "whole", **settings))
    run = crashed(tiny_config(tmp_path / "cut", **settings), server_round, phase)
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    resumed = tiny_run(tiny_config(tmp_path / "cut", resume=str(run), **settings))
    assert resumed == run
    assert final_arrays(run) == final_arrays(whole)
    _assert_same_story(run, whole)


def _assert_same_story(run: Path, whole: Path) -> None:
    """Rounds and evaluations of both runs are the same, each once and in order."""
    volatile = ("time", "seconds")
    stories = [
        [
            {k: v for k, v in event.items() if k not in volatile}
            for event in events(path)
            if event["event"] in ("round", "evaluation")
        ]
        for path in (run, whole)
    ]
    assert stories[0] == stories[1]
    summaries = [json.loads((p / "summary.json").read_text()) for p in (run, whole)]
    for summary in summaries:
        del summary["wall_seconds"]
    assert summaries[0] == summaries[1]
    assert json.loads((run / "run.json").read_text())["status"] == "completed"


def test_killed_server_leaves_a_resumable_run(tmp_path: Path) -> None:
    """After SIGKILL there is no last word: stale status, torn line, events of a lost round."""
    whole = tiny_run(tiny_config(tmp_path / "whole", checkpoint_every=2))
    run = crashed(tiny_config(tmp_path / "cut", checkpoint_every=2), 4)
    shutil.rmtree(run / "checkpoints" / "round-0003")  # written on the way out of an exception
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"status": "running"}))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"event": "round", "round": 4, "tr')
    tiny_run(tiny_config(tmp_path / "cut", checkpoint_every=2, resume=str(run)))
    assert final_arrays(run) == final_arrays(whole)
    _assert_same_story(run, whole)
    started = [e["first_round"] for e in events(run, "run_started")]
    assert started == [1, 3]


def test_early_stopping_state_survives(tmp_path: Path) -> None:
    settings = {"early_stopping_patience": 2, "num_server_rounds": 9}
    scores = [0.5, 0.6, 0.8, 0.7, 0.75, 0.9]

    def score(request: Message, reply: Message, partition: int) -> Message:
        if found := scores_in(request, reply):
            server_round, metrics = found
            metrics["validation-alignment"] = scores[server_round]
        crash = crash_in(4)
        return crash(request, reply, partition) if crashing else reply  # type: ignore[operator]

    crashing = True
    with pytest.raises(CrashError):
        tiny_run(tiny_config(tmp_path / "cut", **settings), fault=score)
    crashing = False
    run = tmp_path / "cut" / "run"
    tiny_run(tiny_config(tmp_path / "cut", resume=str(run), **settings), fault=score)
    whole = tiny_run(tiny_config(tmp_path / "whole", **settings), fault=score)
    assert final_arrays(run) == final_arrays(whole)
    assert [e["best_round"] for e in events(run, "early_stopped")] == [2]


def test_more_rounds_continue_a_completed_run(tmp_path: Path) -> None:
    long = tiny_run(tiny_config(tmp_path / "long", num_server_rounds=6))
    short = tiny_run(tiny_config(tmp_path / "short", num_server_rounds=4))
    tiny_run(tiny_config(tmp_path / "short", num_server_rounds=6, resume=str(short)))
    assert final_arrays(short) == final_arrays(long)
    with pytest.raises(ConfigError, match="already completed 6"):
        tiny_run(tiny_config(tmp_path / "short", num_server_rounds=5, resume=str(short)))


def _damage_truncate(folder: Path) -> None:
    path = folder / "arrays.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def _damage_flip(folder: Path) -> None:
    path = folder / "strategy.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def _damage_state(folder: Path) -> None:
    path = folder / "state.json"
    path.write_text(path.read_text().replace('"round": 2', '"round": 1'))


def _damage_torn_state(folder: Path) -> None:
    path = folder / "state.json"
    path.write_text(path.read_text()[:100])


def _damage_missing(folder: Path) -> None:
    (folder / "arrays.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_damage_truncate, "arrays.safetensors is truncated or was changed"),
        (_damage_flip, "strategy.safetensors is truncated or was changed"),
        (_damage_state, "state.json was changed"),
        (_damage_torn_state, "damaged"),
        (_damage_missing, "No such file"),
    ],
)
def test_damaged_checkpoint_is_refused_and_the_one_before_works(
    tmp_path: Path, damage: object, reason: str
) -> None:
    settings = {"strategy": "fedadam"}
    whole = tiny_run(tiny_config(tmp_path / "whole", **settings))
    run = crashed(tiny_config(tmp_path / "cut", **settings), 3)
    newest = checkpoint.newest(run / "checkpoints")
    assert newest.name == "round-0002"
    damage(newest)  # type: ignore[operator]
    before = (run / "run.json").read_text(), (run / "metrics.jsonl").read_text()
    config = tiny_config(tmp_path / "cut", resume=str(run), **settings)
    with pytest.raises(ArtefactError, match=reason):
        tiny_run(config)
    assert before == ((run / "run.json").read_text(), (run / "metrics.jsonl").read_text())
    shutil.rmtree(newest)
    tiny_run(config)
    assert final_arrays(run) == final_arrays(whole)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 7}, "seed"),
        ({"architecture": "published"}, "architecture"),
        ({"width": 64}, "width"),
        ({"strategy": "fedadam"}, "strategy"),
        ({"dataset": "opinionqa"}, "dataset"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, change: dict[str, int | str], key: str) -> None:
    run = crashed(tiny_config(tmp_path), 3)
    with pytest.raises(ConfigError, match=rf"\b{key} = .*resume\.toml"):
        tiny_run(tiny_config(tmp_path, resume=str(run), **change))


def test_other_data_or_groups_are_refused(tmp_path: Path) -> None:
    run = crashed(tiny_config(tmp_path), 3)
    config = tiny_config(tmp_path, resume=str(run))
    other_groups = tuple(g.replace("Aland", "Atlantis") for g in GROUPS)
    with pytest.raises(ConfigError, match="seen-groups"):
        tiny_run(config, grid=InProcessGrid(tiny_app(other_groups), len(GROUPS)))

    def fault(request: Message, reply: Message, _: int) -> Message:
        if request.metadata.message_type == "query":
            reply.content["roster"]["fingerprint"] = "other data"
        return reply

    with pytest.raises(ConfigError, match=r"dataset = .*fingerprint"):
        tiny_run(config, fault=fault)
    tiny_run(config)


def _with_other_groups(config: RunConfig) -> None:
    groups = tuple(g.replace("Aland", "Atlantis") for g in GROUPS)
    tiny_run(config, grid=InProcessGrid(tiny_app(groups), len(GROUPS)))


def _with_other_data(config: RunConfig) -> None:
    def fault(request: Message, reply: Message, _: int) -> Message:
        if request.metadata.message_type == "query":
            reply.content["roster"]["fingerprint"] = "other data"
        return reply

    tiny_run(config, fault=fault)


def _with_a_node_too_few(config: RunConfig) -> None:
    tiny_run(config, grid=InProcessGrid(tiny_app(), len(GROUPS) - 1))


def _with_another_model(config: RunConfig) -> None:
    grid = InProcessGrid(tiny_app(), len(GROUPS))
    run_federation(grid, config, lambda _, __: TinyModel(9), lambda c, _: c.learning_rate)


def _interrupted_at_the_roster(config: RunConfig) -> None:
    def fault(*_: object) -> Message:
        raise KeyboardInterrupt

    tiny_run(config, fault=fault)


@pytest.mark.parametrize(
    ("attempt", "refusal"),
    [
        (_with_other_groups, ConfigError),
        (_with_other_data, ConfigError),
        (_with_a_node_too_few, FederationError),
        (_with_another_model, ConfigError),
        (_interrupted_at_the_roster, KeyboardInterrupt),
    ],
)
def test_refused_resume_leaves_a_completed_run_as_it_was(
    tmp_path: Path, attempt: Callable[[RunConfig], None], refusal: type[BaseException]
) -> None:
    run = tiny_run(tiny_config(tmp_path))
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(refusal):
        attempt(tiny_config(tmp_path, resume=str(run), num_server_rounds=6))
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    tiny_run(tiny_config(tmp_path, resume=str(run), num_server_rounds=6))
    assert json.loads((run / "run.json").read_text())["completed_rounds"] == 6


def test_tracker_that_is_not_installed_refuses_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run(tiny_config(tmp_path))
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="wandb"):
        tiny_run(tiny_config(tmp_path, resume=str(run), num_server_rounds=6, trackers="wandb"))
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("key", "strict", "lenient"), [("min_nodes", 4, 3), ("max_update_norm", 1e-9, 1e3)]
)
def test_limits_on_replies_may_be_eased_on_resume(
    tmp_path: Path, key: str, strict: float, lenient: float
) -> None:
    """The error that stops a run advises just that."""

    def fault(request: Message, reply: Message, partition: int) -> Message | None:
        bad = request.metadata.message_type == "train" and partition == 1
        return None if bad and key == "min_nodes" else reply

    limits = {"round_retries": 0, "round_timeout": 1.0, "join_timeout": 1.0}
    with pytest.raises(FederationError, match="good replies"):
        tiny_run(tiny_config(tmp_path, **limits, **{key: strict}), fault=fault)
    run = tmp_path / "run"
    tiny_run(tiny_config(tmp_path, resume=str(run), **limits, **{key: lenient}), fault=fault)
    assert json.loads((run / "run.json").read_text())["status"] == "completed"


def test_other_folders_beside_checkpoints_are_left_alone(tmp_path: Path) -> None:
    run = crashed(tiny_config(tmp_path), 3)
    for name in ("round-0001.bak", "round-old"):
        (run / "checkpoints" / name).mkdir()
    tiny_run(tiny_config(tmp_path, resume=str(run)))
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["round-0001.bak", "round-0003", "round-0004", "round-old"]


def test_resume_file_holds_the_runs_settings(tmp_path: Path) -> None:

    template = 'é 🙂 "quoted"\n{question}\t{option}'
    settings = {"embedding_template": template, "learning_rate": 1e-05, "seed": 3}
    run = crashed(tiny_config(tmp_path, **settings), 3)
    config = RunConfig.from_run_config(tomllib.loads((run / "resume.toml").read_text()))
    assert config == tiny_config(tmp_path, resume=str(run), **settings)
    tiny_run(config)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"holds no run"):
        tiny_run(tiny_config(tmp_path, resume=str(tmp_path / "nowhere")))
    run = crashed(tiny_config(tmp_path), 3)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ArtefactError, match="no checkpoint"):
        tiny_run(tiny_config(tmp_path, resume=str(run)))


def test_another_language_model_is_refused(tmp_path: Path) -> None:
    config = {"num_server_rounds": 5}
    run = crashed(tiny_config(tmp_path, **config), 3)
    before = {p: p.read_bytes() for p in run.rglob("*.json")}

    def fault(request: Message, reply: Message, _: int) -> Message:
        if request.metadata.message_type == "query":
            reply.content["roster"]["embedding"] = "other"
        return reply

    with pytest.raises(ConfigError, match=r"another language model \(tiny, now other\)"):
        tiny_run(tiny_config(tmp_path, resume=str(run), **config), fault=fault)
    assert before == {p: p.read_bytes() for p in run.rglob("*.json")}
