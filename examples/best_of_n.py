"""Best of n: of several answers that a language model wrote, the one that a group prefers.

    python examples/best_of_n.py runs/RUN answers.jsonl "How should we spend Sunday?" \
        "Hike in the hills." "Sleep in." "Visit the market."

`answers.jsonl` holds what the group answered before (docs/data.md); `--group` names it if there are
several.
"""

import argparse

from pluralllm_fl import Pluralist
from pluralllm_fl.alignment.best_of_n import best_of_n

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("answers")
    parser.add_argument("question")
    parser.add_argument("candidates", nargs="+")
    parser.add_argument("--group")
    given = parser.parse_args()
    fitted = Pluralist.from_pretrained(given.run).fit(given.answers, group=given.group)
    print(best_of_n(fitted, given.question, given.candidates))
