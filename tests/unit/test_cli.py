"""The command line: precedence, messages and exit codes, without starting a federation."""

import inspect
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from typer.testing import CliRunner

from pluralllm_fl.cli import app
from pluralllm_fl.cli.console import guarded
from pluralllm_fl.cli.settings import gather, gather_resumed
from pluralllm_fl.cli.simulate import _Simulation
from pluralllm_fl.config import RunConfig, default_run_config
from pluralllm_fl.errors import ArtefactError, ConfigError
from pluralllm_fl.runs.artefacts import RunDirectory
from tests.command import invoke

ROOT = Path(__file__).parents[2]
SMALL = ("--set", "synthetic-groups=4", "--set", "synthetic-questions=40")


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.chdir(tmp_path)


def test_a_missing_tracker_is_found_before_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    result = invoke("simulate", *SMALL, "--set", "trackers=wandb", "--output-dir", "out")
    assert result.exit_code == 2
    assert "pip install 'pluralllm-fl[wandb]'" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--set", "learning-rat=1"], 2, "Did you mean 'learning-rate'?"),
        (["--set", "width=wide"], 2, "width = 'wide': must be a whole number"),
        (["--set", "unseen-fraction=1.5"], 2, "unseen-fraction = 1.5: must be"),
        (["--rounds", "0"], 2, "num-server-rounds = 0: must be at least 1"),
        (["--set", "width"], 2, "--set width: write it as key=value"),
        (["--rounds", "many"], 2, "Invalid value for '--rounds'"),
        (["--recipe", "absent.toml"], 2, "No recipe absent.toml."),
        ([*SMALL, "--seen", "Atlantis"], 2, "Unknown group 'Atlantis'"),
        ([*SMALL, "--set", "context-questions=40"], 2, "context-questions = 40 needs at least 41"),
        ([*SMALL, "--set", "strategy=fedavgg"], 2, "Did you mean 'fedavg'?"),
        (["--set", "device=cuda"], 2, "add --gpus"),
        (["--dataset", "absent.jsonl"], 1, "absent.jsonl"),
        (["--dataset", "syntetic"], 1, "Did you mean 'synthetic'?"),
        (["--dataset", "~nosuchuser/x.csv"], 1, "'~nosuchuser/x.csv' is no usable path"),
        (["--dataset", "x" * 5000], 1, "is no usable path"),
        (["--output-dir", "~nosuchuser/runs"], 2, "output-dir = '~nosuchuser/runs' is no usable"),
        (["--set", f"embedding-model={'x' * 5000}"], 2, "is no usable path"),
        (["--set", "run-name=../evil"], 2, "run-name = '../evil': must be a plain folder name"),
        (["--set", "run-name=.."], 2, "run-name = '..': must be a plain folder name"),
        (["--resume", "absent"], 1, "There is no run at"),
        (["--resume", ".", "--recipe", "r.toml"], 2, "leave --recipe out"),
        (["--resume", ".", "--final"], 2, "leave --final out"),
        (["--final", "--set", "early-stopping-patience=3"], 2, "needs validation questions"),
    ],
)
def test_mistakes_end_before_anything_is_written(
    arguments: list[str], code: int, message: str, tmp_path: Path
) -> None:
    result = invoke("simulate", *arguments)
    assert result.exit_code == code
    assert message in result.output
    assert not any(tmp_path.iterdir())


def test_output_directory_must_be_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = invoke("simulate", *SMALL, "--output-dir", str(tmp_path / "file" / "runs"))
    assert result.exit_code == 1
    assert f"Cannot write to output-dir {tmp_path}/file/runs: Not a directory" in result.output
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_run_name_that_is_no_file_name(tmp_path: Path) -> None:
    result = invoke("simulate", *SMALL, "--set", f"run-name={'x' * 300}")
    assert result.exit_code == 1
    assert "File name too long" in result.output
    assert not any(tmp_path.iterdir())


