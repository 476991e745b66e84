"""Artefacts that this version wrote: later ones load them, or refuse them in words."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from pluralllm_fl.config import RunConfig
from pluralllm_fl.errors import ArtefactError, ConfigError, FederationError
from pluralllm_fl.federation import reply_checks, resuming
from pluralllm_fl.federation.roster import Roster, collect
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.report import write_report
from pluralllm_fl.report.reading import read_run
from pluralllm_fl.runs import checkpoint
from pluralllm_fl.runs.artefacts import RunDirectory
from pluralllm_fl.runs.record import RunRecord
from pluralllm_fl.strategies import build
from pluralllm_fl.strategies import state as strategy_state
from pluralllm_fl.wire.messages import ARRAYS, METRICS, SCORES, Introduction, parse_scores
from pluralllm_fl.wire.packing import unpacked
from pluralllm_fl.wire.reading import BadReply
from pluralllm_fl.wire.records import to_arrays
from tests import golden
from tests.integration.inprocess import InProcessGrid

SEEN = ["Aland", "Borduria", "Cascadia", "Drusselstein"]


@pytest.fixture(scope="module")
def stored() -> Any:
    return json.loads((golden.FOLDER / "golden.json").read_text(encoding="utf-8"))


def test_the_model_loads_and_predicts_the_same(stored: Any) -> None:
    predictor = PreferencePredictor.from_pretrained(golden.FOLDER / "model")
    assert golden.prediction(predictor) == pytest.approx(stored["prediction"], abs=1e-5)


def test_a_models_config_of_another_version_is_refused_in_words(tmp_path: Any) -> None:
    config = json.loads((golden.FOLDER / "model" / "config.json").read_text())
    del config["factors"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = (golden.FOLDER / "model" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(ArtefactError, match="factors missing, as in models of an earlier version"):
        PreferencePredictor.from_pretrained(tmp_path)


def test_the_run_config_is_read_or_its_keys_are_named(stored: Any) -> None:
    recorded = stored["run_config"]
    now = RunConfig.default().to_run_config()
    if recorded.keys() == now.keys():
        assert RunConfig.from_run_config(recorded).to_run_config() == recorded
    else:
        with pytest.raises(ConfigError, match=r"Unknown config key|Missing config keys"):
            RunConfig.from_run_config(recorded)


def test_the_packed_reply_is_read(stored: Any) -> None:
    content = unpacked(golden.rebuilt(stored["reply"]))
    found = to_arrays(content.array_records[ARRAYS])
    assert list(found) == list(golden.ARRAYS)
    for name, value in golden.ARRAYS.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype
    assert stored["reply"][METRICS] == dict(golden.REPORT.record())


# -- a finished run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the run, to be changed."""
    return shutil.copytree(golden.FOLDER / "run", tmp_path / "run")


