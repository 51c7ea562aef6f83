"""The simulated worker in the real one's place: the same requests in the same waves, an iteration being a second."""

from collections import deque
from collections.abc import Sequence
from typing import Literal, cast

from amf.core.types import WorkerProfile
from amf.engines.keys import token_keys
from amf.sim.messages import BlocksEvicted, BlocksStored, Finished, Preempted, SimEvent, SimRequest, SimWorkerConfig
from amf.sim.worker import SimWorker
from real.seen import Seen, Step
from real.server import Setup
from real.traffic import Ask, Wave


def compute_profile(iteration_s: float, token_s: float, pair_s: float) -> WorkerProfile:
    """A machine bound by computing alone: seconds of an iteration, of a token, and of a (query, key) pair."""
    return WorkerProfile(
        flops_per_token=token_s,
        attention_flops=pair_s,
        window_attention_flops=0.0,
        window_tokens=0,
        flops_per_s=1.0,
        bandwidth_bytes_per_s=1.0,
        dense_weight_bytes=0.0,
        expert_weight_bytes=0.0,
        expert_share=0.0,
        kv_bytes_per_token=0.0,
        window_kv_bytes_per_token=0.0,
        iteration_overhead_s=iteration_s,
        dollars_per_hour=0.0,
    )


SECOND_PER_ITERATION = compute_profile(1.0, 0.0, 0.0)


def worker_config(setup: Setup, profile: WorkerProfile) -> SimWorkerConfig:
    """A simulated worker with the limits of a real server."""
    return SimWorkerConfig(
        profile=profile,
        kv_tokens=setup.kv_tokens,
        block_tokens=setup.block_tokens,
        max_running=setup.max_running,
        token_budget=setup.token_budget,
        scheduling=cast(Literal["fcfs", "priority"], setup.scheduling),
    )


def sim_request(ask: Ask, output: Sequence[int], setup: Setup) -> SimRequest:
    """The request with the answer that the real engine gave, which names the blocks that decoding fills."""
    return SimRequest(
        request_id=ask.name,
        prompt_tokens=len(ask.prompt),
        output_tokens=len(output),
        block_keys=token_keys([*ask.prompt, *output], setup.block_tokens),
        priority=ask.priority,
    )


def mirror(waves: Sequence[Wave], real: Seen, setup: Setup) -> Seen:
    """The simulated worker's account of waves that a real engine has served, each request arriving after as many
    iterations."""
    worker = SimWorker(worker_config(setup, SECOND_PER_ITERATION))
    seen, now_s = Seen(outputs=real.outputs, arrivals=real.arrivals), 0.0
    for wave in waves:
        coming = deque(wave)
        counted = _TokenCount(worker)
        while coming or worker.next_event_s() is not None:
            while coming and real.arrivals[coming[0].name] <= now_s:
                ask = coming.popleft()
                worker.submit(sim_request(ask, real.outputs[ask.name], setup), now_s)
                counted.add(ask.name)
            if worker.next_event_s() is None:
                raise RuntimeError(
                    f"{coming[0].name} came after {real.arrivals[coming[0].name]} iterations, not {now_s}"
                )
            now_s += 1.0
            events = worker.advance(now_s)
            _take_in(seen, events)
            seen.iteration_tokens.append(counted.in_iteration(now_s, events))
        worker.check_invariants()
    seen.preemptions = worker.stats.preemptions
    return seen


class _TokenCount:
    """Tokens of each iteration, from the outside: prefill tokens computed, and a token for each request that had one out
    except by the end of its prefill, which has been counted."""

    def __init__(self, worker: SimWorker) -> None:
        self._worker = worker
        self._produced: dict[str, int] = {}
        self._prefills: set[str] = set()  # requests whose next token comes from a prefill
        self._computed = worker.stats.computed_tokens

    def add(self, name: str) -> None:
        self._produced[name] = 0
        self._prefills.add(name)

    def in_iteration(self, now_s: float, events: Sequence[SimEvent]) -> int:
        """Tokens of the iteration that has ended now, with these events. Call it for each."""
        ended = {event.request_id: event.output_tokens for event in events if isinstance(event, Finished)}
        tokens = self._worker.stats.computed_tokens - self._computed
        self._computed += tokens
        for name, before in list(self._produced.items()):
            after = ended[name] if name in ended else self._worker.progress(name, now_s)
            tokens += after - before - (after > before and name in self._prefills)
            if after > before:
                self._prefills.discard(name)
            self._produced[name] = after
            if name in ended:
                del self._produced[name]
        self._prefills |= {event.request_id for event in events if isinstance(event, Preempted)}
        return tokens


def _take_in(seen: Seen, events: Sequence[SimEvent]) -> None:
    """The events of one iteration."""
    stored: list[int] = []
    removed: list[int] = []
    for event in events:
        match event:
            case Finished():
                seen.cached[event.request_id] = event.cached_tokens
                seen.ends[event.request_id] = event.at_s
            case BlocksStored():
                stored += event.keys
            case BlocksEvicted():
                removed += event.keys
    if stored or removed:
        seen.steps.append(Step(stored=tuple(stored), removed=tuple(removed)))