def test_an_existing_run_is_never_overwritten(tmp_path: Path) -> None:
    old = tmp_path / "runs" / "mine"
    old.mkdir(parents=True)
    (old / "run.json").write_text("{}")
    result = invoke("simulate", *SMALL, "--set", "run-name=mine")
    assert result.exit_code == 1
    assert f"--resume {old}" in result.output
    assert (old / "run.json").read_text() == "{}"


def test_later_sources_of_settings_win(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('seed = 1\nwidth = 64\nlocal-steps = 3\ndataset = "globalopinionqa"\n')
    config = gather(recipe, {"seed": 2, "num-server-rounds": None}, ["width=32", "layers=1"])
    assert (config.seed, config.width, config.local_steps, config.layers) == (2, 32, 3, 1)
    assert config.dataset == "globalopinionqa"
    assert config.num_server_rounds == default_run_config()["num-server-rounds"]
    assert gather(None, {"seed": 2}, ["seed=3"]).seed == 3


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("learning-rate=1e-3", "learning-rate", 1e-3),
        ("learning-rate=1", "learning-rate", 1.0),
        ("seed=7", "seed", 7),
        ("seen-groups=A; B (new)", "seen-groups", "A; B (new)"),
        ('seen-groups="A;B"', "seen-groups", "A;B"),
        ("run-name=2024", "run-name", "2024"),
        ("run-name=a\nseed=9", "run-name", "a\nseed=9"),
        ("strategy-args={'mu': 1}", "strategy-args", "{'mu': 1}"),
        ('strategy-args={"mu": 0.1}', "strategy-args", '{"mu": 0.1}'),
        ("embedding-template={question} = {option}", "embedding-template", "{question} = {option}"),
    ],
)
def test_values_are_read_like_toml_or_taken_as_text(
    assignment: str, key: str, value: object
) -> None:
    if value == "{'mu': 1}":
        with pytest.raises(ConfigError, match="strategy-args is not JSON"):
            gather(None, {}, [assignment])
        return
    found = gather(None, {}, [assignment]).to_run_config()[key]
    assert found == value
    assert type(found) is type(value)


