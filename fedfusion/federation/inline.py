"""The client app called in this process: no Ray, a debugger works, results are those of any other grid."""

import contextlib
import signal
import threading
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from omegaconf import DictConfig

from fedfusion.federation.grid import VirtualGrid, failure
from fedfusion.federation.recorded import remembering
from fedfusion.server.lost import remaining_s


@dataclass(frozen=True)
class Inline:
    """Run everything in this process, one client after another."""

    simulated: ClassVar = True  # every node hosts all clients

    def check(self) -> None:
        """Nothing can be missing."""

    def launch(self, cfg: DictConfig) -> None:
        """Run the experiment."""
        from fedfusion.apps import client_app, server_app
        from fedfusion.config import build, to_json

        experiment = build(cfg)
        nodes = experiment.suite.num_clients if experiment.server.stock else 1
        grid = remembering(InlineGrid(client_app, nodes, experiment.deadline_s), cfg, experiment)
        server_app(grid, Context(1, 0, {}, RecordDict(), {"config": to_json(cfg)}))


class InlineGrid(VirtualGrid):
    """Virtual nodes whose messages are handled in this process, one at each pull."""

    def __init__(self, client_app: ClientApp, num_nodes: int, deadline_s: float) -> None:
        super().__init__(num_nodes, deadline_s)
        self.client_app = client_app

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Handle the next waiting message of `message_ids` and return its reply."""
        for message_id in message_ids:
            message = self.waiting.pop(message_id, None)
            if message is not None and remaining_s(message) > 0:
                return self._handle(message)
        return []

    def _handle(self, message: Message) -> list[Message]:
        """The reply, or none if the message expires before it is there."""
        context = self.contexts[message.metadata.dst_node_id]
        context.state = RecordDict()  # as on Ray, nothing stays on a node
        try:
            with _alarm(min(self.deadline_s, max(remaining_s(message), 1e-6))):
                reply = self.client_app(message, context)
        except Overdue:
            reply = failure(message, f"did not answer within {self.deadline_s:g} s")
        except Exception:
            reply = failure(message, traceback.format_exc())
        return [reply] if remaining_s(message) > 0 else []


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise Overdue in the block after `seconds`; only the main thread of a Unix process can."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: object) -> None:
        raise Overdue

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


class Overdue(BaseException):
    """Raised inside a client that passed its deadline; no `except Exception` of a client swallows it."""
