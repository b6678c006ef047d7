"""`AbstractOnGraph`: what samplers share whose agents talk to their neighbours on a graph."""

import dataclasses
from typing import Any, Self

import equinox as eqx

from .graph import agents_in, as_graph, given_graph
from .planned import AbstractPlanned


class AbstractOnGraph(AbstractPlanned):
    """A graph as the user gave it, and, once the number of agents is known, its links."""

    graph: Any = eqx.field(default="ring", converter=given_graph)
    links: Any = eqx.field(default=None, kw_only=True)

    def agents(self) -> int | None:
        """As many as the graph has, if it says."""
        return agents_in(self.graph)

    def placed(self, num_agents: int) -> Self:
        """With the graph."""
        if self.graph is None:
            return self
        return dataclasses.replace(self, graph=None, links=as_graph(self.graph, num_agents))
