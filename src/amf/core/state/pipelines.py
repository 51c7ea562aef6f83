"""Every live pipeline and every call that has not ended. A call is WAITING with us or RUNNING on a worker; when it ends it
leaves here and lives on only in its pipeline's account. Each call ends exactly once."""

from dataclasses import dataclass, field
from enum import StrEnum
from math import inf

from amf.core.graph import CallGraph
from amf.core.state.branches import Branches
from amf.core.state.hindsight import MOST_STAGES, Stage
from amf.core.state.ledger import Account
from amf.core.state.prediction import Place
from amf.core.state.transitions import Trail
from amf.core.types import Call, SloClass

_ATTAINED_HALF_LIFE_S = 60.0  # as llm-d forgets the service of a program


class CallStatus(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"


@dataclass(slots=True)
class CallState:
    call: Call
    arrived_s: float
    number: int  # position among the pipeline's calls, from 0
    status: CallStatus = CallStatus.WAITING
    attempt: int = 0
    worker: str = ""
    dispatched_s: float = 0.0
    first_token_s: float | None = None
    expected_output_tokens: float = 0.0
    excluded: tuple[str, ...] = ()  # workers where it failed
    last_failure: str = ""
    held: bool = False  # a Hold was said for this wait
    cold_until_s: float = -inf  # cold on every worker when last looked at, and not asked again before
    due_s: float | None = None  # as last looked at
    latest_start_s: float = 0.0  # as last looked at
    queued_as: tuple[float, float, str] = (0.0, 0.0, "")  # its place in the pool's queue
    known_tokens: int = 0  # prefix its pipeline had computed before, anywhere
    served_path_s: float = 0.0  # service on the longest chain of its pipeline's calls before it
    alone_path_s: float = 0.0  # the same if each had its worker alone
    said_s: float | None = None  # of the rest of its pipeline, at its dispatch
    growth_tokens: int | None = None  # of its prompt beyond what its pipeline had in the pool; None: not known

    @property
    def hop_id(self) -> str:
        return self.call.hop or str(self.number)

    @property
    def footprint_tokens(self) -> int:
        """The memory it will take: prompt and expected output."""
        return self.call.prompt_tokens + int(self.expected_output_tokens)


@dataclass(slots=True)
class Pipeline:
    run_id: str
    graph_name: str
    graph: CallGraph | None
    opened_s: float
    deadline_s: float | None
    slo_class: SloClass
    tenant: str
    identity: str
    last_event_s: float
    account: Account
    live: dict[str, CallState] = field(default_factory=dict)
    hops: dict[str, int] = field(default_factory=dict)  # hop -> calls of it that finished
    stages: list[Stage] = field(default_factory=list)  # finished calls of declared hops, the first MOST_STAGES
    edges: dict[tuple[str, str], None] = field(default_factory=dict)  # revealed (parent hop, hop)
    pools: dict[str, None] = field(default_factory=dict)
    calls: int = 0
    finished: int = 0
    failed: int = 0
    refused: int = 0
    cancelled: int = 0
    final_seen: bool = False
    last_finish_s: float | None = None
    last_place: Place = ("", "", "")  # of the call that finished last
    trail: Trail = field(default_factory=Trail)
    served_path_s: float = 0.0  # service on the longest chain of calls that finished
    alone_path_s: float = 0.0  # the same if each had its worker alone
    idle_s: float = 0.0  # when none of its calls was open
    work_s: dict[str, float] = field(default_factory=dict)  # pool -> what its finished calls cost a busy worker
    first_tokens: int = 0  # of its first prompt
    size: float = 1.0  # times the mean pipeline of its graph, as was expected at its start
    end_learned: bool = False
    promise_judged: bool = False
    branches: Branches | None = None  # its branch groups, once a call was in one
    contexts: dict[str, int] = field(default_factory=dict)  # pool -> tokens of the last finished prompt and its answer
    attained: dict[str, tuple[float, float]] = field(default_factory=dict)  # pool -> (weighted tokens, as of when)

    def note_stage(self, state: CallState, now_s: float) -> None:
        """A call finished: remember it if its hop is declared. Where it does not say what it waited for, its graph does."""
        graph, call = self.graph, state.call
        if graph is None or call.hop not in graph.by_name or len(self.stages) >= MOST_STAGES:
            return
        parents = call.parents or tuple(edge.source for edge in graph.edges if edge.target == call.hop)
        self.stages.append(Stage(call.hop, parents, state.arrived_s, state.dispatched_s, now_s, state.said_s))

    def attain(self, pool: str, tokens: float, now_s: float) -> None:
        """A call of this pool was served this much."""
        self.attained[pool] = (self.attained_tokens(pool, now_s) + tokens, now_s)

    def attained_tokens(self, pool: str, now_s: float) -> float:
        """Service attained in this pool, halved every minute: prompt tokens, and twice the output tokens."""
        tokens, as_of_s = self.attained.get(pool, (0.0, now_s))
        return float(tokens * 0.5 ** ((now_s - as_of_s) / _ATTAINED_HALF_LIFE_S))


class Pipelines:
    """Live pipelines in order of last activity, and an index of live calls."""

    def __init__(self) -> None:
        self._live: dict[str, Pipeline] = {}
        self.silent: dict[str, None] = {}  # live runs that are probably over, silent longest first
        self.branching: dict[str, None] = {}  # live runs with branch groups
        self._calls: dict[str, CallState] = {}

    def __len__(self) -> int:
        return len(self._live)

    def get(self, run_id: str) -> Pipeline | None:
        return self._live.get(run_id)

    def live(self) -> list[Pipeline]:
        """Least recently active first."""
        return list(self._live.values())

    def call(self, call_id: str) -> CallState | None:
        return self._calls.get(call_id)

    def calls(self) -> list[CallState]:
        return list(self._calls.values())

    def open(self, pipeline: Pipeline) -> None:
        self._live[pipeline.run_id] = pipeline

    def touch(self, run_id: str, now_s: float) -> None:
        pipeline = self._live.pop(run_id, None)
        if pipeline is not None:
            pipeline.last_event_s = now_s
            self._live[run_id] = pipeline

    def fell_silent(self, run_id: str) -> Pipeline:
        """It is probably over, until a call of it says otherwise."""
        self.silent[run_id] = None
        return self._live[run_id]

    def add_call(self, state: CallState) -> None:
        self.silent.pop(state.call.run_id, None)
        self._calls[state.call.call_id] = state
        self._live[state.call.run_id].live[state.call.call_id] = state

    def end_call(self, call_id: str) -> CallState:
        state = self._calls.pop(call_id)
        del self._live[state.call.run_id].live[call_id]
        return state

    def close(self, run_id: str) -> Pipeline:
        pipeline = self._live.pop(run_id)
        self.silent.pop(run_id, None)
        self.branching.pop(run_id, None)
        assert not pipeline.live, "a pipeline was closed with calls still live"
        return pipeline

    def idle_since(self, limit_s: float) -> list[str]:
        """Runs without a live call whose last activity was at or before `limit_s`, oldest first."""
        idle: list[str] = []
        for run_id, pipeline in self._live.items():
            if pipeline.last_event_s > limit_s:
                break
            if not pipeline.live:
                idle.append(run_id)
        return idle

    def check_invariants(self) -> None:
        owned = [call_id for pipeline in self._live.values() for call_id in pipeline.live]
        assert sorted(owned) == sorted(self._calls)
        assert self.branching.keys() == {run_id for run_id, pipeline in self._live.items() if pipeline.branches}
        for run_id in self.branching:
            branches = self._live[run_id].branches
            assert branches is not None
            branches.check_invariants(state.call for state in self._live[run_id].live.values())
        assert all(run_id in self._live and not self._live[run_id].live for run_id in self.silent)
