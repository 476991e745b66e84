"""Where a predictor stands: its score beside what else could be had on the same questions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pluralllm_fl.runs.record import mapping, number

FEWEST_FOR_INTERVAL = 5  # resampling fewer values gives a range that looks far too certain

# Kind of questions -> split of the evaluation.
SPLITS: dict[str, Literal["test", "train", "all"]] = {
    "new": "test", "trained": "train", "all": "all",
}  # fmt: skip
NOT_MEASURED = "not measured: every question trains"
_BLOCKS = {"new": "test_questions", "trained": "trained_questions"}
_WHERE = {
    "new": "On questions that nobody trained on",
    "trained": "On trained questions",
    "all": "On all questions",
}
_ORACLE = (
    "the marginal, which is what the seen groups' own answers to these very questions would give "
    "and no federation may read"
)

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Standing:
    """Mean alignment over one side's groups on one kind of questions; None: not known.

    Parameters
    ----------
    side : str
        ``seen`` or ``unseen``.
    questions : str
        ``new`` (nobody trained on them), ``trained`` or ``all``.
    predictor, uniform : float or None
    marginal : float or None
        Of the seen groups' mean raw answer to the same question, without the group asked.
    noise_floor : float or None
        What the true distributions would score against answers of so many people.
    """

    side: str
    questions: str
    predictor: float | None
    uniform: float | None
    marginal: float | None
    noise_floor: float | None


def standings(blocks: Mapping[str, Json | None], references: Json) -> list[Standing]:
    """Put the scores of unseen and seen groups beside their references.

    Parameters
    ----------
    blocks : mapping of str to block or None
        Side -> its scores, as in summary.json.
    references : mapping
        As `references.references_by_side` returns; empty where the answers are not at hand.
    """
    found = []
    for side in ("unseen", "seen"):
        if block := blocks.get(side):
            parts = {kind: mapping(block.get(key)) for kind, key in _BLOCKS.items()} | {
                "all": block
            }
            found += [_standing(side, kind, parts[kind], references) for kind in _kinds(parts)]
    return found


def sentences(rows: list[Standing]) -> list[str]:
    """Say in plain words what the standings of the first side mean."""
    own = [row for row in rows if row.side == rows[0].side]
    told = [row for row in own if row.questions != "all"] or own
    said, explained = [], False
    for row in told:
        if row.predictor is None:
            said.append("New questions are " + NOT_MEASURED + ".")
            continue
        beside = [("a uniform guess", row.uniform)]
        beside.append(("the marginal" if explained else _ORACLE, row.marginal))
        explained = explained or row.marginal is not None
        parts = [_apart(row.predictor, value, name) for name, value in beside if value is not None]
        if parts:
            said.append(f"{_WHERE[row.questions]}, the predictor is {' and '.join(parts)}.")
    floors = [r.noise_floor for r in told if r.predictor is not None and r.noise_floor is not None]
    if floors:
        said.append(
            f"The true distribution itself would score about {floors[0]:.3f} (noise floor): the "
            "answers of a limited number of people scatter around it."
        )
    return said


def _kinds(parts: Mapping[str, Json]) -> list[str]:
    """Return the kinds of questions to show; without held-out questions, all are trained ones."""
    if parts["trained"] and parts["trained"].get("questions") == parts["all"].get("questions"):
        return ["new", "trained"]
    return [kind for kind, part in parts.items() if part]


def _standing(side: str, kind: str, block: Json, references: Json) -> Standing:
    marginal, floor = (
        number(mapping(mapping(references.get(name)).get(side)).get(kind))
        for name in ("marginal", "noise_floor")
    )
    return Standing(
        side, kind, number(block.get("alignment")), number(block.get("uniform")), marginal, floor
    )


def _apart(value: float, other: float, name: str) -> str:
    difference = f"{abs(value - other):.3f}"
    if float(difference) == 0:
        return f"level with {name}"
    return f"{difference} {'above' if value > other else 'below'} {name}"
