"""Every change of an update on its way: what a node makes of it, and how the server undoes that.

A change is a module of this folder with the names of `Change`, and a place in `CHANGES`. Nothing
else knows that it exists.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from flwr.app import ArrayRecord, Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable, Mod

from pluralllm_fl.arrays import Arrays
from pluralllm_fl.wire import rounding
from pluralllm_fl.wire.clipping import clipped
from pluralllm_fl.wire.messages import ARRAYS
from pluralllm_fl.wire.packing import in_one_piece
from pluralllm_fl.wire.reading import Layout, layout_of, ordered, read_arrays
from pluralllm_fl.wire.records import to_arrays, to_record


class Change(Protocol):
    """A change of the model that a node trained; a run whose config has ``KEY = OFF`` makes none.

    `arrays` are what the changes before it left, `received` is the model that the node was sent.
    """

    KEY: str
    OFF: str

    def layout(self, arrays: Mapping[str, Layout]) -> dict[str, Layout]:
        """Return names, shapes and dtypes of what `encode` makes of arrays of this layout."""
        ...

    def encode(self, arrays: Arrays, received: Arrays) -> Arrays:
        """Return what travels; arrays of any shape."""
        ...

    def decode(self, encoded: Arrays, received: Arrays) -> Arrays:
        """Undo `encode` on the server: arrays as `layout` says, back to any shape."""
        ...


# In the order in which a node makes them; rounding is the first, as it reads the model itself.
# Clipping and packing are not among them: the one, before all of these, leaves nothing to undo,
# the other is made of every message, in both directions.
CHANGES: tuple[Change, ...] = (rounding,)


def in_use(settings: Mapping[str, object]) -> list[Change]:
    """Return the changes that a run config asks for."""
    return [change for change in CHANGES if settings[change.KEY] != change.OFF]


def changed(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Make every change that the run config asks for: a mod of the ClientApp."""
    reply = call_next(message, context)
    training = message.metadata.message_type.startswith(MessageType.TRAIN)
    if training and reply.has_content() and (changes := in_use(context.run_config)):
        base = to_arrays(message.content.array_records[ARRAYS])
        arrays = to_arrays(reply.content.array_records[ARRAYS])
        for change in changes:
            arrays = change.encode(arrays, base)
        reply.content[ARRAYS] = to_record(arrays)
    return reply


def received(record: ArrayRecord, base: Arrays, changes: Sequence[Change]) -> Arrays:
    """Return the model that a node trained, in the base's order: the server's end.

    Parameters
    ----------
    record : ArrayRecord
        As it came.
    base : dict of str to ndarray, any shape
        The model that the node was sent.
    changes : sequence of Change
        Those that the node had to make.

    Raises
    ------
    BadReply
        If the arrays are not what these changes make of such a model, or hold NaN or infinite
        values before or after.
    """
    layouts = [layout_of(base)]
    for change in changes:
        layouts.append(change.layout(layouts[-1]))
    arrays = read_arrays(record, layouts[-1])
    for change, layout in zip(reversed(changes), reversed(layouts[:-1]), strict=True):
        arrays = ordered(change.decode(arrays, base), layout)
    return arrays


# Mods of the ClientApp: a reply passes them from the last to the first.
NODE_ENDS: list[Mod] = [in_one_piece, changed, clipped]
