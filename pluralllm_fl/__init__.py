"""PluralLLM-FL: federated pluralistic alignment on Flower.

`Pluralist` loads a trained predictor; it is imported when it is first asked for, because it needs
torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pluralllm_fl.inference import Pluralist

__version__ = "0.1.0"
__all__ = ["Pluralist", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Pluralist":
        from pluralllm_fl.inference import Pluralist

        return Pluralist
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
