"""A grid whose messages are handled by Ray actors."""

import copy
import time
from collections import Counter, deque
from collections.abc import Iterable
from itertools import islice
from logging import INFO
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.common import log

from fedfusion.federation.actors import Actors, Call, Seat
from fedfusion.federation.grid import VirtualGrid, failure
from fedfusion.server.lost import remaining_s

if TYPE_CHECKING:
    from fedfusion.federation.ray import Ray

TRIES = 2  # a message whose actor dies is tried once more, on another actor
SHORT_S = 0.5  # messages that take less are given to an actor two at a time
KNOWN = 3  # durations that have to be known before a message can count as slow
POLL_S = 0.5  # an answer ends the wait


class RayGrid(VirtualGrid):
    """Virtual nodes whose messages are handled by a pool of actors.

    A client that raises is an error reply. An actor that dies is replaced, and its message tried once more on
    another. An actor that passes the deadline is killed and replaced, and its message answered with an error. What
    messages hold as `shared` goes through Ray's object store, once for each actor.

    Parameters
    ----------
    app
        The client app, as `module:name`.
    num_nodes, deadline_s
        As in :class:`VirtualGrid`; the deadline counts from when an actor gets to the message.
    pool
        Number and resources of the actors.
    threads
        Of each actor's numerical libraries.
    """

    def __init__(self, app: str, num_nodes: int, deadline_s: float, pool: "Ray", threads: int = 1) -> None:
        import ray

        super().__init__(num_nodes, deadline_s)
        self.ray, self.speculate, self.at_once = ray, pool.speculate, 2 * pool.actors  # one waits at each actor
        self.actors = Actors(app, pool.actors, pool.needs, threads)
        self.copies: Counter[str] = Counter()  # by message that is not answered: how many actors have it
        self.deaths: Counter[str] = Counter()
        self.answers: dict[str, Message] = {}
        self.durations: dict[str, deque[float]] = {}
        self.speculated = 0
        self.shared: Any = None
        self.reference: Any = None

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Wait until one of the messages is answered or expires; returns the replies that are there."""
        asked = list(message_ids)
        while True:
            self._advance(asked)
            replies = [self.answers.pop(key) for key in asked if key in self.answers]
            pending = [key for key in asked if key in self.waiting or key in self.copies]
            if replies or not asked or len(pending) < len(asked):
                return replies

    def _advance(self, asked: Iterable[str]) -> None:
        """Hand waiting messages to actors, wait a moment, and take what has come."""
        self.actors.tend()
        self._expire(asked)
        self._hand_out(asked)
        if any(key in self.answers for key in asked):
            return
        ready = self.actors.wait(POLL_S)
        for seat in self.actors.seats:
            for reference in [reference for reference in seat.calls if reference in ready]:
                self._settle(seat, reference)
            self._bury(seat)
            self._hurry(seat)

    def _hand_out(self, asked: Iterable[str]) -> None:
        """Keep actors busy with what waits; where nothing does, the idle ones help the others."""
        waiting = [key for key in asked if key in self.waiting]
        up = [seat for seat in self.actors.seats if seat.up]
        depth = self._depth(self.waiting[waiting[0]]) if waiting else 1
        for key in waiting:
            seat = min(up, key=lambda seat: len(seat.calls), default=None)
            if seat is None or len(seat.calls) >= depth:
                return
            self._call(seat, self.waiting.pop(key))
        for seat in up:
            if not seat.calls and (other := self._behind() or self._straggler()) is not None:
                self._call(seat, other)

    def _depth(self, message: Message) -> int:
        """How many messages an actor is given at once: two if they are short, so that it need not wait for the next."""
        known = self.durations.get(message.metadata.message_type)
        return 2 if known and np.median(known) < SHORT_S else 1

    def _behind(self) -> Message | None:
        """A message that was to wait for a short time behind another, and does so for a long one."""
        for seat in self.actors.seats:
            first = next(iter(seat.calls.values()), None)
            if first is None or first.began is None or time.monotonic() - first.began < 2 * SHORT_S:
                continue
            for call in islice(seat.calls.values(), 1, None):
                if self._single(call):
                    return call.message
        return None

    def _straggler(self) -> Message | None:
        """A message that takes suspiciously long, if `speculate` asks for it."""
        if self.speculate is None:
            return None
        for seat in self.actors.seats:
            first = next(iter(seat.calls.values()), None)
            if first is None or first.began is None or not self._single(first):
                continue
            known = self.durations.get(first.message.metadata.message_type, deque())
            elapsed_s = time.monotonic() - first.began
            if len(known) >= KNOWN and elapsed_s > (limit_s := 2 * float(np.quantile(known, self.speculate))):
                self.speculated += 1
                log(
                    INFO,
                    "a message is handled a second time: Ray actor %d has it for %.1f s, more than %.1f s (%d such "
                    "messages so far)",
                    seat.number,
                    elapsed_s,
                    limit_s,
                    self.speculated,
                )
                return first.message
        return None

    def _single(self, call: Call) -> bool:
        """Whether no other actor has the message of a call, and it is not answered."""
        return self.copies[call.message.metadata.message_id] == 1

    def _call(self, seat: Seat, message: Message) -> None:
        """Give a message to an actor."""
        shared, sent = message.content.get("shared"), message
        if shared is not None:
            if shared is not self.shared:
                self.shared, self.reference = shared, self.ray.put(shared)
            sent = copy.copy(message)
            sent.content = RecordDict({name: record for name, record in message.content.items() if name != "shared"})
        context, references = self.contexts[message.metadata.dst_node_id], [self.reference] * (shared is not None)
        began = None if seat.calls else time.monotonic()
        seat.calls[seat.actor.handle.remote(sent, context, references)] = Call(message, began)
        self.copies[message.metadata.message_id] += 1

    def _settle(self, seat: Seat, reference: Any) -> None:
        """Take the answer of an actor, or note that it died."""
        call = seat.calls[reference]
        try:
            reply, seconds = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            reply, seconds = failure(call.message, str(error)), 0.0
        except self.ray.exceptions.RayError as error:
            call.dead, seat.cause = True, str(error).strip().splitlines()[0]
            return
        del seat.calls[reference]
        seat.failures = 0
        for following in islice(seat.calls.values(), 1):
            following.began = following.began or time.monotonic()
        if reply is not None:
            self._answer(call, reply)
            self.durations.setdefault(call.message.metadata.message_type, deque(maxlen=1000)).append(seconds)

    def _bury(self, seat: Seat) -> None:
        """Replace an actor all of whose calls have failed; the first is what it died of."""
        if seat.calls and all(call.dead for call in seat.calls.values()):
            first, *others = self.actors.replace(seat, seat.cause)
            self.deaths[first.message.metadata.message_id] += 1
            for call in (first, *others):
                self._lost(call)

    def _hurry(self, seat: Seat) -> None:
        """Replace an actor that is past the deadline."""
        first = next(iter(seat.calls.values()), None)
        if first is None or first.began is None or time.monotonic() - first.began <= self.deadline_s:
            return
        late = f"did not answer within {self.deadline_s:g} s"
        _, *others = self.actors.replace(seat, late, crashed=False)
        if self._alone(first):
            self._answer(first, failure(first.message, late))
        for call in others:
            self._lost(call)

    def _lost(self, call: Call) -> None:
        """Try a message again that no actor has any more, unless it has killed too many."""
        key = call.message.metadata.message_id
        if not self._alone(call):
            return
        if self.deaths[key] >= TRIES:
            self._answer(call, failure(call.message, f"its process died {TRIES} times"))
        else:
            del self.copies[key]
            self.waiting[key] = call.message

    def _alone(self, call: Call) -> bool:
        """Give up a call; returns whether its message needs an answer and no other actor has it."""
        key = call.message.metadata.message_id
        if key not in self.copies:
            return False
        self.copies[key] -= 1
        return not self.copies[key]

    def _answer(self, call: Call, reply: Message) -> None:
        """The first answer to a message counts."""
        key = call.message.metadata.message_id
        if key in self.copies:
            del self.copies[key], self.deaths[key]
            self.answers[key] = reply

    def _expire(self, asked: Iterable[str]) -> None:
        """Forget what nobody wants an answer to any more; an actor at work on it may go on until its deadline."""
        for key in asked:
            if key in self.waiting and remaining_s(self.waiting[key]) <= 0:
                del self.waiting[key]
        self.answers = {key: reply for key, reply in self.answers.items() if remaining_s(reply) > 0}
        for seat in self.actors.seats:
            for call in seat.calls.values():
                if remaining_s(call.message) <= 0:
                    self.copies.pop(call.message.metadata.message_id, None)
