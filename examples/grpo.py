"""GRPO: a policy that answers for everyone, rewarded by what all groups of a run prefer.

    python examples/grpo.py runs/RUN organisation/model policies/grpo

Put your own function in the place of `reward`: TRL's signature, (prompts, completions, **columns).
"""

import argparse
from pathlib import Path

from pluralllm_fl.alignment.aggregate import mean
from pluralllm_fl.alignment.everyone import for_everyone
from pluralllm_fl.alignment.grpo import grpo
from pluralllm_fl.alignment.policy import load_policy, save_policy
from pluralllm_fl.alignment.prompts import Prompts, survey_rows
from pluralllm_fl.alignment.targets import open_subject
from pluralllm_fl.alignment.training import Training
from pluralllm_fl.reward import PluralisticReward

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("policy", help="folder, .gguf file or hub id")
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()

    subject, policy = open_subject(given.run), load_policy(given.policy)
    of_a_group = PluralisticReward(subject.groups, mode="deficit", unmatched=-1.0)
    reward = for_everyone(of_a_group, list(subject.groups), mean)
    rows = survey_rows(Prompts.of(policy), subject.questions, [None])
    aligned = grpo(policy, rows, reward, Training(given.steps, batch=4))
    save_policy(aligned.policy, given.output)
    print(f"reward {aligned.history[0]['reward']:.3f} to {aligned.history[-1]['reward']:.3f}")