def commands(group: click.Group, *path: str) -> Iterator[tuple[list[str], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield [*path, name], command


def test_help_explains_every_argument() -> None:
    """Click 8.5 hides the help of arguments that typer 0.20 declares."""
    root = typer.main.get_command(app)
    assert isinstance(root, click.Group)
    explained = 0
    for path, command in commands(root):
        shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", invoke(*path, "--help").output).split())
        for parameter in command.params:
            if isinstance(parameter, click.Argument):
                name = str(parameter.metavar or parameter.name)
                assert name.lower() in shown.lower(), path
        function = inspect.unwrap(command.callback) if command.callback else None
        for annotation in inspect.get_annotations(function, eval_str=True).values():
            for about in getattr(annotation, "__metadata__", ()):
                if isinstance(about, typer.models.ArgumentInfo):
                    assert about.help, path
                    assert about.help in shown, path
                    explained += 1
    assert explained >= 8


@pytest.mark.parametrize(
    "key",
    [
        "num-server-rounds", "layers", "heads", "width", "feed-forward", "question-features",
        "factors", "local-steps", "synthetic-groups", "synthetic-questions", "expected-nodes",
        "context-max", "target-max", "threads", "join-timeout", "round-timeout", "round-retries",
        "evaluate-every", "seed", "learning-rate",
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [10**23, 10**400], ids=["1e23", "1e400"])
def test_numbers_that_no_run_can_have_are_refused(key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{key} = "):
        RunConfig.default({key: value})


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "[" * 10**5])
def test_arguments_of_a_strategy_are_numbers(value: str) -> None:
    with pytest.raises(ConfigError, match="strategy-args is not JSON"):
        gather(None, {}, [f'strategy-args={{"noise_multiplier": {value}}}'])


@pytest.mark.parametrize("template", ["{option}||{question}", "{question}||{option}||"])
def test_a_wrong_embedding_template_is_told(template: str) -> None:
    result = invoke("simulate", *SMALL, "--set", f"embedding-template={template}")
    assert result.exit_code == 2
    assert "'||' between, {option} in the second" in " ".join(result.output.split())


def test_paths_become_absolute_and_names_stay(tmp_path: Path) -> None:
    (tmp_path / "synthetic").mkdir()
    config = gather(None, {"dataset": "synthetic"}, ["embedding-cache=cache"])
    assert config.dataset == "synthetic"
    assert config.output_dir == str(tmp_path / "runs")
    assert config.embedding_cache == str(tmp_path / "cache")
    assert gather(None, {"output-dir": ""}, []).output_dir == str(tmp_path / "runs")
    assert gather(None, {"dataset": "a.csv"}, []).dataset == str(tmp_path / "a.csv")
    hub = "Anthropic/llm_global_opinions"
    assert gather(None, {"dataset": hub}, []).dataset == hub


def test_a_final_model_trains_on_every_question(monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[Any] = []
    monkeypatch.setattr(_Simulation, "run", lambda self: configs.append(self.config))
    for extra in ([], ["--final"], ["--final", "--set", "test-fraction=0.3"]):
        assert invoke("simulate", *SMALL, *extra).exit_code == 0
    held_out = [(config.validation_fraction, config.test_fraction) for config in configs]
    assert held_out == [(0.1, 0.1), (0, 0), (0, 0.3)]


def test_run_name_says_data_and_seed_and_is_free(tmp_path: Path) -> None:
    config = gather(None, {"dataset": "päper data.csv", "seed": 4}, [])
    assert config.run_name.startswith("päper-data-")
    assert config.run_name.endswith("-seed4")
    assert not (tmp_path / "runs" / config.run_name).exists()


def test_resumed_run_keeps_its_settings_and_folder(tmp_path: Path) -> None:
    run = stored_run(tmp_path / "elsewhere" / "a", status="interrupted", config={"width": 64})
    config = gather_resumed(Path("elsewhere"), {"num-server-rounds": 50, "seed": None}, [])
    assert config.width == 64
    assert config.num_server_rounds == 50
    assert (config.resume, config.output_dir) == (str(run), str(run.parent))
    assert config.run_name == "a"


@pytest.mark.parametrize(("gpus", "end"), [(0.0, ""), (0.25, " --gpus 0.25")])
def test_the_hint_resumes_the_run_as_it_was(tmp_path: Path, gpus: float, end: str) -> None:
    run = stored_run(tmp_path / "my runs" / "a", status="running", config={})
    (run / "checkpoints" / "round-0001").mkdir(parents=True)
    config = gather_resumed(run, {}, [])
    (hint,) = _Simulation(config, gpus, verbose=False)._resume_hint()
    assert hint == f"Continue it with: python simulation.py --resume '{run}'{end}"
    command = shlex.split(hint.removeprefix("Continue it with: "))
    assert command[3] == str(run)


@pytest.mark.parametrize(
    ("place", "options", "name", "home"),
    [
        ("fed/server/state/runs/run-1", [], "federation", "fed/server/flwr"),
        ("fed/server/state/runs/run-1", ["--superlink", "mine"], "mine", None),
        ("elsewhere/run-1", [], "", None),
    ],
)
def test_a_deployed_run_goes_on_where_it_was_started(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    place: str,
    options: list[str],
    name: str,
    home: str | None,
) -> None:
    run = stored_run(tmp_path / place, status="interrupted", config={}, mode="deployment")
    (tmp_path / "fed" / "server").mkdir(parents=True, exist_ok=True)
    (tmp_path / "fed" / "server" / "federation.toml").write_text("")
    given: list[Any] = []
    monkeypatch.setattr("pluralllm_fl.cli.federate._supervise", lambda *args: given.extend(args))
    assert invoke("resume", str(run), *options).exit_code == 0
    config, connection = given
    assert config.resume == str(run)
    assert (connection.name, connection.home) == (name, home and tmp_path / home)


def test_completed_run_has_nothing_to_resume(tmp_path: Path) -> None:
    run = stored_run(tmp_path / "a", status="completed", config={"num-server-rounds": 5}, rounds=5)
    with pytest.raises(ArtefactError, match="already completed"):
        gather_resumed(run, {}, [])
    assert gather_resumed(run, {"num-server-rounds": 6}, []).num_server_rounds == 6


def stored_run(
    folder: Path,
    *,
    status: str,
    config: dict[str, Any],
    rounds: int = 0,
    mode: str = "simulation",
) -> Path:
    folder.mkdir(parents=True)
    body = {
        "status": status, "config": {**default_run_config(), **config},
        "completed_rounds": rounds, "started": "2026-01-01T00:00:00+00:00", "mode": mode,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(body))
    return folder


def test_predict_needs_two_options_and_a_run() -> None:
    one = invoke("predict", "absent", "--question", "Q?", "--option", "yes")
    assert one.exit_code == 2
    assert "at least two options" in one.output
    two = invoke("predict", "absent", "--question", "Q?", "--option", "yes", "--option", "no")
    assert two.exit_code == 1
    assert "There is no run at" in two.output


def test_data_check_exits_nonzero_on_problems(tmp_path: Path) -> None:
    good = {"group": "A", "question": "Q?", "options": ["x", "y"], "distribution": [0.5, 0.5]}
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps(good) + "\n")
    assert invoke("data", "check", str(file)).exit_code == 0
    file.write_text(json.dumps(good) + "\n" + json.dumps(good | {"distribution": [0.5, 0.9]}))
    found = invoke("data", "check", str(file))
    assert found.exit_code == 1
    assert "line 2" in found.output
    assert invoke("data", "check", str(tmp_path / "absent.csv")).exit_code == 1
    impossible = invoke("data", "check", "x" * 5000)
    assert impossible.exit_code == 1
    assert "no usable path" in impossible.output


def test_unexpected_errors_leave_one_line_and_a_traceback_file() -> None:
    broken = typer.Typer()

    @broken.command()
    @guarded
    def fail(verbose: bool = False) -> None:  # noqa: ARG001 - read by guarded
        raise ZeroDivisionError("by [nothing]")

    result = CliRunner().invoke(broken, [])
    assert result.exit_code == 1
    assert "Unexpected error: ZeroDivisionError: by [nothing]" in result.output
    assert "Traceback" not in result.output
    log = Path(result.output.split("The traceback is in ")[1].strip())
    assert "Traceback" in log.read_text()
    log.unlink()
    assert "Traceback" in CliRunner().invoke(broken, ["--verbose"]).output


def test_command_line_starts_without_heavy_libraries() -> None:
    code = (
        "import sys, pluralllm_fl.cli; "
        "print(sorted({'torch', 'flwr', 'transformers', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert found.stdout == b"[]\n"


def test_version_and_both_entries_offer_the_same_options() -> None:
    assert invoke("--version").output.startswith("pluralllm-fl ")
    script = Path(__file__).parents[2] / "simulation.py"
    alone = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, check=True, text=True
    )
    simulate = invoke("simulate", "--help").output
    options = [
        "dataset", "seen", "unseen", "rounds", "seed", "final", "recipe", "set",
        "output-dir", "gpus", "resume", "verbose",
    ]  # fmt: skip
    for option in options:
        assert f"--{option}" in alone.stdout
        assert f"--{option}" in simulate


def test_a_run_that_goes_on_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pluralllm_fl.runs.artefacts.CLAIM_SECONDS", 0.1)
    run = stored_run(tmp_path / "run", status="running", config={})
    with RunDirectory.open(run).claimed():
        refused = invoke("simulate", "--resume", str(run))
    assert refused.exit_code == 1
    assert "goes on in another process" in refused.output
    assert json.loads((run / "run.json").read_text())["status"] == "running"
