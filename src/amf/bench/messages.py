"""A prompt's blocks cut into chat messages, so that histories share whole messages as far as they share blocks.

The plans of one pipeline form a trie of block chains. Where some call's prompt ends, a later call that goes on from
there must start new messages: first an `assistant` message (the earlier call's answer), then a `user` message (the
next instruction or a tool's result). So every *end* in the trie carries two boundaries: at the end itself, and after
the answer. The answer's length is a property of the end alone (the output planned there, cut short so that every
call that goes on still has a user part), hence any two calls that share k blocks have the same boundaries and roles
within them; a call that shares only part of a message differs inside that message and nowhere earlier. The root of
the trie counts as an end whose "answer" is the `system` message.

Roles alternate strictly and the last message is always the user's, with the call's unshared tail at its end.
Boundaries are multiples of a block, except where a call goes on by a single block: its answer then takes half of
that block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from amf.bench.text import BYTES_PER_TOKEN, prompt_text
from amf.core.types import CallKind
from amf.sim.plan import CallPlan, PipelinePlan, PromptPlan
from amf.sim.workload.blocks import owned_runs

_START = 0
_MAX_SYSTEM_BLOCKS = 64  # where nothing else says how long the system prompt is


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    role: str
    content: str


@dataclass(slots=True)
class _End:
    """A place in the trie where a prompt ends: what was answered there, and how soon another end follows."""

    answer_blocks: int
    next_blocks: int | None = None

    def answer_tokens(self, block_tokens: int) -> int:
        """How much of what follows this end is the answer, leaving something for the user on every continuation."""
        if self.next_blocks is None or self.next_blocks > self.answer_blocks:
            return self.answer_blocks * block_tokens
        if self.next_blocks > 1:
            return (self.next_blocks - 1) * block_tokens
        return block_tokens // 2


class Conversation:
    """Where one pipeline's prompts are cut into messages. Building it reads the prompts' runs, no text."""

    def __init__(self, pipeline: PipelinePlan) -> None:
        self._pipeline_id = pipeline.pipeline_id
        chats = [call.prompt for call in pipeline.calls if call.kind is CallKind.GENERATE and call.prompt.blocks]
        self._depths = sorted({prompt.blocks for prompt in chats})
        self._ends: dict[int, _End] = {}
        for call in pipeline.calls:
            if call.kind is CallKind.GENERATE and call.prompt.blocks:
                (end,) = _identities(call.prompt, (call.prompt.blocks,))
                self._ends.setdefault(end, _End(max(1, -(-call.output_tokens // call.prompt.block_tokens))))
        for prompt in chats:
            self._note_distances(prompt)

    def prompt(self, call: CallPlan) -> bytes:
        """The whole prompt as one ASCII text of four bytes a token."""
        return prompt_text(owned_runs(call.prompt), call.prompt, f"{self._pipeline_id}/{call.index}")

    def messages(self, call: CallPlan) -> list[Message]:
        """The prompt as chat messages; their contents joined are `prompt`."""
        text = self.prompt(call)
        cuts = [cut * BYTES_PER_TOKEN for cut in self._cuts(call.prompt)]
        pieces = [text[a:b].decode() for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        roles = ("system", *(("user", "assistant") * (len(cuts) // 2 + 1))) if cuts else ("user",)
        return [Message(role=role, content=piece) for role, piece in zip(roles, pieces, strict=False)]

    def _note_distances(self, prompt: PromptPlan) -> None:
        before, at = self._ends.setdefault(_root(prompt), _End(_system_blocks(prompt))), 0
        for depth, end in self._ends_within(prompt):
            distance = depth - at
            before.next_blocks = min(distance, before.next_blocks or distance)
            before, at = end, depth

    def _ends_within(self, prompt: PromptPlan) -> Iterator[tuple[int, _End]]:
        depths = [depth for depth in self._depths if depth <= prompt.blocks]
        for depth, identity in zip(depths, _identities(prompt, depths), strict=True):
            if identity in self._ends:
                yield depth, self._ends[identity]

    def _cuts(self, prompt: PromptPlan) -> list[int]:
        """Boundaries between messages, in tokens from the start, ascending."""
        size = prompt.block_tokens
        if not prompt.blocks:
            return []
        cuts = [self._ends[_root(prompt)].answer_tokens(size)]
        for depth, end in self._ends_within(prompt):
            if depth < prompt.blocks:
                cuts += [depth * size, depth * size + end.answer_tokens(size)]
        return cuts


def _root(prompt: PromptPlan) -> int:
    """Calls that begin with the same block have the same system message."""
    (namespace, first, _), *_ = owned_runs(prompt)
    return hash((_START, namespace, first))


def _system_blocks(prompt: PromptPlan) -> int:
    """What other pipelines share is the system prompt; without any, a quarter of the prompt passes for it."""
    shared = 0
    for namespace, _, count in owned_runs(prompt):
        if namespace == prompt.namespace:
            break
        shared += count
    return shared or max(1, min(_MAX_SYSTEM_BLOCKS, prompt.blocks // 4))


def _identities(prompt: PromptPlan, depths: Sequence[int]) -> list[int]:
    """For each depth (ascending, in blocks) a number that names the chain of blocks up to it."""
    found: list[int] = []
    chain, start = _START, 0
    for namespace, first, count in owned_runs(prompt):
        while len(found) < len(depths) and depths[len(found)] <= start + count:
            found.append(hash((chain, namespace, first, depths[len(found)] - start)))
        chain = hash((chain, namespace, first, count))
        start += count
    return found
