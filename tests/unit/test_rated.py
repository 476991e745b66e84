"""Public forms of judged texts: tiny files made by hand in the same form, and the real ones."""

import io
import json
import math
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pluralllm_fl.cli.settings import absolute_source
from pluralllm_fl.datasets import load_dataset
from pluralllm_fl.errors import DatasetError
from pluralllm_fl.preferences import GroupPreferences, question_split

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
MQM = """\
system\tdoc\tdoc_id\tseg_id\trater\tsource\ttarget\tcategory\tseverity
A\tnews.1\t1\t4\tr1\tGuten <v>Tag</v>\tGood <v>dey</v>\tFluency/Spelling\tMajor
A\tnews.1\t1\t4\tr1\tGuten Tag\tGood dey<v>.</v>\tFluency/Punctuation\tMinor
B\tnews.1\t1\t4\tr1\tGuten Tag\tHello\tStyle/Awkward\tMinor
C\tnews.1\t1\t4\tr1\tGuten Tag\tHello\tNo-error\tNo-error
D\tnews.1\t1\t4\tr1\tGuten Tag\t<v>Soup</v>\tNon-translation!\tMajor
A\tnews.1\t1\t4\tr2\tGuten Tag\tGood dey\tNo-error\tNo-error
B\tnews.1\t1\t4\tr2\tGuten Tag\tHello\tNo-error\tNeutral
D\tnews.1\t1\t4\tr2\tGuten Tag\tSoup\tFound\tHOTW-test
A\tnews.1\t1\t5\tr2\tDanke\tThanks\tNo-error\tNo-error
A\tnews.1\t1\t6\tr2\tDanke\tThanks\tNo-error\tAwful
A\tnews.1
"""


def answers(group: GroupPreferences) -> dict[str, dict[str, float]]:
    """Return prompt -> response -> share."""
    return {q.text: dict(zip(q.options, p.tolist(), strict=True)) for q, p in group.answers.items()}


def softmax(scores: dict[str, float], temperature: float) -> dict[str, Any]:
    weights = {text: math.exp(score / temperature) for text, score in scores.items()}
    total = sum(weights.values())
    return {text: pytest.approx(weight / total) for text, weight in weights.items()}


@pytest.fixture
def mqm(tmp_path: Path) -> Path:
    path = tmp_path / "ratings.tsv"
    path.write_text(MQM, encoding="utf-8")
    return path


def test_mqm_penalties_are_googles(mqm: Path) -> None:
    dataset = load_dataset(f"mqm:{mqm}")
    # Two systems wrote "Hello": its score is the mean of -1 and 0. The marks are no text.
    scores = {"Good dey": -5.1, "Hello": -0.5, "Soup": -25.0}
    assert answers(dataset.groups["r1"]) == {"Guten Tag": softmax(scores, 5.0)}
    tied = {"Good dey": pytest.approx(0.5), "Hello": pytest.approx(0.5)}
    assert answers(dataset.groups["r2"]) == {"Guten Tag": tied}
    assert dataset.skipped == {
        "an error planted to test the rater": 1,
        "fewer than two options": 1,
        "unknown severity": 1,
        "wrong number of cells": 1,
    }
    with pytest.raises(DatasetError, match=r"ratings\.tsv:9: an error planted"):
        load_dataset(f"mqm:{mqm}", on_bad_row="raise")


