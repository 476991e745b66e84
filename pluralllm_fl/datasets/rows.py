"""One row of any supported kind -> checked answers. Knows nothing of files.

Kinds of rows (`group` is needed in all but the last):

- survey: `question`, `options` and one of `distribution`, `counts`, `choice`;
- preference pair: `prompt`, `chosen`, `rejected`;
- ranked n-best: `prompt`, `responses` and one of `scores` (with `score_temperature`), `ranking`;
- GlobalOpinionQA: `question`, `options`, `selections` (answers of many groups).

Pairs and n-best lists are sorted by text, so that an option's position tells nothing.
"""

import math
from typing import NamedTuple

from pluralllm_fl.datasets.fields import (
    COLUMNS,
    BadRow,
    Row,
    checked_options,
    group_of,
    label_of,
    offered_of,
    options_of,
    read_selections,
    sequence_of,
    shown,
    text_of,
    without_shared_turns,
)
from pluralllm_fl.datasets.globalopinionqa import Repeated
from pluralllm_fl.datasets.numbers import (
    Reading,
    choice_of,
    counts_of,
    distribution_of,
    numbers_of,
    ordinal_of,
    score_temperature_of,
    weight_of,
)
from pluralllm_fl.errors import nearest

_ASKS = ("question", "prompt", "responses", "selections")  # columns that tell the kind of a row


class Answer(NamedTuple):  # a tuple: a survey may have millions of rows
    """What one row says about one group and question.

    `distribution` is final; `amounts` (length: options) and `choice` (one respondent's option,
    with `weight`) add up over rows. `offered` (length: options) says which options the group was
    offered; None: the row does not say. `reading` is what a number in `choice` can be.
    """

    kind: str
    group: str
    question: str
    options: tuple[str, ...]
    distribution: tuple[float, ...] | None = None
    amounts: tuple[float, ...] | None = None
    choice: int | None = None
    weight: float = 1.0
    offered: tuple[bool, ...] | None = None
    ordinal: tuple[float, ...] | None = None
    topic: str = ""
    source: str = ""
    reading: Reading = ""


def parse_row(row: Row) -> list[Answer | BadRow]:
    """Check one row. Only a `selections` row yields more than one entry, some of them bad.

    Raises
    ------
    BadRow
        When nothing of the row can be used.
    """
    given = {key for key, value in row.items() if value is not None and value != ""}
    if "offered" in given and ("selections" in given or "question" not in given):
        raise BadRow(
            "'offered' in a row that cannot have it",
            "it goes with 'question', 'options' and one of 'distribution', 'counts', 'choice'",
        )
    if "selections" in given:
        return _selections(row)
    if "question" in given:
        return [_survey(row, given)]
    if given & {"chosen", "rejected"}:
        return [_pair(row)]
    if "responses" in given:
        return [_ranked(row, given)]
    if {"prompt", "completion"} <= row.keys():  # as for KTO
        raise BadRow(
            "a judgement of one completion alone",
            "it does not say what a group prefers to what: give 'prompt' with 'chosen' and "
            "'rejected', or 'prompt' with 'responses'",
        )
    known = ", ".join(str(key) for key in row) or "none"
    hints = (nearest(str(key), _ASKS) for key in row if key not in COLUMNS)
    hint = next(filter(None, hints), "")
    raise BadRow(
        "no question column",
        f"give 'question' and 'options', or 'prompt' with 'chosen' and 'rejected', or 'prompt' "
        f"with 'responses' (columns found: {known[:200]}).{hint}".rstrip("."),
    )


