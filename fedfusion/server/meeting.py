"""Who is there: the nodes of a grid before the first round, and which clients live on them."""

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from logging import WARNING
from operator import itemgetter
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.common import log
from flwr.serverapp import Grid

from fedfusion.server.lost import GONE, Doubts
from fedfusion.server.nodes import PAUSES_S, Nodes
from fedfusion.server.uploads import ints, listed, plain, reason_of
from fedfusion.types import FedfusionError


@dataclass(frozen=True)
class Offer:
    """What a device offers: it is the `part`-th of `parts`, and takes part in `tasks`, with rows of its own or not."""

    part: int
    parts: int
    tasks: tuple[str, ...]
    own_rows: bool

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> "Offer":
        """The offer in a device's answer.

        Raises
        ------
        ValueError
            If it makes no sense.
        """
        offer = cls(
            int(answer["part"]),
            int(answer["parts"]),
            tuple(map(str, listed(answer["tasks"]))),
            bool(answer["own_rows"]),
        )
        if not 0 <= offer.part < offer.parts:
            raise ValueError(f"partition-id={offer.part} is not among num-partitions={offer.parts}")
        return offer


def meet(
    grid: Grid,
    experiment_json: str,
    tasks: Sequence[str],
    timeout: float,
    fused_rank: int = 1,
    facts: Mapping[str, str] | None = None,
    simulated: bool = True,
) -> Nodes:
    """Wait until every client is hosted by some node, and learn by which.

    Parameters
    ----------
    grid, experiment_json, fused_rank
        Where the nodes are, and what they are told.
    tasks
        The task of each client.
    timeout
        Seconds that nodes have to appear; after that nobody waits for silent devices that the others do not miss.
    facts
        Those of the server that a device compares with its own before it takes part.
    simulated
        Whether nodes say which clients they host; devices say which tasks they hold, and are dealt clients.

    Raises
    ------
    FedfusionError
        If a node cannot start, or some client has no node after `timeout` seconds.
    """
    deadline, pause_s = time.monotonic() + timeout, 0.1 if simulated else PAUSES_S[1]
    hosted: dict[int, list[int]] = {}
    offers: dict[int, Offer] = {}
    odd: dict[int, str] = {}
    asked: set[int] = set()
    devices = _Devices()
    content = RecordDict({"config": ConfigRecord({"experiment": experiment_json, **(facts or {})})})
    while _known(hosted) < len(tasks) and time.monotonic() <= deadline:
        there = set(grid.get_node_ids())
        new = sorted(there - asked)
        asked |= set(new)
        questions = [Message(content, node, MessageType.QUERY) for node in new]
        if simulated:
            replies = grid.send_and_receive(questions, timeout=timeout) if new else ()
            answers = [(reply.metadata.src_node_id, reply) for reply in replies]
        else:
            answers, lost = devices.exchange(grid, questions)
            asked -= lost
        for node, reply in sorted(answers, key=itemgetter(0)):
            if reply.has_error() and reply.error.code not in GONE:
                raise FedfusionError(f"node {node} cannot start: {reason_of(reply)}")
            try:
                if reply.has_error():  # it is asked again
                    asked.discard(node)
                    raise ValueError(reason_of(reply))
                answer = reply.content.config_records["config"]
                if simulated:
                    hosted[node] = _clients(answer, len(tasks))
                else:
                    offers[node] = _new(Offer.of(answer), offers)
                odd.pop(node, None)
            except Exception as error:  # whatever a node sends
                odd[node] = plain(str(error) or type(error).__name__)
                log(WARNING, "node %d takes no part: %s", node, odd[node])
        hosted |= _dealt(offers, tasks, len(devices.silent & there))
        time.sleep(0.0 if answers and not odd else pause_s)
    hosted |= _dealt(offers, tasks)  # nobody waits any longer for those that are silent
    if (known := _known(hosted)) < len(tasks):
        odd |= {node: "it has not answered" for node in sorted(devices.silent - odd.keys())}
        reasons = "".join(f"; node {node}: {why}" for node, why in odd.items())
        raise FedfusionError(
            f"after {timeout:.0f} s the nodes host {known} of {len(tasks)} clients (start the missing nodes "
            f"or raise deadline_s){reasons}"
        )
    return Nodes(experiment_json, dict(sorted(hosted.items())), fused_rank, devices=not simulated)