def changed(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_the_runs_record_is_read(run: Path) -> None:
    record = RunRecord.read(run, "config", "seen", "unseen", "dataset")
    assert (record.schema, record.status, record.error) == (1, "completed", None)
    assert (record.completed_rounds, record.mode, record.flower_run) == (2, "simulation", 1)
    assert (record.seen, record.unseen) == (SEEN, ["Elbonia"])
    assert record.groups == dict.fromkeys([*SEEN, "Elbonia"], 10)
    assert record.config["strategy"] == "fedadam"
    assert set(record.versions) >= {"python", "torch", "flwr", "numpy"}


def test_the_report_reads_the_run(run: Path) -> None:
    """The tiny network's first weights are -1, 0, 1. A group's score is 1 / (1 + mean square of the
    weights), less a hundredth for each group before it in the alphabet."""
    found = read_run(run)
    assert (found.status, found.strategy, found.planned_rounds) == ("completed", "fedadam", 2)
    assert (found.parameters, found.completed_rounds) == (4, 2)
    assert (found.notices, found.warnings, found.dropped, found.retried) == ([], [], [], [])
    assert [r.number for r in found.rounds] == [1, 2]
    assert found.rounds[0].loss == pytest.approx(2 / 3)  # of the first weights, on every node
    assert found.totals["bytes_up"] == 2 * 5878 + 4470  # two rounds, and the last evaluation
    first, _, last = found.evaluations
    assert [e.round for e in found.evaluations] == [0, 1, 2]
    assert first.sides["seen"].measure("alignment") == pytest.approx((0.6 + 0.59 + 0.58 + 0.57) / 4)
    assert first.sides["unseen"].measure("alignment") == pytest.approx(0.56)
    assert [g.name for g in first.sides["seen"].groups] == SEEN
    assert [g.alignment for g in first.sides["seen"].groups] == pytest.approx(
        [0.6, 0.59, 0.58, 0.57]
    )
    aland = first.sides["seen"].groups[0]
    assert aland.interval == pytest.approx((0.5, 0.65))
    assert (aland.questions, aland.uniform, aland.pairwise_accuracy) == (10, 0.5, 0.6)
    assert first.sides["seen"].test is not None
    assert first.sides["seen"].test.groups[0].questions == 2
    for side in ("seen", "unseen"):
        assert found.final[side].block == last.sides[side].block
    assert "Elbonia" in write_report(run).read_text()


def test_a_run_of_another_schema_is_refused_in_words(run: Path) -> None:
    changed(run / "run.json", schema=2)
    with pytest.raises(ArtefactError, match=r"has schema 2; .* Use the version that wrote the run"):
        read_run(run)


def test_what_later_versions_may_add_to_a_run_does_no_harm(run: Path) -> None:
    changed(run / "run.json", of_later={"a": 1})
    changed(run / "summary.json", of_later=[1])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"event": "of_later", "round": "two"}\n')
    found = read_run(run)
    assert (found.status, len(found.rounds), found.notices) == ("completed", 2, [])


def test_a_damaged_log_or_summary_costs_a_notice(run: Path) -> None:
    for name in ("metrics.jsonl", "summary.json"):
        file = run / name
        file.write_bytes(file.read_bytes()[:-20])
    log, summary, instead = read_run(run).notices
    assert log.startswith("metrics.jsonl: skipped what cannot be read (1 in all: line ")
    assert summary.startswith("summary.json cannot be read")
    assert instead.endswith("the last evaluation in metrics.jsonl is shown.")


def test_the_checkpoint_is_read(run: Path) -> None:
    path = checkpoint.newest(run / "checkpoints")
    found = checkpoint.read(path)
    progress = found.progress
    assert (path.name, progress.round, progress.aggregated_rounds) == ("round-0002", 2, 2)
    assert {name: (a.shape, str(a.dtype)) for name, a in progress.arrays.items()} == {
        "weight": ((3,), "float32"), "bias": ((), "float32"),
    }  # fmt: skip
    square = float(np.square(progress.arrays["weight"]).mean())
    assert progress.evaluation is not None
    assert progress.evaluation["seen"]["by_group"]["Aland"] == pytest.approx(1 / (1 + square))
    # The second round's model was the best one.
    assert found.stopping["best_round"] == 2
    assert found.stopping["best"] == pytest.approx(1 / (1 + square) - 0.015)  # mean of four groups
    for name, value in progress.arrays.items():
        np.testing.assert_array_equal(found.best_arrays[name], value)


def test_the_checkpoints_strategy_goes_on(run: Path) -> None:
    found = checkpoint.read(checkpoint.newest(run / "checkpoints"))
    strategy = build("fedadam", {}, train_nodes=4, all_nodes=5)
    strategy_state.restore(strategy, found.strategy, found.strategy_arrays)
    # Flower's class keeps the model that the last round began with: that of the first round.
    square = np.square(vars(strategy)["current_arrays"]["weight"]).mean()
    assert 1 / (1 + square) == pytest.approx(
        read_run(run).evaluations[1].sides["seen"].groups[0].alignment
    )
    assert vars(strategy)["m_t"].keys() == {"weight", "bias"}
    state = found.strategy | {"vars": {"m_t": {"of-later": []}}}
    with pytest.raises(ArtefactError, match=r"holds a 'of-later', .* version that wrote it"):
        strategy_state.restore(strategy, state, found.strategy_arrays)


