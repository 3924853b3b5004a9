"""A client app that adds one to what it was sent."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

client_app = ClientApp()


def pack(vector: np.ndarray) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({"vector": Array(vector)})})


def unpack(content: RecordDict) -> np.ndarray:
    return content.array_records["arrays"]["vector"].numpy()


@client_app.train()
def echo(message: Message, context: Context) -> Message:
    return Message(pack(unpack(message.content) + 1), reply_to=message)
