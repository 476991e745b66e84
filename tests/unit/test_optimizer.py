"""AdamW against torch's own."""

import subprocess
import sys

import pytest
import torch

from pluralllm_fl.predictor.optimizer import FlatAdamW


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(5, 7), torch.nn.LayerNorm(7), torch.nn.GELU(), torch.nn.Linear(7, 1)
    )


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("largest", [0.0, 0.05, 1e3])
def test_steps_equal_torchs(decay: float, largest: float) -> None:
    ours, theirs = model(), model()
    flat = FlatAdamW(list(ours.parameters()), 3e-2, decay)
    adamw = torch.optim.AdamW(theirs.parameters(), lr=3e-2, weight_decay=decay)
    for _ in range(30):
        x = torch.randn(16, 5)
        for net in (ours, theirs):
            (net(x) - x.sum(1, keepdim=True)).square().mean().backward()
        if largest:
            flat.clip(largest)
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), largest)
        flat.step()
        adamw.step()
        adamw.zero_grad()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_parameters_keep_their_shapes_and_a_missing_gradient_is_zero() -> None:
    net = model()
    unused = torch.nn.Parameter(torch.ones(3, 2))
    flat = FlatAdamW([*net.parameters(), unused], 0.1, 0.0)
    net(torch.randn(4, 5)).sum().backward()
    flat.step()
    assert unused.shape == (3, 2)
    assert torch.equal(unused, torch.ones(3, 2))
    assert not torch.equal(net[0].weight, model()[0].weight)  # type: ignore[index]


def test_training_does_not_import_torchs_compiler() -> None:
    code = (
        "import sys, torch; from pluralllm_fl.predictor.optimizer import FlatAdamW;"
        "p = torch.nn.Parameter(torch.ones(2)); o = FlatAdamW([p], 0.1, 0.1);"
        "p.sum().backward(); o.clip(1.0); o.step(); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
