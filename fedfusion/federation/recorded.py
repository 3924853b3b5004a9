"""A grid that remembers: what clients trained before, from the same start and in the same way, is not trained again."""

import json
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from flwr.app import Message, MessageType
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from omegaconf import DictConfig, OmegaConf

from fedfusion.config import Experiment
from fedfusion.federation.grid import VirtualGrid
from fedfusion.server.lost import remaining_s
from fedfusion.server.store import Store


class Recorded(VirtualGrid):
    """Another grid, whose replies to training messages are kept in a store, and come from there the next time.

    What another process is having trained at this moment is waited for.

    Parameters
    ----------
    grid
        The grid that trains.
    store
        Where replies are kept.
    """

    def __init__(self, grid: VirtualGrid, store: Store) -> None:
        super().__init__(len(grid.contexts), grid.deadline_s)
        self.grid = grid
        self.store = store
        self.keys: dict[str, str] = {}  # by message that asks for training
        self.making: dict[str, tuple[str, ExitStack]] = {}  # by message: its key, and the lock on it

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages, and name what those will give that ask for training."""
        pushed = list(messages)
        ids = list(super().push_messages(pushed))
        trained = {key: m for key, m in zip(ids, pushed, strict=True) if m.metadata.message_type == MessageType.TRAIN}
        self.keys = {key: self._key(message) for key, message in trained.items()} | self.keys
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that are in the store, or else those that the other grid has by now."""
        asked = list(message_ids)
        for given_up in set(self.making) - set(asked):
            self.making.pop(given_up)[1].close()
        if replies := [reply for key in asked if (reply := self._known(key))]:
            return replies
        for message_id in [key for key in asked if key in self.waiting]:
            if len(self.making) < self.grid.at_once:
                self._pass_on(self.waiting[message_id])
        theirs = [key for key in asked if key not in self.waiting]
        replies = list(self.grid.pull_messages(theirs)) if theirs else []
        for reply in replies:
            self._keep(reply)
        return replies

    def _known(self, message_id: str) -> Message | None:
        """The reply to a waiting message, if the store has it."""
        if message_id not in self.waiting or message_id not in self.keys:
            return None
        content = self.store.get(self.keys[message_id])
        if content is None:
            return None
        message = self.waiting.pop(message_id)
        return Message(recorddict_from_proto(ProtoRecordDict.FromString(content)), reply_to=message)

    def _pass_on(self, message: Message) -> None:
        """Have the other grid answer a message, unless another process is having it answered."""
        message_id = message.metadata.message_id
        with ExitStack() as lock:
            if message_id in self.keys and remaining_s(message) > 0:
                key = self.keys[message_id]
                if not lock.enter_context(self.store.alone(key)):
                    return
                self.making[message_id] = key, lock.pop_all()
        del self.waiting[message_id]
        self.grid.push_messages([message])

    def _keep(self, reply: Message) -> None:
        """Store what was trained; a failure may pass."""
        key, lock = self.making.pop(reply.metadata.reply_to_message_id, ("", ExitStack()))
        with lock:
            if key and not reply.has_error() and not reply.content.config_records["config"].get("failed"):
                self.store.put(key, recorddict_to_proto(reply.content).SerializeToString(deterministic=True))

    def _key(self, message: Message) -> str:
        """The name of what the clients of a message will upload; who is asked changes nothing, nor the fused rank."""
        content = message.content
        facts = {k: v for k, v in content.config_records["config"].items() if k not in ("experiment", "rank")}
        arrays = [
            part
            for record in sorted(content.array_records)
            for name, array in sorted(content.array_records[record].items())
            for part in (f"{record}.{name} {array.dtype} {array.shape}", array.data)
        ]
        return self.store.key("training", json.dumps(facts, sort_keys=True), *arrays)


def remembering(grid: VirtualGrid, cfg: DictConfig, experiment: Experiment) -> VirtualGrid:
    """The grid, with the store that the configuration names, if any."""
    config: Any = OmegaConf.to_container(cfg)
    store = Store.of(config, experiment)
    return grid if store is None else Recorded(grid, store)
