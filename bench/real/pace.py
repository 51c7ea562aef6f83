"""How well the cost model's time form fits a real engine: fitted on a third of a stream, judged on the others.

The first third is sent one request at a time, so that what each second was spent on is known. A request with P prompt tokens,
c of them cached, and R answer tokens computes its prompt in k = ceil((P - c) / budget) iterations:

    first token = w + k o + (P - c) t + (P^2 - c^2) / 2 p
    end         = first token + (R - 1) (o + t) + sum of its lengths p

with o seconds an iteration, t a token, p a (query, key) pair, and w for the way to the engine and back, which the cost model
has no part in. That is `amf.core.cost.iteration_s` of a machine bound by computing alone. The four are those, none of them
negative, with the least sum of absolute relative errors: a machine that does other things as well has long tails.

The second third is sent one at a time as well; the last one arrives at random moments, many requests at a time. The simulated
worker gets the fitted profile and the same arrivals, and its times, plus w, are held against the client's clock. The engine's
own log tells how long iterations of nothing but decodes took, by their number: the form has no seconds for a sequence.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from random import Random

import numpy as np

from amf.sim.messages import Finished, FirstTokenOut
from amf.sim.worker import SimWorker
from real.mirror import compute_profile, sim_request, worker_config
from real.play import Answer, Player
from real.server import Setup
from real.traffic import Ask, Shape, Stream

SETUP = Setup(kv_blocks=2049, max_running=32, token_budget=1024)
ROUNDS = 50
OFTEN = 20  # iterations of a kind that make a median
LOAD = 0.6  # arrivals of the last third: mean gap over mean seconds of a request that is alone


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Of |predicted - measured| / measured, and of the same with its sign."""

    mean: float
    median: float
    p95: float
    bias: float


@dataclass(frozen=True, kw_only=True)
class Fit:
    iteration_s: float
    token_s: float
    pair_s: float
    way_s: float
    requests: int
    first_token: Errors
    total: Errors


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Of requests that the fit has not seen; seconds are medians of what was measured."""

    requests: int
    most_at_once: int
    first_token_s: float
    total_s: float
    first_token: Errors
    total: Errors


@dataclass(frozen=True, kw_only=True)
class PaceReport:
    fit: Fit
    alone: Judgement
    together: Judgement
    decode_iteration_s: dict[int, float]  # sequences -> median seconds of the engine's iterations, where seen often


def asks(seed: int, count: int) -> list[Ask]:
    """Prompts of 50 to 3,000 tokens that share beginnings, answers of 2 to 120 tokens."""
    random, stream = Random(seed), Stream(Shape(seed=seed, waves=count, width=(1, 1), system_tokens=(30, 1500)))
    made = []
    for number in range(count):
        system = random.choice(stream.systems)
        turn = stream.tokens((20, 1500))
        made.append(Ask(name=f"p{number:03}", prompt=system + turn, output_tokens=random.randint(2, 120)))
    return made


async def measure_pace(player: Player, seed: int, count: int) -> PaceReport:
    """All three thirds, `count` requests together."""
    everything, third = asks(seed, count), count // 3
    first, second, last = everything[:third], everything[third : 2 * third], everything[2 * third :]
    await player.reset()
    before = len(await player.iterations())
    alone = [await player.ask(ask) for ask in first]
    fitted = fit(first, alone)
    gap_s = LOAD * float(np.mean([answer.end_s - answer.sent_s for answer in alone]))
    random, at_s, offsets = Random(seed), 0.0, []
    for _ in last:
        at_s += random.expovariate(1 / gap_s)
        offsets.append(at_s)
    await player.reset()
    judged_alone = _judged(fitted, second, [await player.ask(ask) for ask in second])
    await player.reset()
    answers = await _at(player, last, offsets)
    decodes: dict[int, list[float]] = {}
    for iteration in (await player.iterations())[before:]:
        if not iteration.prefill_tokens:
            decodes.setdefault(iteration.decode_requests, []).append(iteration.elapsed_s)
    return PaceReport(
        fit=fitted,
        alone=judged_alone,
        together=_judged(fitted, last, answers),
        decode_iteration_s={
            batch: float(np.median(decodes[batch])) for batch in sorted(decodes) if len(decodes[batch]) >= OFTEN
        },
    )


def fit(requests: Sequence[Ask], answers: Sequence[Answer]) -> Fit:
    """The four from requests that were alone."""
    rows: list[tuple[float, ...]] = []
    for ask, answer in zip(requests, answers, strict=True):
        prompt, cached, more = len(ask.prompt), answer.cached_tokens, ask.output_tokens - 1
        iterations, new, pairs = (
            ceil((prompt - cached) / SETUP.token_budget),
            prompt - cached,
            (prompt**2 - cached**2) / 2,
        )
        rows.append((iterations, new, pairs, 1))
        rows.append((iterations + more, new + more, pairs + more * (prompt + (more + 1) / 2), 1))
    measured = np.array([at_s - answer.sent_s for answer in answers for at_s in (answer.first_token_s, answer.end_s)])
    matrix = np.array(rows, float)
    weights = _least_deviations(matrix / measured[:, None])
    iteration_s, token_s, pair_s, way_s = weights.tolist()
    predicted = matrix @ weights
    return Fit(
        iteration_s=iteration_s,
        token_s=token_s,
        pair_s=pair_s,
        way_s=way_s,
        requests=len(requests),
        first_token=errors(predicted[::2], measured[::2]),
        total=errors(predicted[1::2], measured[1::2]),
    )


def errors(predicted: Sequence[float] | np.ndarray, measured: Sequence[float] | np.ndarray) -> Errors:
    relative = np.asarray(predicted) / np.asarray(measured) - 1
    size = np.abs(relative)
    return Errors(
        mean=float(size.mean()),
        median=float(np.median(size)),
        p95=float(np.quantile(size, 0.95)),
        bias=float(relative.mean()),
    )


def _least_deviations(matrix: np.ndarray) -> np.ndarray:
    """Weights of the columns, none negative, with the least absolute differences to 1: least squares, each row weighted anew
    by how far it is off, until that settles."""
    trust = np.ones(len(matrix))
    weights = np.zeros(matrix.shape[1])
    for _ in range(ROUNDS):
        weights = _positive_least_squares(matrix * trust[:, None], trust)
        trust = 1 / np.sqrt(np.maximum(np.abs(matrix @ weights - 1), 1e-4))
    return weights


def _positive_least_squares(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares in which a column that would get a negative weight gets none."""
    columns = list(range(matrix.shape[1]))
    weights = np.zeros(matrix.shape[1])
    scale = np.abs(matrix).max(axis=0)
    while True:
        found = np.linalg.lstsq(matrix[:, columns] / scale[columns], target, rcond=None)[0] / scale[columns]
        if (found >= 0).all():
            weights[columns] = found
            return weights
        del columns[int((found * scale[columns]).argmin())]


