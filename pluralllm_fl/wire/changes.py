"""Every change of an update on its way: the node's ends, and what the server undoes.

A change is one file with both ends, and a line here.
"""

from flwr.clientapp.typing import Mod

from pluralllm_fl.wire.clipping import clipped
from pluralllm_fl.wire.packing import in_one_piece
from pluralllm_fl.wire.rounding import received, rounded

# Mods of the ClientApp: a reply passes them from the last to the first. The grid undoes the first.
NODE_ENDS: list[Mod] = [in_one_piece, rounded, clipped]

__all__ = ["NODE_ENDS", "received"]
