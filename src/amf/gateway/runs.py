"""What intake remembers of runs besides the fabric: how many calls each has had, the graph it follows, and which run a
session belongs to.

Bounded; the least recently active entry goes first.
"""

from collections import OrderedDict


class RunBook:
    def __init__(self, max_runs: int = 20_000) -> None:
        self._calls: OrderedDict[str, int] = OrderedDict()
        self._run_of_session: OrderedDict[str, str] = OrderedDict()
        self._graph_of_run: OrderedDict[str, str] = OrderedDict()
        self._max_runs = max_runs

    def run_of(self, session_id: str) -> str | None:
        """The run a session was last seen in: a sub-agent's parent leads to the run of the whole family."""
        return self._run_of_session.get(session_id)

    def graph_of(self, run_id: str) -> str:
        """The graph that the run's calls last named; "" if they named none."""
        return self._graph_of_run.get(run_id, "")

    def follow(self, run_id: str, graph: str) -> None:
        """The run follows `graph`."""
        self._graph_of_run[run_id] = graph
        self._graph_of_run.move_to_end(run_id)
        while len(self._graph_of_run) > self._max_runs:
            self._graph_of_run.popitem(last=False)

    def note(self, run_id: str, hop: str, session_id: str) -> str:
        """Remember an accepted call. Returns its hop id: the hop's name, or its number in the run."""
        number = self._calls.get(run_id, 0)
        self._calls[run_id] = number + 1
        self._calls.move_to_end(run_id)
        if session_id:
            self._run_of_session[session_id] = run_id
            self._run_of_session.move_to_end(session_id)
        for entries in (self._calls, self._run_of_session):
            while len(entries) > self._max_runs:
                entries.popitem(last=False)
        return hop or str(number)
