"""OpinionQA (Santurkar et al. 2023, arXiv 2303.17548): Pew surveys by demographic group.

Its terms do not allow redistribution, so there is nothing to download by name: the user brings
a file in the row format (`group`, `question`, `options`, `distribution` or `choice` + `weight`).
"""

from pathlib import Path

from pluralllm_fl.errors import DatasetError

HOME = Path("~/.cache/pluralllm-fl")
NAMES = ("opinionqa.jsonl", "opinionqa.csv", "opinionqa.parquet")


def find_file() -> Path:
    """Path of the user's own OpinionQA file.

    Raises
    ------
    DatasetError
        When there is none; says where to get the data and how a row looks.
    """
    for name in NAMES:
        path = HOME.expanduser() / name
        if path.is_file():
            return path
    raise DatasetError(
        f"OpinionQA is not on this machine and may not be redistributed. Get the human responses "
        f"from its authors (github.com/tatsu-lab/opinions_qa, 'human_resp') or the American Trends "
        f"Panel respondent files from pewresearch.org (free account), write one JSON line per "
        f'group and question, {{"group": "AGE:18-29", "question": "…", "options": ["…", "…"], '
        f'"distribution": [0.4, 0.6]}} (or one line per respondent with "choice" and "weight"), '
        f"and pass that file's path as the data set, or save it as {HOME / NAMES[0]}."
    )
