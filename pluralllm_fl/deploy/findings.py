"""What a check found: one line for people and for machines."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "wrong", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of one step.

    Parameters
    ----------
    step : str
        What was looked at, in a word or two.
    status : {"ok", "warning", "wrong", "skipped"}
        "skipped": it could not be looked at because an earlier step failed.
    message : str
        What was found. Never a question, an answer or a distribution: findings are pasted
        into mails.
    remedy : str
        How to mend it; empty when there is nothing to do.
    """

    step: str
    status: Status
    message: str
    remedy: str = ""
