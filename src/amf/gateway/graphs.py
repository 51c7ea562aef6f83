"""Declared call graphs as the gateway knows them, for the control API and for checking parents. Bounded."""

from collections import OrderedDict
from typing import Any

from amf.core.graph import CallGraph


class Graphs:
    def __init__(self, max_graphs: int = 1000) -> None:
        self._graphs: OrderedDict[str, CallGraph] = OrderedDict()
        self._max_graphs = max_graphs

    def declare(self, graph: CallGraph) -> None:
        """Remember `graph` in place of an earlier one of its name; the oldest declaration beyond the bound goes."""
        self._graphs[graph.name] = graph
        self._graphs.move_to_end(graph.name)
        while len(self._graphs) > self._max_graphs:
            self._graphs.popitem(last=False)

    def hops(self, name: str) -> frozenset[str]:
        """Names of the declared graph's hops; empty if it is not declared."""
        graph = self._graphs.get(name)
        return frozenset(hop.name for hop in graph.hops) if graph else frozenset()

    def get(self, name: str) -> CallGraph | None:
        return self._graphs.get(name)

    def documents(self) -> list[dict[str, Any]]:
        return [graph.to_dict() for graph in self._graphs.values()]
