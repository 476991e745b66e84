"""A plausible run directory without running anything, for the tests of the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pluralllm_fl.config import default_run_config
from pluralllm_fl.evaluation.blocks import group_block

SEEN = ("Argentina", "Australia", "Canada", "Egypt", "Germany",
        "India (Current national sample)", "Nigeria", "United States")  # fmt: skip
UNSEEN = ("Brazil", "China", "France", "Japan", "New Zealand", "Spain")
START = 1_760_000_000.0
NODE_BYTES = 2_900_000


def numbered(count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of `count` groups, three in ten of them unseen."""
    names = [f"Segment {i:04d}" for i in range(count)]
    return tuple(names[: count * 7 // 10]), tuple(names[count * 7 // 10 :])


def write_run(
    folder: Path,
    *,
    rounds: int = 30,
    status: str = "completed",
    seen: tuple[str, ...] = SEEN,
    unseen: tuple[str, ...] = UNSEEN,
    diagnostics: bool = True,
    held_out: bool = True,
    warnings: tuple[str, ...] = (),
    **config: Any,
) -> Path:
    """Write run.json, metrics.jsonl and, for a completed run, summary.json and diagnostics.json."""
    folder.mkdir(parents=True, exist_ok=True)
    truth = _Truth(seen, unseen, held_out=held_out)
    finished = None if status == "running" else "2026-03-01T10:19:41+00:00"
    error = "Round 12: 1 good reply, 2 needed, after 2 retries." if status == "failed" else None
    record = {
        "schema": 1, "status": status, "error": error,
        "config": {**default_run_config(), "dataset": "globalopinionqa", **config},
        "versions": {"pluralllm-fl": "0.1.0", "flwr": "1.41.0", "torch": "2.9.0", "python": "3.11"},
        "dataset": {"name": "globalopinionqa", "fingerprint": "9f2c41d07b6e", "groups": {}},
        "seen": list(seen), "unseen": list(unseen),
        "started": "2026-03-01T10:12:29+00:00", "finished": finished, "completed_rounds": rounds,
    }  # fmt: skip
    write_json(folder / "run.json", record)
    events = truth.events(rounds)
    if finished:
        events.append({"event": "run_finished", "status": status, "error": error})
    lines = (json.dumps({**e, "time": START + i}) for i, e in enumerate(events))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if status == "completed":
        summary = {
            "status": status, "rounds": rounds, "wall_seconds": 432.4, "bytes_up": 706_000_000,
            "bytes_down": 1_412_000_000, "warnings": list(warnings), **truth.blocks(rounds),
        }  # fmt: skip
        write_json(folder / "summary.json", summary)
        if diagnostics:
            write_json(
                folder / "diagnostics.json", _diagnostics(seen[0], unseen, held_out=held_out)
            )
    return folder


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


class _Truth:
    """Scores that rise from uniform to each group's own plateau."""

    def __init__(self, seen: tuple[str, ...], unseen: tuple[str, ...], *, held_out: bool) -> None:
        self.held_out = held_out
        self.rng = np.random.default_rng(7)
        self.sides = {"seen": seen, "unseen": unseen}
        self.uniform = {g: 0.65 + self.rng.normal(0, 0.015) for g in seen + unseen}
        self.plateau = {g: 0.845 + self.rng.normal(0, 0.012) for g in seen}
        self.plateau |= {g: 0.815 + self.rng.normal(0, 0.022) for g in unseen}

        self.drawn: dict[int, dict[str, Any]] = {}

    def blocks(self, at: int) -> dict[str, Any]:
        held_out = self.held_out
        if at not in self.drawn:
            self.drawn[at] = {
                s: {
                    **self._block(names, at, 0.005, 900),
                    "test_questions": self._block(names, at, 0.03, 90) if held_out else None,
                    "trained_questions": self._block(names, at, 0.0, 720 if held_out else 900),
                }
                for s, names in self.sides.items()
                if names
            }
        return self.drawn[at]

    def _block(self, names: tuple[str, ...], at: int, harder: float, asked: int) -> dict[str, Any]:
        progress = 1 - np.exp(-at / 6)
        score = {
            g: float(self.uniform[g] + (self.plateau[g] - harder - self.uniform[g]) * progress)
            + float(self.rng.normal(0, 0.002))
            for g in names
        }
        questions = {g: asked + 17 * i for i, g in enumerate(names)}
        ends = {g: (s - 0.011, s + 0.010) for g, s in score.items()}
        return group_block(score, questions, self.uniform, ends)

    def events(self, rounds: int) -> list[dict[str, Any]]:
        seen, unseen = self.sides["seen"], self.sides["unseen"]
        roster = [{"group": g, "role": "train", "questions": 900} for g in seen]
        roster += [{"group": g, "role": "evaluate", "questions": 900} for g in unseen]
        events: list[dict[str, Any]] = [
            {"event": "roster", "nodes": roster},
            {"event": "run_started", "rounds": max(rounds, 30), "first_round": 1,
             "strategy": "fedavg", "parameters": 724_993},
            self._evaluation(0),
        ]  # fmt: skip
        for r in range(1, rounds + 1):
            loss = 1.02 + 0.6 * float(np.exp(-r / 7)) + float(self.rng.normal(0, 0.01))
            events.append({
                "event": "round", "round": r, "train_loss": loss, "learning_rate": 2e-3,
                "seconds": 6.1, "bytes_up": NODE_BYTES * len(seen),
                "bytes_down": NODE_BYTES * len(seen),
                "by_group": {g: {"train_loss": loss, "weight": 1.0} for g in seen},
            })  # fmt: skip
            events += [self._evaluation(r), {"event": "checkpoint", "round": r}]
        if rounds > 8:
            reason = "the update has a NaN in 'blocks.0.attention.weight'"
            events += [
                *({"event": "reply_dropped", "round": r, "phase": "train", "group": "Egypt",
                   "reason": reason} for r in (4, 5, 8)),
                {"event": "round_retried", "round": 8, "attempt": 1, "good": 1, "needed": 2},
                *({"event": "node_back", "round": r, "group": "Egypt"} for r in (6, 9)),
                {"event": "message_resent", "round": 7, "group": "Egypt"},
                {"event": "node_joined", "round": 2, "group": "Nigeria", "role": "train"},
            ]  # fmt: skip
        return events

    def _evaluation(self, at: int) -> dict[str, Any]:
        return {"event": "evaluation", "round": at, "seconds": 4.2, "bytes_up": 21_000,
                "bytes_down": NODE_BYTES * 14, **self.blocks(at),
                "validation_alignment": 0.8}  # fmt: skip


def _diagnostics(known: str, unseen: tuple[str, ...], *, held_out: bool) -> dict[str, Any]:
    sizes = [0, 1, 2, 5, 10, 20, 50]
    few, many = (unseen or (known,))[0], (unseen or (known,))[-1]
    scale = ["Very satisfied", "Somewhat satisfied", "Not too satisfied", "Not at all satisfied"]

    def new(value: float) -> float | None:
        return value if held_out else None

    leaders = [f"Leader number {i + 1} of a long list of candidates" for i in range(16)]
    return {
        "context_sizes": sizes,
        "context_curve": {
            "seen": [0.836, 0.838, 0.840, 0.843, 0.846, 0.848, 0.851],
            "unseen": [0.799, 0.802, 0.804, 0.809, 0.813, 0.816, 0.822],
        },
        "context_gain": {"seen": 0.012, "unseen": 0.017},
        "wrong_context": {"seen": 0.021, "unseen": 0.019},
        "references": {
            "marginal": {
                "seen": {"new": new(0.848), "trained": 0.847, "all": 0.848},
                "unseen": {"new": new(0.821), "trained": 0.820, "all": 0.820},
            },
            "noise_floor": {
                "seen": {"new": new(0.934), "trained": 0.935, "all": 0.935},
                "unseen": {"new": new(0.931), "trained": 0.932, "all": 0.932},
            },
        },
        "examples": [
            {"rank": "best", "group": many, "alignment": 0.985, "options": ["Yes", "No"],
             "question": "Do you use the internet, at least occasionally?",
             "true": [0.81, 0.19], "predicted": [0.8, 0.2]},
            {"rank": "best", "group": few, "alignment": 0.983, "options": scale,
             "question": "How satisfied are you with the way democracy is working here?",
             "true": [0.12, 0.41, 0.31, 0.16], "predicted": [0.13, 0.40, 0.30, 0.17]},
            {"rank": "median", "group": many, "alignment": 0.811,
             "question": "هل توافق على أن التعاون الدولي يعود بالنفع على بلدك؟",
             "options": ["أوافق بشدة", "أوافق", "لا أوافق", "لا أعرف"],
             "true": [0.45, 0.35, 0.12, 0.08], "predicted": [0.22, 0.38, 0.27, 0.13]},
            {"rank": "median", "group": few, "alignment": 0.81, "options": [*scale, "Don’t know"],
             "question": "And how satisfied are you with the economic situation?",
             "true": [0.05, 0.2, 0.4, 0.3, 0.05], "predicted": [0.12, 0.38, 0.3, 0.15, 0.05]},
            {"rank": "worst", "group": many, "alignment": 0.41, "options": ["Right", "Wrong"],
             "question": "Was the decision right or wrong?",
             "true": [0.95, 0.05], "predicted": [0.3, 0.7]},
            {"rank": "worst", "group": few, "alignment": 0.402,
             "question": "Which of these leaders do you have most confidence in? " * 12,
             "options": [*leaders, "Don’t know", "Refused to answer this question at all"],
             "true": [0.75, *[0.01] * 15, 0.06, 0.04], "predicted": [1 / 18] * 18},
        ],
    }  # fmt: skip
