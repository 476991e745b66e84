"""The ClientApp: introduce, train and evaluate over one group's data."""

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from pluralllm_fl.federation.node import LocalNode, discreet
from pluralllm_fl.wire.clipping import clipped
from pluralllm_fl.wire.packing import in_one_piece

app = ClientApp(mods=[in_one_piece, clipped])


@app.query()
def query(message: Message, context: Context) -> Message:
    """Answer the roster: which group this node holds, its role and its counts."""
    with discreet(context):
        roster, counts = LocalNode.from_context(context).introduce()
    return Message(RecordDict({"roster": roster, "metrics": counts}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the received predictor on this node's group; reply with arrays and metrics.

    When asked for, the scores of the predictor as received ride on the reply.
    """
    arrays = message.content.array_records["arrays"]
    orders = message.content.config_records["config"]
    with discreet(context):
        node = LocalNode.from_context(context)
        update, metrics = node.train(arrays, orders)
        reply = RecordDict({"arrays": update, "metrics": metrics})
        if orders.get("evaluate"):
            reply["evaluation"] = node.evaluate(arrays, orders)
    return Message(reply, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the received predictor on this node's group; reply with numbers only."""
    content = message.content
    with discreet(context):
        metrics = LocalNode.from_context(context).evaluate(
            content.array_records["arrays"], content.config_records["config"]
        )
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