def test_mqm_archive_of_the_newer_form_is_the_same(mqm: Path, tmp_path: Path) -> None:
    newer = MQM.replace("doc_id\tseg_id", "docSegId\tglobalSegId").encode()
    with tarfile.open(tmp_path / "ratings.tsv.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("ratings.tsv")
        member.size = len(newer)
        archive.addfile(member, io.BytesIO(newer))
    packed = load_dataset(f"mqm:{tmp_path / 'ratings.tsv.tar.gz'}")
    assert packed.fingerprint == load_dataset(f"mqm:{mqm}").fingerprint


def test_raters_who_saw_other_candidates_share_the_prompts_place(mqm: Path) -> None:
    dataset = load_dataset(f"mqm:{mqm}")
    first, second = (next(iter(dataset.groups[g].answers)) for g in ("r1", "r2"))
    assert first != second
    for seed in range(20):
        assert question_split(first, seed, 0.3, 0.3) == question_split(second, seed, 0.3, 0.3)


def test_squality_ratings_are_on_each_workers_own_scale(tmp_path: Path) -> None:
    def reviewed(text: str, **ratings: int) -> dict[str, Any]:
        reviews = [
            {"worker_id": worker[1:], "overall-rating": rating}
            for worker, rating in ratings.items()
        ]
        return {"response": text, "reviews": reviews}

    systems = {
        "bart": reviewed("Short.", w1=10, w2=48), "human": reviewed("Long.", w1=90, w2=52),
        "other": reviewed("Odd.", w1=50, w2=48),
    }  # fmt: skip
    path = tmp_path / "human_eval.jsonl"
    path.write_text(json.dumps({"passage-id": "7", "questions": {"0": systems}}) + "\n")
    dataset = load_dataset(f"squality:{path}")
    wide = np.std([10, 90, 50], ddof=1)
    narrow = np.std([48, 52, 48], ddof=1)
    one, two = (answers(dataset.groups[f"worker {i}"])["Story 7, question 0"] for i in (1, 2))
    assert one == softmax({"Short.": 10.0, "Long.": 90.0, "Odd.": 50.0}, wide)
    assert two == softmax({"Short.": 48.0, "Long.": 52.0, "Odd.": 48.0}, narrow)
    assert two["Short."] == two["Odd."]  # a tie stays one


def test_prism_opening_turns_by_person_or_by_group(tmp_path: Path) -> None:
    def row(user: str, turn: int, response: str, score: object, **more: str) -> dict[str, Any]:
        return {"user_id": user, "conversation_id": f"c-{user}", "turn": turn, "user_prompt": "Hi?",
                "model_response": response, "score": score, **more}  # fmt: skip

    rows = [row("u1", 0, "Hello", 80), row("u1", 0, "No.", 20), row("u1", 1, "Bye", 5),
            row("u2", 0, "Hello", 30), row("u2", 0, "No.", None),
            row("u2", 0, "Yes.", 30)]  # fmt: skip
    path = tmp_path / "utterances.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    dataset = load_dataset(f"prism:{path}")
    apart = softmax({"Hello": 80.0, "No.": 20.0}, np.std([80, 20], ddof=1))
    assert answers(dataset.groups["u1"]) == {"Hi?": apart}
    assert answers(dataset.groups["u2"]) == {"Hi?": {"Hello": 0.5, "Yes.": 0.5}}
    assert dataset.skipped == {"a later turn of a conversation": 1, "a score is not a number": 1}
    path.write_text("".join(json.dumps(one | {"group": "Chile"}) + "\n" for one in rows[:2]))
    assert list(load_dataset(f"prism:{path}").groups) == ["Chile"]


def test_helpsteer_attributes_are_the_groups(tmp_path: Path) -> None:
    def row(response: str, *scores: int) -> dict[str, Any]:
        names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
        return {"prompt": "Why?", "response": response, **dict(zip(names, scores, strict=True))}

    path = tmp_path / "train.jsonl"
    rows = [row("Because.", 1, 3, 4, 0, 0), row("As the sun rises.", 4, 3, 4, 2, 3)]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows) + '{"prompt": "Why?"}\n')
    dataset = load_dataset(f"helpsteer:{path}")
    assert len(dataset.groups) == 5
    liked = softmax({"Because.": 1.0, "As the sun rises.": 4.0}, np.std([1, 4], ddof=1))
    assert answers(dataset.groups["helpfulness"])["Why?"] == liked
    tied = {"Because.": 0.5, "As the sun rises.": 0.5}
    assert answers(dataset.groups["correctness"])["Why?"] == tied
    assert sum(dataset.skipped.values()) == 1


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("mqm", "give mqm:PATH, a .tsv or .tar.gz of github.com/google/wmt-mqm"),
        ("squality:missing.jsonl", "missing.jsonl is not a file"),
        ("prism:", "give prism:PATH, utterances.jsonl"),
    ],
)
def test_without_its_file_a_form_says_where_to_get_it(source: str, told: str) -> None:
    with pytest.raises(DatasetError, match=told):
        load_dataset(source)


def test_files_of_another_form_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "file.tsv"
    path.write_text("a\tb\n1\t2\n")
    with pytest.raises(DatasetError, match=r"file\.tsv:1: no column 'system'"):
        load_dataset(f"mqm:{path}")
    (tmp_path / "no.tar.gz").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match="cannot be read"):
        load_dataset(f"mqm:{tmp_path / 'no.tar.gz'}")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "?", "options": ["a", "b"], "group": "g", "choice": "a"}\n')
    for form in ("squality", "prism", "helpsteer"):
        with pytest.raises(DatasetError, match="holds no usable row"):
            load_dataset(f"{form}:{rows}")


def test_a_forms_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_source("mqm:a.tsv") == f"mqm:{tmp_path / 'a.tsv'}"
    assert absolute_source("mqm") == "mqm"


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not on this machine")
@pytest.mark.parametrize(
    ("source", "groups", "questions"),
    [
        ("mqm:mqm/mqm_ted_zhen.tsv", 8, 1845),
        ("squality:squality/human_eval.jsonl", 4, 100),
    ],
)
def test_the_originals_load(source: str, groups: int, questions: int) -> None:
    form, path = source.split(":")
    dataset = load_dataset(f"{form}:{SHARED / path}")
    assert (len(dataset.groups), len(dataset.questions)) == (groups, questions)