class _Devices:
    """Devices that have been asked, each of which answers in its own time; whose question was lost is asked again.

    Attributes
    ----------
    waiting
        The questions that nobody has answered, by their ids.
    doubts
        About those that have waited for long: a device that loads its model is as silent as one that was never reached.
    """

    def __init__(self) -> None:
        self.waiting: dict[str, Message] = {}
        self.doubts = Doubts()

    @property
    def silent(self) -> set[int]:
        """The devices that have not answered."""
        return {message.metadata.dst_node_id for message in self.waiting.values()}

    def exchange(self, grid: Grid, questions: Collection[Message]) -> tuple[list[tuple[int, Message]], set[int]]:
        """Send `questions`; what has been answered since the last look, and by whom, and who has to be asked again."""
        pushed = list(zip(grid.push_messages(questions) if questions else (), questions, strict=True))
        self.waiting |= {key: message for key, message in pushed if key}
        lost = {message.metadata.dst_node_id for key, message in pushed if not key}  # those have left
        self.doubts.ask(grid, self.waiting)
        keys = [*self.waiting, *self.doubts.questions]
        replies = list(grid.pull_messages(keys)) if keys else []
        new = [reply for reply in replies if reply.metadata.reply_to_message_id in self.waiting]
        answers = [(self.waiting.pop(r.metadata.reply_to_message_id).metadata.dst_node_id, r) for r in new]
        for key in self.doubts.settled(replies) & self.waiting.keys():
            node = self.waiting.pop(key).metadata.dst_node_id
            log(WARNING, "node %d: the question, or the answer to it, was lost on the way; it is asked again", node)
            lost.add(node)
        return answers, lost


def _known(hosted: Mapping[int, Sequence[int]]) -> int:
    """How many clients some node hosts."""
    return len({client for clients in hosted.values() for client in clients})


def _clients(answer: Mapping[str, Any], count: int) -> list[int]:
    """The clients that a node hosts."""
    clients = sorted(ints(answer["clients"]))
    if not set(clients) <= set(range(count)):
        raise ValueError(f"it hosts clients {clients}, and there are {count}")
    return clients


def _new(offer: Offer, offers: Mapping[int, Offer]) -> Offer:
    """The offer of a device, unless another is the same part."""
    for node, other in offers.items():
        if other.part == offer.part:
            raise ValueError(
                f"it is part {offer.part}, and so is node {node} (see partition-id in their configurations)"
            )
    return offer


def _dealt(offers: Mapping[int, Offer], tasks: Sequence[str], silent: int = 0) -> dict[int, list[int]]:
    """The clients of each device, once all are there: those of a task are dealt in turn to the devices that hold it.

    How many are all is what most devices say, unless the `silent` ones, which have not answered yet, could be as many.
    """
    votes = Counter(offer.parts for offer in offers.values()).most_common(1)
    if not votes or len(offers) < votes[0][0] or votes[0][1] <= silent:
        return {}
    order = sorted(offers, key=lambda node: offers[node].part)
    hosted: dict[int, list[int]] = {node: [] for node in order}
    for task in dict.fromkeys(tasks):
        able = [node for node in order if task in offers[node].tasks]
        clients = [client for client, own in enumerate(tasks) if own == task]
        if len(clients) > len(able) and any(offers[node].own_rows for node in able):
            raise FedfusionError(
                f"task '{task}' has {len(clients)} clients, and {len(able)} devices hold its rows (lower "
                "suite.clients_per_task, or start more devices)"
            )
        for i, client in enumerate(clients if able else ()):
            hosted[able[i % len(able)]].append(client)
    return hosted