def _survey(row: Row, given: set[str]) -> Answer:
    group = group_of(row)
    question = text_of(row, "question")
    options = options_of(row, "options")
    found = [key for key in ("distribution", "counts", "choice") if key in given]
    if len(found) != 1:
        hint = "".join(
            nearest(str(key), ("distribution", "counts", "choice"))
            for key in row
            if key not in COLUMNS
        )
        raise BadRow(
            "no answer column" if not found else "more than one answer column",
            f"give exactly one of 'distribution', 'counts', 'choice' "
            f"(found: {', '.join(found) or 'none'}).{hint}",
        )
    kind = found[0]
    distribution = amounts = choice = None
    reading: Reading = ""
    weight = weight_of(row)
    if kind == "distribution":
        distribution = distribution_of(sequence_of(row[kind], kind), len(options))
    elif kind == "counts":
        amounts = counts_of(sequence_of(row[kind], kind), len(options), weight)
    else:
        choice, reading = choice_of(row[kind], options)
    offered = None
    if "offered" in given:
        one_hot = [float(i == choice) for i in range(len(options))]
        offered = offered_of(row, options, distribution or amounts or one_hot)
    return Answer(
        kind,
        group,
        question,
        options,
        distribution,
        amounts,
        choice,
        weight,
        offered,
        ordinal_of(row.get("ordinal"), len(options)),
        label_of(row, "topic"),
        label_of(row, "source"),
        reading,
    )


def _pair(row: Row) -> Answer:
    group, question = group_of(row), text_of(row, "prompt", chat=True)
    chosen, rejected = without_shared_turns(row.get("chosen"), row.get("rejected"))
    replies = {"chosen": chosen, "rejected": rejected}
    chosen, rejected = (text_of(replies, key, chat=True) for key in replies)
    options = checked_options((chosen, rejected))
    ordered = tuple(sorted(options))
    return Answer(
        "preference pair",
        group,
        question,
        ordered,
        choice=ordered.index(chosen),
        weight=weight_of(row),
        topic=label_of(row, "topic"),
        source=label_of(row, "source"),
    )


def _ranked(row: Row, given: set[str]) -> Answer:
    """Scores over their temperature are Luce log-utilities; a rank has odds of 2 over the next."""
    group, question = group_of(row), text_of(row, "prompt", chat=True)
    replies = sequence_of(row["responses"], "responses")
    options = checked_options(
        tuple(text_of({"responses": reply}, "responses", chat=True) for reply in replies)
    )
    if len({"scores", "ranking"} & given) != 1:
        raise BadRow("no ranking", "give exactly one of 'scores' and 'ranking' with 'responses'")
    if "scores" in given:
        scores = numbers_of(
            sequence_of(row["scores"], "scores"), len(options), "scores", signed=True
        )
        temperature = score_temperature_of(row)
        utilities = [score / temperature for score in scores]
    else:
        ranking = sequence_of(row["ranking"], "ranking")
        if any(type(i) is not int for i in ranking) or sorted(ranking) != list(range(len(options))):
            raise BadRow(
                "ranking is not a permutation",
                f"list the positions 0 to {len(options) - 1} of the responses, best first",
            )
        utilities = [-math.log(2) * ranking.index(i) for i in range(len(options))]
    top, weight = max(utilities), weight_of(row)
    strengths = [math.exp(u - top) for u in utilities]
    total = math.fsum(strengths)
    shares = dict(zip(options, strengths, strict=True))
    ordered = tuple(sorted(options))
    return Answer(
        "ranked list",
        group,
        question,
        ordered,
        amounts=tuple(weight * shares[option] / total for option in ordered),
        topic=label_of(row, "topic"),
        source=label_of(row, "source"),
    )


def _selections(row: Row) -> list[Answer | BadRow]:
    question, options = text_of(row, "question"), options_of(row, "options")
    by_group = read_selections(row["selections"])
    found: list[Answer | BadRow] = []
    for name, values in by_group.items():
        try:
            group = group_of({"group": name})
            if values is Repeated.TWICE:
                raise BadRow("a group appears twice", "keep the shares that are right")
            shares = distribution_of(sequence_of(values, "selections"), len(options))
        except BadRow as bad:
            found.append(BadRow(bad.reason, f"{str(bad).partition('; ')[2]} (group {shown(name)})"))
            continue
        source = label_of(row, "source")
        found.append(
            Answer("selections", group, question, options, distribution=shares, source=source)
        )
    if not found:
        raise BadRow("selections are empty", "name at least one group with its distribution")
    return found
