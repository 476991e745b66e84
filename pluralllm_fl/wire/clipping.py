"""Flower's clipping of an update on the node, for its client-side wrappers of privacy."""

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable

# Private to Flower: the key by which a wrapper asks for clipping; without it the mods answer with
# an error. Delete when flwr.clientapp.mod exports the key, or its mods pass on what nobody asks to
# clip.
from flwr.supercore.differential_privacy import KEY_CLIPPING_NORM

from pluralllm_fl.wire.messages import SCORES


def clipped(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Clip what a node trains when the server asks for it: a mod of its ClientApp.

    Both wrappers send the norm; the strategy's name says whether the server adapts it, and so
    needs to know whether this node's update was clipped. Scores that ride on the reply go around
    Flower's mods, which take one record of metrics.
    """
    records = message.content.config_records.values() if message.has_content() else ()
    training = message.metadata.message_type.startswith(MessageType.TRAIN)
    if not training or not any(KEY_CLIPPING_NORM in record for record in records):
        return call_next(message, context)
    # Delete `riding` when Flower's clipping mods leave other records of metrics alone.
    riding = RecordDict()

    def train(message: Message, context: Context) -> Message:
        reply = call_next(message, context)
        if reply.has_content() and SCORES in reply.content:
            riding[SCORES] = reply.content.pop(SCORES)
        return reply

    adaptive = "adaptive" in str(context.run_config["strategy"]).lower()
    reply = (adaptiveclipping_mod if adaptive else fixedclipping_mod)(message, context, train)
    if reply.has_content():
        reply.content.update(riding)
    return reply
