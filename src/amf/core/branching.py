"""What becomes of branches: the client's decisions, and those that come too late to matter."""

from collections.abc import Collection

from amf.core.policy.interface import Policies
from amf.core.state.book import Book
from amf.core.state.branches import Fate
from amf.core.state.outcomes import needed_odds
from amf.core.state.pipelines import CallState, Pipeline


def decide(
    book: Book, pipeline: Pipeline, path: str, committed: Collection[str], discarded: Collection[str]
) -> list[CallState]:
    """Note the decision, learn from it, and return the open calls of what has lost."""
    branches = pipeline.branches
    group = branches.groups.get(path) if branches else None
    if branches is None or group is None:
        return []
    position = (pipeline.graph_name, group.name)
    for names, succeeded in ((committed, True), (discarded, False)):
        for name in names:
            member = group.members.get(name)
            if member is not None and member.fate is Fate.OPEN and group.missing > 0:
                after_s = None if member.quiet_s is None else book.now_s - member.quiet_s
                book.outcomes.observe(position, succeeded, after_s)
    lost = branches.decide(path, committed, discarded)
    return [state for call_id in lost if (state := book.pipelines.call(call_id)) is not None]


def late_branches(book: Book, policies: Policies) -> list[CallState]:
    """Open calls of branches that would end after the time up to which they could have mattered, while others of their group
    are ahead of them."""
    if policies.launch is None:
        return []
    late: list[CallState] = []
    now_s, patience_s = book.now_s, book.config.branch_patience_s
    for run_id in book.pipelines.branching:
        pipeline = book.pipelines.get(run_id)
        for state in pipeline.live.values() if pipeline else ():
            if state.call.branch and state.due_s is not None and state.due_s < now_s:
                needed = needed_odds(pipeline, state.call.branch, book.outcomes, now_s, patience_s)
                late += [state] if needed < 1.0 else []
    return late
