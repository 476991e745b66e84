"""Options that were not offered: no probability, no evidence, and a score of their own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from pluralllm_fl import metrics
from pluralllm_fl.config import RunConfig
from pluralllm_fl.evaluation.blocks import split_blocks
from pluralllm_fl.evaluation.scores import NO_SCORE, SplitScore, evaluate_group
from pluralllm_fl.predictor.episodes import GroupTable, QuestionBatch
from pluralllm_fl.predictor.gaussian_process import condition, latent
from pluralllm_fl.predictor.losses import prediction_loss
from pluralllm_fl.predictor.model import PreferencePredictor
from pluralllm_fl.predictor.networks import PredictorConfig
from pluralllm_fl.predictor.training import train_group
from pluralllm_fl.preferences import (
    GroupPreferences,
    PreferenceDataset,
    Question,
    zeros_not_offered,
)
from tests.tiny import DIMENSION, tiny_table

LOSSES = ("alignment", "cross-entropy", "normal-nll")


def lacking(table: GroupTable, seed: int = 0) -> GroupTable:
    """Leave one option out of most questions with three options or more: no share, not offered."""
    rng = np.random.default_rng(seed)
    offered = np.ones(len(table.distribution), dtype=bool)
    starts = np.cumsum(table.size) - table.size
    for start, size in zip(starts, table.size, strict=True):
        if size > 2 and rng.random() < 0.8:
            offered[start + rng.integers(size)] = False
    shares = np.where(offered, table.distribution, 0).astype(np.float32)
    question = np.repeat(np.arange(len(table)), table.size)
    shares /= np.bincount(question, weights=shares)[question].astype(np.float32)
    return replace(table, distribution=shares, offered=offered)


def removed(batch: QuestionBatch) -> QuestionBatch:
    """Return the same questions with the options not offered cut out of the lists of options."""
    assert batch.offered is not None
    assert batch.distribution is not None
    question = batch.question[batch.offered]
    size = torch.bincount(question, minlength=len(batch))
    position = torch.cat([torch.arange(n) for n in size.tolist()])
    return QuestionBatch(
        batch.embedding[batch.offered], question, position, size, batch.distribution[batch.offered]
    )


def predictor(architecture: str = "transformer") -> PreferencePredictor:
    torch.manual_seed(0)
    template = "{question}||{option}" if architecture == "transformer" else "{question} {option}"
    config = PredictorConfig(
        architecture=architecture, embedding_dim=DIMENSION, width=16, feed_forward=16, factors=3,
        question_features=32, embedding_template=template,
    )  # fmt: skip
    return PreferencePredictor(config).eval()


@given(st.lists(st.integers(2, 7), min_size=1, max_size=8), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_softmax_is_over_the_options_offered(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = [rng.random(n) < 0.7 for n in sizes]
    for mask in masks:
        mask[rng.choice(len(mask), 2, replace=False)] = True
    logits = torch.from_numpy(rng.normal(0, 20, sum(sizes))).float()
    batch = QuestionBatch.build(
        torch.zeros(sum(sizes), 1), np.cumsum(sizes) - sizes, np.array(sizes), None,
        torch.from_numpy(np.concatenate(masks)),
    )  # fmt: skip
    found = batch.log_softmax(logits).exp().split(sizes)
    for p, mask, x in zip(found, masks, logits.split(sizes), strict=True):
        expected = torch.zeros(len(mask))
        expected[torch.from_numpy(mask)] = x[torch.from_numpy(mask)].softmax(0)
        torch.testing.assert_close(p, expected, rtol=1e-5, atol=1e-30)
        assert (p[torch.from_numpy(~mask)] == 0).all()


def test_batches_carry_what_was_offered_until_they_are_asked_of_anybody() -> None:
    table = lacking(tiny_table())
    assert table.offered is not None
    batch, starts = table.batch([9, 4, 30]), np.cumsum(table.size) - table.size
    assert batch.offered is not None
    expected = [table.offered[starts[i] : starts[i] + table.size[i]] for i in (9, 4, 30)]
    np.testing.assert_array_equal(batch.offered, np.concatenate(expected))
    assert not batch.offered.all()
    part, options = batch.pick(np.array([0, 2]))
    assert part.offered is not None
    assert torch.equal(part.offered, batch.offered[options])
    assert batch.without_answers().offered is None
    assert tiny_table().batch([1, 2]).offered is None


def test_a_question_without_a_statement_offers_all_options() -> None:
    a, b = Question("a?", ("x", "y", "z")), Question("b?", ("x", "y"))
    group = GroupPreferences(
        "A",
        {a: np.array([0.5, 0.5, 0]), b: np.array([1.0, 0])},
        offered={a: np.array([True, True, False])},
    )
    table = GroupTable.build(
        group, torch.zeros(5, 2), {a.id: 0, b.id: 3},
        seed=0, validation_fraction=0, test_fraction=0,
    )  # fmt: skip
    masks = {q: table.offers([i]) for i, q in enumerate(table.questions)}
    assert masks[a].tolist() == [True, True, False]  # type: ignore[union-attr]
    assert masks[b].tolist() == [True, True]  # type: ignore[union-attr]


@pytest.mark.parametrize("loss", LOSSES)
def test_an_option_not_offered_counts_in_no_loss(loss: str) -> None:
    """The same loss and gradients as of questions that never listed the option."""
    batch = lacking(tiny_table()).batch(range(30))
    assert batch.offered is not None
    logits = torch.randn(len(batch.question), generator=torch.Generator().manual_seed(1))
    log_std = logits / 3
    whole, short = logits.clone().requires_grad_(), logits[batch.offered].requires_grad_()
    stated = prediction_loss(batch.log_softmax(whole), log_std, batch, loss)
    small = removed(batch)
    expected = prediction_loss(small.log_softmax(short), log_std[batch.offered], small, loss)
    torch.testing.assert_close(stated, expected)
    stated.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    assert whole.grad is not None
    assert short.grad is not None
    torch.testing.assert_close(whole.grad[batch.offered], short.grad)
    assert (whole.grad[~batch.offered] == 0).all()


def test_an_option_not_offered_is_no_evidence_about_the_group() -> None:
    """Conditioning and location equal those of questions that never listed the option."""
    batch = lacking(tiny_table()).batch(range(25))
    assert batch.offered is not None
    generator = torch.Generator().manual_seed(2)
    size = len(batch.question)
    mean = torch.randn(size, generator=generator, dtype=torch.float64)
    root = torch.randn(size, 12, generator=generator, dtype=torch.float64)
    prior, evidence = root @ root.T / 12, torch.tensor(5.0, dtype=torch.float64)
    kept, small = batch.offered, removed(batch)
    double = replace(batch, distribution=batch.distribution.double())  # type: ignore[union-attr]
    small = replace(small, distribution=small.distribution.double())  # type: ignore[union-attr]
    found = condition(double, mean, prior, evidence)
    expected = condition(small, mean[kept], prior[kept][:, kept], evidence)
    torch.testing.assert_close(found[kept], expected)
    torch.testing.assert_close(found[~kept], torch.zeros_like(found[~kept]), atol=1e-9, rtol=0)
    factors = root[:, :4]
    torch.testing.assert_close(
        latent(double, mean, factors, 3.0), latent(small, mean[kept], factors[kept], 3.0)
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("architecture", ["transformer", "published"])
def test_local_training_stays_finite(architecture: str, loss: str) -> None:
    changes = {
        "loss": loss, "architecture": architecture, "context-min": 1, "context-max": 6,
        "target-min": 2, "target-max": 8,
    }  # fmt: skip
    config = RunConfig.default(changes)
    model = predictor(architecture)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = train_group(
        model, lacking(tiny_table()), config,
        server_round=2, learning_rate=1e-3, local_steps=4, seed=0,
    )  # fmt: skip
    assert np.isfinite(result.loss)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert any((value != before[name]).any() for name, value in model.state_dict().items())


@pytest.mark.parametrize("architecture", ["transformer", "published"])
def test_the_asker_gets_the_prediction_over_the_options_offered(architecture: str) -> None:
    table, model = lacking(tiny_table()), predictor(architecture)
    asked = table.batch(range(30, 60))
    free = model.predict(table.batch(range(20)), asked.without_answers()).double().numpy()
    known = model.predict(table.batch(range(20)), asked).double().numpy()
    offered = asked.offered
    assert offered is not None
    question = asked.question.numpy()
    np.testing.assert_allclose(known, metrics.restrict(free, offered.numpy(), question), atol=1e-6)
    assert (known[~offered.numpy()] == 0).all()


def test_restricting_a_prediction_without_mass_is_uniform_over_the_options_offered() -> None:
    found = metrics.restrict(
        np.array([0.0, 0.0, 1.0, 0.2, 0.2, 0.6]),
        np.array([True, True, False, True, True, False]),
        np.array([0, 0, 0, 1, 1, 1]),
    )
    np.testing.assert_allclose(found, [0.5, 0.5, 0, 0.5, 0.5, 0])


def test_both_scores_are_those_of_a_loop_with_scipy() -> None:
    table, model = lacking(tiny_table()), predictor()
    score = evaluate_group(model, table, context_questions=0, seed=0)["test"]
    headline, known = [], []
    for i in table.members("test"):
        p = model.predict(None, table.batch([i]).without_answers()).double().numpy()
        true, mask = table.answers([i]), table.offers([i])
        headline.append(1 - jensenshannon(p, true))
        known.append(1 - jensenshannon(np.where(mask, p, 0), true))
    assert score.alignment == pytest.approx(np.mean(headline), abs=1e-6)
    assert score.alignment_offered == pytest.approx(np.mean(known), abs=1e-6)
    assert score.alignment_offered > score.alignment + 0.005


def test_the_headline_score_never_knows_what_the_targets_were_offered() -> None:
    """Without context nothing but the targets could carry it."""
    stated, model = lacking(tiny_table()), predictor()
    silent = replace(stated, offered=None)
    told, untold = (evaluate_group(model, t, context_questions=0, seed=0) for t in (stated, silent))
    for split, score in untold.items():
        assert score.alignment_offered == score.alignment == told[split].alignment
        assert (score.low, score.high) == (told[split].low, told[split].high)


def test_a_side_holds_the_mean_of_both_scores() -> None:
    def scores(alignment: float, offered: float) -> dict[str, SplitScore]:
        score = SplitScore(alignment, offered, 0.1, 0.9, 0.5, 7, 0.6, 0.1, 9)
        return {"all": score, "train": NO_SCORE, "test": NO_SCORE}

    block = split_blocks({"A": scores(0.6, 0.7), "B": scores(0.8, 0.8)})  # type: ignore[dict-item]
    assert block is not None
    assert block["alignment"] == pytest.approx(0.7)
    assert block["alignment_offered"] == pytest.approx(0.75)
    assert block["test_questions"] is None


def test_the_fingerprint_covers_what_is_stated_and_nothing_else() -> None:
    question = Question("q?", ("a", "b", "c"))
    answers = {question: np.array([0.25, 0.75, 0.0])}
    masks = ([True, True, False], [True, True, True])
    stated = [GroupPreferences("A", answers, offered={question: np.array(m)}) for m in masks]
    plain = GroupPreferences("A", answers).fingerprint
    # That of every earlier version: a data set that states nothing keeps its identity.
    assert plain == "bb9f3695707e1a07fbe612577dc466614bf71681122e25fc1865a6cd1d940387"
    assert len({plain, *(g.fingerprint for g in stated)}) == 3


@given(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=5).filter(any), min_size=1))
@settings(max_examples=100)
def test_zeros_read_as_not_offered_leave_two_options_with_every_share(
    counts: list[list[int]],
) -> None:
    answers = {
        Question(f"{i}?", tuple(map(str, range(len(c))))): np.array(c) / sum(c)
        for i, c in enumerate(counts)
    }
    dataset = zeros_not_offered(PreferenceDataset("d", {"A": GroupPreferences("A", answers)}))
    offered = dataset.groups["A"].offered
    for question, p in answers.items():
        positive = sum(x > 0 for x in p.tolist())
        assert (question in offered) == (2 <= positive < len(p))
        if question in offered:
            assert offered[question].tolist() == [x > 0 for x in p.tolist()]