def test_a_checkpoint_of_another_schema_is_refused_in_words(run: Path) -> None:
    path = run / "checkpoints" / "round-0002"
    changed(path / "state.json", schema=2)
    with pytest.raises(ArtefactError, match=r"schema 2; .* Resume with the version that wrote it"):
        checkpoint.read(path)


def test_a_damaged_checkpoint_is_refused_in_words(run: Path) -> None:
    path = run / "checkpoints" / "round-0002"
    for name in ("arrays", "strategy", "best"):
        file = path / f"{name}.safetensors"
        whole = file.read_bytes()
        file.write_bytes(whole[:-1])
        with pytest.raises(ArtefactError, match=f"{name}.safetensors is truncated or was changed"):
            checkpoint.read(path)
        file.write_bytes(whole)
    changed(path / "state.json", round=1)
    with pytest.raises(ArtefactError, match=r"state\.json was changed"):
        checkpoint.read(path)


def test_a_run_is_resumed_or_its_settings_are_named(run: Path) -> None:
    directory = RunDirectory.open(run)
    recorded = dict(directory.run.config)
    if recorded.keys() == RunConfig.default().to_run_config().keys():
        config = RunConfig.from_run_config({**recorded, "num-server-rounds": 3})
        assert resuming.checkpoint_of(directory, config).progress.round == 2
        config = RunConfig.from_run_config({**recorded, "strategy": "fedavg"})
        match = r"strategy = 'fedavg' \(was 'fedadam'\)"
    else:
        config, match = RunConfig.default(), "A resumed run keeps its settings"
    with pytest.raises(ConfigError, match=match):
        resuming.checkpoint_of(directory, config)


@pytest.mark.parametrize("entry", [None, 7])
def test_a_grown_federation_without_its_lists_is_refused_in_words(run: Path, entry: Any) -> None:
    recorded = json.loads((run / "run.json").read_text())["config"]
    changed(run / "run.json", mode="deployment", config=recorded | {"seen-groups": entry})
    with pytest.raises(ConfigError, match=f"seen-groups = '' \\(was {entry}\\)"):
        resuming.checkpoint_of(RunDirectory.open(run), RunConfig.default())


# -- what nodes send


def train_reply(content: RecordDict, base: dict[str, Any], update_dtype: str) -> RecordDict:
    config = RunConfig.default({"update-dtype": update_dtype})
    checked, _ = reply_checks.train_reply(
        content, base, weight_key="num-examples", claims={"num-examples": 12}, config=config
    )
    return checked


def test_the_bfloat16_reply_is_read(stored: Any) -> None:
    content = unpacked(golden.rebuilt(stored["reply_bfloat16"]))
    sent = to_arrays(content.array_records[ARRAYS])
    assert list(sent) == ["number", "counts", "update/bfloat16"]
    # The upper halves of the float32 bits of 0, 1/2, -1/4, 1/3, 1 + 1/256 and 1 + 3/256, to even.
    assert [f"{bits:04x}" for bits in sent["update/bfloat16"]] == [
        "0000", "3f00", "be80", "3eab", "3f80", "3f82",
    ]  # fmt: skip
    checked = train_reply(content, golden.RECEIVED, "bfloat16")
    found = to_arrays(checked.array_records[ARRAYS])
    assert list(found) == ["matrix", "number", "counts"]
    np.testing.assert_array_equal(
        found["matrix"], np.float32([[1, 1.5, 0.75], [1.333984375, 2, 2.015625]])
    )
    assert found["matrix"].dtype == np.float32
    np.testing.assert_array_equal(found["number"], -2.5)
    np.testing.assert_array_equal(found["counts"], [3, 1, 2])
    assert dict(checked.metric_records[METRICS]) == dict(golden.REPORT.record())


