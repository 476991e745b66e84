"""DPO: preference pairs out of what a run predicts for its groups, then TRL's DPOTrainer.

    python examples/dpo.py runs/RUN organisation/model policies/dpo

The policy is told the group in the prompt, so that one policy answers for each of them.
"""

import argparse
from pathlib import Path

from pluralllm_fl.alignment.dpo import dpo
from pluralllm_fl.alignment.pairs import draw_pairs, lettered_rows, write_pairs
from pluralllm_fl.alignment.policy import load_policy, save_policy
from pluralllm_fl.alignment.prompts import Prompts
from pluralllm_fl.alignment.targets import open_subject, predicted_targets
from pluralllm_fl.alignment.training import Training

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("policy", help="folder, .gguf file or hub id")
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()

    policy, training = load_policy(given.policy), Training(given.steps)
    targets = predicted_targets(open_subject(given.run), "per-group")
    pairs = draw_pairs(targets, training.rows)
    aligned = dpo(policy, lettered_rows(pairs, Prompts.of(policy)), training, beta=1.0)
    save_policy(aligned.policy, given.output)
    write_pairs(pairs, given.output / "pairs.jsonl")
    print(f"loss {aligned.history[0]['loss']:.3f} to {aligned.history[-1]['loss']:.3f}")