async def _at(player: Player, requests: Sequence[Ask], offsets_s: Sequence[float]) -> list[Answer]:
    start_s = time.monotonic()

    async def one(ask: Ask, offset_s: float) -> Answer:
        await asyncio.sleep(max(0.0, start_s + offset_s - time.monotonic()))
        return await player.ask(ask)

    return list(await asyncio.gather(*map(one, requests, offsets_s)))


def _judged(fitted: Fit, requests: Sequence[Ask], answers: Sequence[Answer]) -> Judgement:
    profile = compute_profile(fitted.iteration_s, fitted.token_s, fitted.pair_s)
    worker = SimWorker(worker_config(SETUP, profile), outcomes_only=True)
    first_s: dict[str, float] = {}
    end_s: dict[str, float] = {}

    def take_in(until_s: float) -> None:
        for event in worker.advance(until_s):
            if isinstance(event, FirstTokenOut):
                first_s[event.request_id] = event.at_s
            elif isinstance(event, Finished):
                end_s[event.request_id] = event.at_s

    order = sorted(zip(requests, answers, strict=True), key=lambda pair: pair[1].sent_s)
    for ask, answer in order:
        take_in(answer.sent_s)
        worker.submit(sim_request(ask, answer.tokens, SETUP), answer.sent_s)
    while (next_s := worker.next_event_s()) is not None:
        take_in(next_s)
    sent = [answer.sent_s for answer in answers]
    firsts = [answer.first_token_s - answer.sent_s for answer in answers]
    totals = [answer.end_s - answer.sent_s for answer in answers]
    names = [ask.name for ask in requests]
    return Judgement(
        requests=len(requests),
        most_at_once=max(sum(other.sent_s <= one.sent_s < other.end_s for other in answers) for one in answers),
        first_token_s=float(np.median(firsts)),
        total_s=float(np.median(totals)),
        first_token=errors([first_s[n] - s + fitted.way_s for n, s in zip(names, sent, strict=True)], firsts),
        total=errors([end_s[n] - s + fitted.way_s for n, s in zip(names, sent, strict=True)], totals),
    )
