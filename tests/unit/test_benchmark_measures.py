"""What the benchmarks measure where groups are few or small, and whether variants vary."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import dialogues  # noqa: E402
from ablation import FULL, VARIANTS, Variant  # noqa: E402
from convergence import megabytes, to_reach  # noqa: E402
from trained import MANY, configured, context_curve  # noqa: E402
from transfer import by_group, summary  # noqa: E402

from pluralllm_fl.evaluation.baselines import drawn_groups, federated  # noqa: E402
from pluralllm_fl.evaluation.references import seen_mean  # noqa: E402
from pluralllm_fl.evaluation.scores import context_and_targets  # noqa: E402
from pluralllm_fl.predictor.model import PreferencePredictor, initial_predictor  # noqa: E402
from pluralllm_fl.workspace import Workspace, open_workspace  # noqa: E402
from tests.survey import CONFIG, DIMENSION, SEEN, UNSEEN, survey  # noqa: E402

SURVEY = ("synthetic-groups = 4", "synthetic-questions = 30")


def untrained(*changes: str) -> tuple[PreferencePredictor, Workspace]:
    """Return an untrained predictor and a survey of 4 groups with 30 answers each."""
    workspace = open_workspace(configured("ours", "synthetic", 0, (*SURVEY, *changes)))
    return initial_predictor(workspace.config, workspace.vectors.shape[1], ""), workspace


def test_one_unseen_group_has_no_stranger() -> None:
    curve = context_curve(*untrained("unseen-fraction = 0.25"), sizes=(0, 5))
    assert [set(point) for point in curve] == [{"size", "own"}] * 2


def test_contexts_larger_than_the_answers_are_left_out() -> None:
    curve = context_curve(*untrained("unseen-fraction = 0.5"), sizes=(5, 16))
    assert [set(point) for point in curve] == [{"size", "own", "wrong"}, {"size"}]


def test_groups_without_targets_are_left_out_of_a_transfer() -> None:
    predictor, other = untrained()
    groups = {size: by_group(predictor, other, int(size)) for size in ("5", "30")}
    assert set(groups["5"]) == set(other.groups)
    found = summary(5)["5 shown: alignment"]({"groups": groups})
    assert found == pytest.approx(np.mean([g["alignment"] for g in groups["5"].values()]))
    assert all(measure({"groups": groups}) is None for measure in summary(30).values())


def test_bytes_to_a_target_count_both_directions() -> None:
    predictor = initial_predictor(configured("ours", "", 0, ()), 768, "")
    size = megabytes(predictor)
    assert size == pytest.approx(4e-6 * sum(p.numel() for p in predictor.parameters()))
    run = {
        "megabytes_a_round": 8 * size,
        "megabytes_down_a_round": 7 * size,
        "curve": [{"round": 2, "unseen": 0.7}, {"round": 3, "unseen": 0.8}],
    }
    assert to_reach(run, 0.8) == {
        "rounds": 3,
        "megabytes up": pytest.approx(24 * size),
        "megabytes up and down": pytest.approx(45 * size),
    }
    assert to_reach(run, 0.9) is None


def test_of_66_countries_12_train_in_a_round() -> None:
    config = configured(MANY, "", 0, ())
    assert len(drawn_groups(tuple(map(str, range(66))), config, 1)) == 12


def test_kinds_of_segments_are_scored_apart() -> None:
    def scores(ours: float, marginal: float) -> dict[str, dict[str, float]]:
        return {"20": {"alignment": ours, "marginal": marginal, "uniform": 0.5}}

    groups = {"a:x": scores(0.8, 0.7), "a:y": scores(0.6, 0.7), "b:x": scores(0.9, 0.6)}
    expected = {
        "alignment": 2.3 / 3,
        "alignment − marginal": 0.1,
        "a − marginal": 0.0,
        "b − marginal": 0.3,
    }
    found = dialogues.measures(["a", "b"])
    for label, value in expected.items():
        assert found[f"20 shown: {label}"]({"groups": groups}) == pytest.approx(value)


def test_a_segment_is_scored_beside_the_marginal_on_the_questions_not_shown() -> None:
    predictor, workspace = untrained("unseen-fraction = 0.5")
    table = workspace.table(workspace.unseen[0])
    found = dialogues.score(predictor, seen_mean(workspace), table, 20, 0)
    answers = [workspace.dataset.groups[g].answers for g in workspace.seen]
    own = workspace.dataset.groups[table.group].answers
    marginal, uniform = [], []
    for draw in range(dialogues.DRAWS):
        _, targets = context_and_targets(table, "all", 20, 1000 * draw)
        assert len(targets) == 10
        for question in (table.questions[i] for i in targets):
            mean = np.mean([held[question] for held in answers], axis=0)
            marginal.append(1 - jensenshannon(mean, own[question]))
            uniform.append(1 - jensenshannon(np.ones(len(mean)), own[question]))
    assert found["marginal"] == pytest.approx(np.mean(marginal), abs=1e-6)
    assert found["uniform"] == pytest.approx(np.mean(uniform), abs=1e-6)


EMBEDDING = {"embedding_template", "embedding_standardise"}


def predicted(variant: Variant) -> Tensor:
    """Train a variant on random embeddings; return what it predicts of an unseen group."""
    config = dataclasses.replace(CONFIG, **variant.config)
    with variant.change():
        workspace = survey(config, 90)  # enough to try the Gaussian process on some
        predictor = federated(workspace, config, lambda *_: None).eval()
        table = workspace.table(UNSEEN[0])
        return predictor.predict(table.batch(range(8)), table.batch(range(8, 20)))


@pytest.fixture(scope="module")
def full() -> Tensor:
    return predicted(VARIANTS[FULL])


@pytest.mark.parametrize(
    "name",
    # What changes the vectors would change nothing here: they are random.
    [name for name, v in VARIANTS.items() if name != FULL and not EMBEDDING & set(v.config)],
)
def test_a_variant_of_the_ablation_changes_the_model_while_it_lasts(
    name: str, full: Tensor
) -> None:
    assert not torch.equal(predicted(VARIANTS[name]), full)
    assert torch.equal(predicted(VARIANTS[FULL]), full)


@pytest.mark.parametrize(
    ("name", "of_mean", "of_factors"),
    [("no transformer in the mean", False, True), ("no factors", True, False)],
)
def test_a_transformer_that_a_variant_takes_away_says_nothing(
    name: str, of_mean: bool, of_factors: bool
) -> None:
    with VARIANTS[name].change():
        predictor = initial_predictor(CONFIG, DIMENSION, "")
    batch = survey().table(SEEN[0]).batch(range(5))
    tokens = torch.randn(len(batch.question), 4 * DIMENSION // 2)
    for part, says in (("mean", of_mean), ("factors", of_factors)):
        assert bool(predictor.network.get_submodule(part)(tokens, batch).any()) == says
