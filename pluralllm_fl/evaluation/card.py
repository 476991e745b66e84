"""The model card, ``model/README.md``: what a finished run's model is, in the hub's form.

It holds counts and means, never a group's name or answer: whoever gets the model gets the card.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pluralllm_fl import __version__
from pluralllm_fl.evaluation.standing import Standing, sentences, standings
from pluralllm_fl.runs.artefacts import write_atomic
from pluralllm_fl.runs.hub import CARD
from pluralllm_fl.runs.record import RunRecord, mapping, number, read_json

Json = Mapping[str, Any]
_QUESTIONS = {"new": "nobody trained on", "trained": "trained on", "all": "all"}


def write_card(run: Path) -> None:
    """Write the card of a run that ended with a model; a run without one has none.

    Parameters
    ----------
    run : Path
        Folder with run.json and summary.json; diagnostics.json and audit.json are used if there.

    Raises
    ------
    ArtefactError
        If a file of the run is damaged, or the card cannot be written.
    """
    if (run / "model").is_dir() and (run / "summary.json").is_file():
        # As private as the weights, until somebody sends both somewhere.
        write_atomic(run / "model" / CARD, card(run).encode(errors="replace"), mode=0o600)


def card(run: Path) -> str:
    """Return the text of the card."""
    from huggingface_hub import ModelCardData

    record, summary = RunRecord.read(run), read_json(run / "summary.json")
    diagnostics, audit = (
        read_json(run / name) if (run / name).is_file() else None
        for name in ("diagnostics.json", "audit.json")
    )
    head = ModelCardData(
        license="unknown",
        library_name="pluralllm-fl",
        tags=["pluralistic-alignment", "federated-learning", "reward-model", "preferences"],
    )
    parts = [
        f"---\n{head.to_yaml()}\n---\n",
        "# A predictor of how groups spread their preferences\n",
        "From a few answers of a group it predicts how the group would distribute its preference "
        "over the options of other questions. Trained with "
        f"[PluralLLM-FL](https://arxiv.org/abs/2503.09925) {__version__}; only model updates left "
        "the groups.\n",
        _USE,
        _training(record, summary),
        _measures(summary, mapping((diagnostics or {}).get("references"))),
        _privacy(audit),
        "## Licence\n\nNot stated (`license: unknown` above). Whoever holds the rights in the "
        "answers decides: write it there before you pass the model on.\n",
    ]
    return "\n".join(parts)


_USE = """```python
from pluralllm_fl import Pluralist

pluralist = Pluralist.from_pretrained("…")  # this folder, or the model's id on the hub
group = pluralist.fit({("Do you trust the press?", ("Yes", "No")): (0.3, 0.7)})
group.predict("Do you trust the courts?", ["Yes", "No"])
```
"""


def _training(record: RunRecord, summary: Json) -> str:
    config = record.config
    facts = {
        "data fingerprint": f"`{record.dataset.get('fingerprint')}`",
        "groups": f"{len(record.seen)} trained, {len(record.unseen)} only evaluated",
        "rounds": summary.get("rounds"),
        "strategy": f"`{config.get('strategy')}`",
        "architecture": f"`{config.get('architecture')}`",
        "language model": f"`{Path(str(config.get('embedding-model'))).name}`, fingerprint "
        f"`{record.embedding}`",
    }
    return "## Training\n\n" + "\n".join(f"- {k}: {v}" for k, v in facts.items()) + "\n"


def _measures(summary: Json, references: Json) -> str:
    """Return the table of alignment beside its references."""
    blocks = {side: summary.get(side) for side in ("unseen", "seen")}
    rows = standings(blocks, references)
    if not rows:
        return "## Measures\n\nNone: no group was evaluated.\n"
    lines = [
        "## Measures\n",
        "Alignment is 1 − Jensen-Shannon distance, the mean over questions and then over groups "
        "(1: exact), with a 95% interval over groups where there are enough. The marginal is the "
        "mean raw answer of the groups that trained.\n",
        "| groups | questions | alignment | uniform guess | marginal | noise floor |",
        "|---|---|---|---|---|---|",
        *(_line(row, mapping(blocks[row.side])) for row in rows),
        "",
        *sentences(rows),
        *(f"**Warning:** {text}" for text in summary.get("warnings", [])),
    ]
    return "\n".join(lines) + "\n"


def _line(row: Standing, block: Json) -> str:
    part = {"new": block.get("test_questions"), "trained": block.get("trained_questions")}
    ends = mapping(part.get(row.questions, block)).get("interval")
    beside = f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else ""
    cells = (
        "not measured" if row.predictor is None else f"{row.predictor:.3f}{beside}",
        *("–" if x is None else f"{x:.3f}" for x in (row.uniform, row.marginal, row.noise_floor)),
    )
    return f"| {row.side} | {_QUESTIONS[row.questions]} | {' | '.join(cells)} |"


def _privacy(audit: Json | None) -> str:
    if audit is None:
        return (
            "## Privacy\n\nNot audited: how well a training group's answers can be read from this "
            "model was not measured (`pluralllm audit RUN`).\n"
        )
    lines = [
        "## Privacy\n",
        "How well a holder of this model predicts the answers of groups that trained, on trained "
        "questions, beside groups that took no part (alignment, `pluralllm audit`).\n",
        "| answers of the group known | trained | took no part | beyond what new questions show |",
        "|---|---|---|---|",
    ]
    for row in audit["model"]:
        excess = mapping(mapping(row.get("excess")).get("difference"))
        trained = mapping(row["trained"])
        values = [
            number(mapping(trained.get(side)).get("alignment")) for side in ("seen", "unseen")
        ]
        cells = [*values, number(excess.get("alignment"))]
        shown = " | ".join("–" if x is None else f"{x:.3f}" for x in cells)
        lines.append(f"| {row['known']} | {shown} |")
    return "\n".join(lines) + "\n"