def test_a_reply_in_another_form_is_refused_in_words(stored: Any) -> None:
    whole = unpacked(golden.rebuilt(stored["reply"]))
    with pytest.raises(BadReply, match=r"names differ from the expected ones: .*update/bfloat16"):
        train_reply(whole, golden.RECEIVED, "bfloat16")
    rounded = unpacked(golden.rebuilt(stored["reply_bfloat16"]))
    with pytest.raises(BadReply, match=r"names differ from the expected ones: .*update/bfloat16"):
        train_reply(rounded, golden.RECEIVED, "float32")


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("dtypes", ["float64", "int64", "float8"], "array update/bfloat16 has dtype float8"),
        ("shapes", ["", "3", "7"], "array update/bfloat16 does not lie within the 44 bytes"),
        ("shapes", ["", "3"], "cannot be unpacked"),
        ("names", None, "cannot be unpacked"),
    ],
)
def test_another_layout_is_refused_in_words(
    stored: Any, name: str, value: list[str] | None, match: str
) -> None:
    records = dict(stored["reply_bfloat16"])
    layout = {key: entry for key, entry in records["layout/arrays"].items() if key != name}
    records["layout/arrays"] = layout if value is None else layout | {name: value}
    with pytest.raises(FederationError, match=match):
        unpacked(golden.rebuilt(records))


def scored(records: dict[str, Any]) -> RecordDict:
    """Return the scores that ride on a reply, checked as the server checks them."""
    content = unpacked(golden.rebuilt(records))
    return reply_checks.evaluate_reply(RecordDict({METRICS: content.metric_records[SCORES]}))


def test_the_reply_with_scores_is_read(stored: Any) -> None:
    records = dict(stored["reply_scores"])
    found = scored(records).metric_records[METRICS]
    assert found["num-examples"] == 10  # the questions of "all"
    assert parse_scores(found) == golden.SCORES
    told = records.pop(SCORES)
    assert (told["all-alignment"], told["test-low"], told["train-pairs"]) == (0.75, 0.25, 16)
    assert told["test-alignment-offered"] == 0.5625
    assert records == stored["reply"]


def test_scores_of_another_version_are_refused_in_words(stored: Any) -> None:
    records = stored["reply_scores"]
    lacking = {k: v for k, v in records[SCORES].items() if not k.endswith("-pairs")}
    with pytest.raises(BadReply, match="metrics lack all-pairs, test-pairs, train-pairs"):
        scored(records | {SCORES: lacking})
    with pytest.raises(BadReply, match=r"all-alignment = -0\.75 is not above 0"):
        scored(records | {SCORES: records[SCORES] | {"all-alignment": -0.75}})


def roster(records: dict[str, Any]) -> Roster:
    """Let a node introduce itself with these records."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:  # noqa: ARG001
        return Message(golden.rebuilt(records), reply_to=message)

    return collect(InProcessGrid(app, 1), expected_nodes=1, join_timeout=1.0)


def test_the_introduction_is_read(stored: Any) -> None:
    content = golden.rebuilt(stored["introduction"])
    assert Introduction.parse(content) == golden.INTRODUCTION
    found = roster(stored["introduction"])
    assert (found.seen, found.unseen, found.dimension) == (["Aland"], [], 3)
    assert (found.embedding, found.simulated) == ("tiny", False)
    [node] = found.nodes
    assert (node.questions, node.train_questions, node.role) == (10, 5, "train")
    assert (node.device, node.dtype, node.fingerprint) == ("cpu", "float32", "data of Aland")


def test_what_later_versions_may_add_to_an_introduction_does_no_harm(stored: Any) -> None:
    records = stored["introduction"]
    more = {**records, "roster": records["roster"] | {"of-later": "x"}}
    assert Introduction.parse(golden.rebuilt(more)) == golden.INTRODUCTION


@pytest.mark.parametrize(
    "change", [{"dtype": None}, {"role": "observe"}, {"dimension": "three"}, {"group": None}]
)
def test_another_introduction_is_refused_in_words(stored: Any, change: dict[str, Any]) -> None:
    records = stored["introduction"]
    told = {k: v for k, v in (records["roster"] | change).items() if v is not None}
    with pytest.raises(FederationError, match=r"unreadable introduction .* same version"):
        roster({**records, "roster": told})
