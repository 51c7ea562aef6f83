"""A pipeline with groups and guesses while it runs, its client trying everything at once.

All attempts of a group are sent together; a guess is sent as soon as it can be made. After each test the client knows more:
once as many attempts have succeeded as are wanted, what comes next is sent, and the others have lost. A guess is right or
wrong when the parents that it did not wait for have answered. Until then nothing that would follow a right one is sent, and no
guess is made on top of it.

A *managed* client names the branch of each such call and tells the fabric what it decides; no more is sent of what has lost. An
unmanaged one sends plain calls: what has lost runs to its end, further calls included, and is thrown away.

The fabric may end a branch for reasons of its own. Such an attempt is no failure of the pipeline; if nothing else succeeds, it
is tried again, alone and as a plain call. A guess that it ended is sent when its parents have answered. Only a call that is
needed ends the pipeline by its failure.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from amf.core.events import BranchDecided, Event, PipelineClosed
from amf.core.graph import GroupKind
from amf.core.types import BranchHint, Call
from amf.sim.in_turn import in_vain
from amf.sim.live import LivePipeline, Test
from amf.sim.plan import AttemptPlan, CallPlan, GroupPlan, GuessPlan, PipelinePlan
from amf.sim.report import CallStatus


@dataclass(slots=True, eq=False)
class _Attempt:
    plan: AttemptPlan
    group: "_Group"
    name: str
    state: Literal["open", "won", "failed", "refused"] = "open"
    at: int = 0  # which of its calls was sent last
    alone: bool = False  # tried again as a plain call


@dataclass(slots=True, eq=False)
class _Group:
    plan: GroupPlan
    attempts: list[_Attempt] = field(default_factory=list)
    judge_free_s: float = 0.0
    best: _Attempt | None = None  # of those that were judged and not good enough
    decided: bool = False


@dataclass(slots=True, eq=False)
class _Guess:
    plan: GuessPlan
    name: str
    sent: bool = False
    decided: bool = False
    answered: list[int] = field(default_factory=list)


class SpeculatingPipeline(LivePipeline):
    def __init__(self, plan: PipelinePlan, start_s: float, managed: bool) -> None:
        super().__init__(plan, start_s)
        self._managed = managed
        self._in_vain = in_vain(plan)
        self._attempts: dict[int, _Attempt] = {}  # by call, as the guesses
        self._guesses: dict[int, _Guess] = {}
        self._sent = {call.index for call in self._ready}
        self._done_calls: set[int] = set()  # which what comes after them may rely on
        self._lost: set[int] = set()
        self._unused: set[int] = set()
        self._out = 0  # calls sent that have not ended
        self._is_closed = False  # as far as the fabric was told
        self._tests: list[Test] = []
        self._decisions: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
        for group in map(_Group, plan.groups):
            for each in group.plan.attempts:
                attempt = _Attempt(each, group, plan.calls[each.calls[0]].hop)
                group.attempts.append(attempt)
                self._attempts.update(dict.fromkeys(each.calls, attempt))
        self._all_guesses = [_Guess(each, plan.calls[each.calls[0]].hop) for each in plan.guesses]
        for guess in self._all_guesses:
            self._guesses.update(dict.fromkeys((*guess.plan.calls, *guess.plan.wrong), guess))
        self._send_guesses()

    @property
    def unused(self) -> frozenset[int]:
        return frozenset(self._unused)

    def tests(self) -> list[Test]:
        tests, self._tests = self._tests, []
        return tests

    def news(self, now_s: float) -> list[Event]:
        run_id = self.plan.pipeline_id
        told: list[Event] = [
            BranchDecided(at_s=now_s, run_id=run_id, group=group, committed=committed, discarded=discarded)
            for group, committed, discarded in self._decisions
            if self._managed
        ]
        self._decisions.clear()
        if self.ended and not (self._out or self._ready or self._is_closed):
            self._is_closed = True
            told.append(PipelineClosed(at_s=now_s, run_id=run_id))
        return told

    def wants(self, plan: CallPlan) -> bool:
        return not self._managed if plan.index in self._lost else not self.ended

    def call(self, plan: CallPlan, now_s: float) -> Call:
        call = super().call(plan, now_s)
        self._out += 1
        self._is_closed = self._is_closed or call.final
        branch, hint = self._branch(plan.index) if self._managed else ("", None)
        return replace(call, branch=branch, branch_hint=hint)

    def settle(self, plan: CallPlan, status: CallStatus, now_s: float) -> None:
        self._out -= 1
        index = plan.index
        attempt, guess = self._attempts.get(index), self._guesses.get(index)
        if index in self._lost:
            if status == "ok" and not self._managed:
                super()._done(index)  # its chain goes on
        elif self.ended:
            return
        elif attempt is not None:
            self._attempted(attempt, index, status, now_s)
        elif guess is not None and not guess.decided:
            self._guessed(guess, index, status)
        else:
            super().settle(plan, status, now_s)

    # Attempts.

    def _attempted(self, attempt: _Attempt, index: int, status: CallStatus, now_s: float) -> None:
        group, calls = attempt.group, attempt.plan.calls
        attempt.at = calls.index(index)
        if status != "ok":
            if attempt.alone:
                self.status, self.end_s = ("refused" if status == "refused" else "failed"), now_s
                return
            attempt.state = "refused"
            self._weigh(group, now_s)
        elif index != calls[-1]:
            super()._done(index)
        else:
            one_judge = group.plan.kind is GroupKind.BEST_OF
            end_s = (max(now_s, group.judge_free_s) if one_judge else now_s) + attempt.plan.test_s
            group.judge_free_s = end_s
            self._tests.append((end_s - now_s, lambda at_s: self._judge(attempt, at_s)))

    def _judge(self, attempt: _Attempt, now_s: float) -> None:
        """The test of an attempt is over."""
        group = attempt.group
        if self.ended or group.decided:
            return
        if attempt.plan.succeeds:
            attempt.state = "won"
            self._decisions.append((group.plan.name, (attempt.name,), ()))
        else:
            attempt.state = "failed"
            worse: _Attempt | None = attempt
            if group.plan.kind is GroupKind.BEST_OF:
                best, worse = _by_score(attempt, group.best)
                group.best = best
            if worse is not None:
                self._decisions.append((group.plan.name, (), (worse.name,)))
        self._weigh(group, now_s)

    def _weigh(self, group: _Group, now_s: float) -> None:
        """Is the group decided, or is there nobody left who could?"""
        states = [attempt.state for attempt in group.attempts]
        if states.count("won") == group.plan.k:
            self._decide(group, now_s)
        elif "open" in states:
            return
        elif "refused" in states:
            again = group.attempts[states.index("refused")]
            again.state, again.alone = "open", True
            self._ready.append(self.plan.calls[again.plan.calls[again.at]])
        else:
            if group.best is not None and "won" not in states:
                group.best.state = "won"
                self._decisions.append((group.plan.name, (group.best.name,), ()))
            self._decide(group, now_s)

    def _decide(self, group: _Group, now_s: float) -> None:
        group.decided, self.end_s = True, now_s
        for attempt in group.attempts:
            self._left -= len(attempt.plan.calls)
            if attempt.state != "won":
                self._lost.update(attempt.plan.calls)
                self._unused.update(attempt.plan.calls)
        for attempt in group.attempts:
            self._done(attempt.plan.calls[-1])
        if not self._left:
            self.status = "completed"

    # Guesses.

    def _send_guesses(self) -> None:
        for guess in self._all_guesses:
            if not guess.sent and not guess.decided and self._done_calls.issuperset(guess.plan.after):
                guess.sent = True
                for index in guess.plan.wrong or guess.plan.calls:
                    self._release(self.plan.calls[index])

    def _guessed(self, guess: _Guess, index: int, status: CallStatus) -> None:
        """A call ended of which it is not known yet whether it is needed."""
        if guess.plan.wrong:
            return
        if status == "ok":
            guess.answered.append(index)
        else:
            self._sent.discard(index)  # it is sent with its parents' answers

    def _know(self, guess: _Guess) -> None:
        """Its parents have answered."""
        guess.decided, wrong = True, guess.plan.wrong
        if guess.sent:
            told: tuple[str, ...] = (guess.name,)
            self._decisions.append((guess.plan.name, () if wrong else told, told if wrong else ()))
            self._unused.update(wrong)
        self._lost.update(wrong)
        self._left -= len(wrong) + len(guess.answered)
        for index in guess.answered:
            self._done(index)

    def _done(self, index: int) -> None:
        self._done_calls.add(index)
        for guess in self._all_guesses:
            if not guess.decided and self._done_calls.issuperset(guess.plan.until):
                self._know(guess)
        super()._done(index)
        self._send_guesses()

    def _release(self, call: CallPlan) -> None:
        if call.index not in self._sent and (call.index not in self._lost or call.index in self._attempts):
            self._sent.add(call.index)
            self._ready.append(call)

    def _hops(self, parents: tuple[int, ...]) -> tuple[str, ...]:
        """Of a group, those whose work is used; all, if nobody's is."""
        return super()._hops(tuple(parent for parent in parents if parent not in self._lost) or parents)

    def _branch(self, index: int) -> tuple[str, BranchHint | None]:
        """What a call says of the branch that it is of, if it is of one."""
        attempt, guess = self._attempts.get(index), self._guesses.get(index)
        if attempt is not None and not attempt.alone and not attempt.group.decided:
            group = attempt.group.plan
            hint = BranchHint(kind=group.kind.value, k=group.k, probability=attempt.plan.probability)
            return f"{group.name}/{attempt.name}", hint
        if guess is not None and not guess.decided:
            hint = BranchHint(kind=GroupKind.PREDICTED.value, probability=guess.plan.probability)
            return f"{guess.plan.name}/{guess.name}", hint
        return "", None


def _by_score(one: _Attempt, other: _Attempt | None) -> tuple[_Attempt, _Attempt | None]:
    """The better first."""
    if other is None or one.plan.score >= other.plan.score:
        return one, other
    return other, one
