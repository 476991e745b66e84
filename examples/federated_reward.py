"""A policy aligned with groups that keep their answers: each scores its rollouts at home.

    pluralllm align federated runs/RUN examples/federated_reward.py

The nodes of RUN's federation score, simulated or deployed. The policy is a table of logits here; of
a language model the loop is `GRPOTrainer(model, reward_funcs=reward, ...).train()`.
"""

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from pluralllm_fl.federation.rewarding import FederatedReward

QUESTION = "How should we spend Sunday?"
OPTIONS = ["Hike in the hills.", "Sleep in.", "Visit the market.", "Read the news."]
STEPS, COMPLETIONS, RATE = 12, 128, 4.0
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    reward = FederatedReward.open(grid, context, mode="deficit")
    rng, logits = np.random.default_rng(0), np.zeros(len(OPTIONS))
    for _ in range(STEPS):
        policy = np.exp(logits) / np.exp(logits).sum()
        said = rng.choice(len(OPTIONS), COMPLETIONS, p=policy)
        n, texts = len(said), [OPTIONS[i] for i in said]
        given = np.array(reward([QUESTION] * n, texts, options=[OPTIONS] * n), dtype=float)
        logits += RATE * (given @ (np.eye(len(OPTIONS))[said] - policy)) / n
    print("Policy:", dict(zip(OPTIONS, policy.round(3).tolist(), strict=True)))
