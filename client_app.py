"""The ClientApp: introduce, train and evaluate over one group's data."""

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from pluralllm_fl.federation.node import LocalNode, discreet

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Answer the roster: which group this node holds, its role and its counts."""
    with discreet(context):
        roster, counts = LocalNode.from_context(context).introduce()
    return Message(RecordDict({"roster": roster, "metrics": counts}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the received predictor on this node's group; reply with arrays and metrics."""
    content = message.content
    with discreet(context):
        arrays, metrics = LocalNode.from_context(context).train(
            content.array_records["arrays"], content.config_records["config"]
        )
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the received predictor on this node's group; reply with numbers only."""
    content = message.content
    with discreet(context):
        metrics = LocalNode.from_context(context).evaluate(
            content.array_records["arrays"], content.config_records["config"]
        )
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
