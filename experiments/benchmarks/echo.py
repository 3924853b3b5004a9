"""A client app that sends back what it was sent."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

client_app = ClientApp()


@client_app.train()
def echo(message: Message, context: Context) -> Message:
    return Message(message.content, reply_to=message)
