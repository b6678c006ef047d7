"""Communication graphs: who talks to whom, sums over neighbours, Metropolis weights, the Laplacian."""

from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ...infer.errors import InvalidArgument

NAMES = ("ring", "torus", "complete", "star", "path", "random")
DENSE = 4
"""A graph with more than n²/DENSE directed edges is summed over as a matrix."""


class Graph(eqx.Module):
    """A connected undirected graph of n agents, as sums over neighbours need it.

    One of three forms, the cheapest for its edges: a matrix (dense graphs), a table of neighbours (degrees alike), or a
    list of edges. The cost of a sum is O(edges × d) in the last two.

    Attributes
    ----------
    degrees
        Shape (n,).
    senders, receivers
        Directed edges, sorted by receiver; shape (2 × number of edges,).
    table, mask
        Neighbours of each agent, padded with itself, and which entries are neighbours; shape (n, largest degree).
    """

    degrees: Any
    senders: Any
    receivers: Any
    table: Any
    mask: Any
    form: str = eqx.field(static=True)

    @classmethod
    def from_adjacency(cls, adjacency: Bool[np.ndarray, "n n"]) -> Self:
        """The graph of a checked adjacency matrix."""
        n = len(adjacency)
        degrees = adjacency.sum(1)
        receivers, senders = np.nonzero(adjacency)
        table = np.tile(np.arange(n)[:, None], (1, max(int(degrees.max()), 1)))
        slot = np.arange(len(receivers)) - np.repeat(np.cumsum(degrees) - degrees, degrees)
        table[receivers, slot] = senders
        mask = np.arange(table.shape[1]) < degrees[:, None]
        edges = len(receivers)
        form = "matrix" if edges * DENSE > n**2 else "table" if table.size <= 2 * edges else "edges"
        return cls(degrees, senders, receivers, table, mask, form)

    @property
    def num_agents(self) -> int:
        """Number of agents, n."""
        return self.degrees.shape[0]

    @property
    def num_edges(self) -> int:
        """Number of undirected edges."""
        return self.senders.shape[0] // 2

    def adjacency(self) -> Float[np.ndarray, "n n"]:
        """A, with ones at edges; on the host."""
        matrix = np.zeros((self.num_agents, self.num_agents))
        matrix[np.asarray(self.receivers), np.asarray(self.senders)] = 1.0
        return matrix

    def laplacian(self) -> Float[np.ndarray, "n n"]:
        """L = D − A; on the host."""
        return np.diag(np.asarray(self.degrees, float)) - self.adjacency()

    def metropolis(self) -> Float[np.ndarray, "n n"]:
        """Metropolis weights W, symmetric and doubly stochastic: W_ij = 1/(max(d_i, d_j) + 1) on edges; on the host."""
        larger = np.maximum.outer(np.asarray(self.degrees), np.asarray(self.degrees))
        weights = self.adjacency() / (larger + 1)
        return weights + np.diag(1 - weights.sum(1))

    def neighbour_sum(self, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """S_i, the sum of x_j over the neighbours j of i."""
        if self.form == "matrix":
            zeros = jnp.zeros((self.num_agents, self.num_agents), x.dtype)
            return zeros.at[jnp.asarray(self.receivers), jnp.asarray(self.senders)].set(1.0) @ x
        if self.form == "table":
            return jnp.sum(jnp.where(jnp.asarray(self.mask)[:, :, None], x[jnp.asarray(self.table)], 0.0), axis=1)
        sent = x[jnp.asarray(self.senders)]
        return jax.ops.segment_sum(sent, jnp.asarray(self.receivers), self.num_agents, indices_are_sorted=True)

    def mix(self, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """W x, with the Metropolis weights: written as x_i + Σ_j W_ij (x_j − x_i), so that agents that agree stay."""
        degrees = jnp.asarray(self.degrees)
        if self.form == "table":
            table = jnp.asarray(self.table)
            weights = jnp.asarray(self.mask) / (jnp.maximum(degrees[:, None], degrees[table]) + 1.0)
            return x + jnp.sum(weights[:, :, None] * (x[table] - x[:, None]), axis=1)
        i, j = jnp.asarray(self.receivers), jnp.asarray(self.senders)
        weights = (1.0 / (jnp.maximum(degrees[i], degrees[j]) + 1.0)).astype(x.dtype)
        if self.form == "matrix":
            matrix = jnp.zeros((self.num_agents, self.num_agents), x.dtype).at[i, j].set(weights)
            return x + matrix @ x - jnp.sum(matrix, axis=1)[:, None] * x
        moved = weights[:, None] * (x[j] - x[i])
        return x + jax.ops.segment_sum(moved, i, self.num_agents, indices_are_sorted=True)


def given_graph(given: Any) -> Any:
    """A name as it is; an adjacency matrix or a NetworkX graph as a checked adjacency matrix of zeros and ones.

    Entries other than 0 are edges, and weights make no difference. The nodes of a NetworkX graph are agents by their
    number if they are numbered from 0, otherwise in the graph's order.

    Raises
    ------
    InvalidArgument
        The graph is disconnected, has a loop or an asymmetric edge, or an entry that is negative or not finite; or
        there is none of this name.
    """
    if given is None:
        return None
    if isinstance(given, str):
        if given not in NAMES:
            raise InvalidArgument(f"graph must be one of {', '.join(map(repr, NAMES))} or a matrix, got {given!r}.")
        return given
    if hasattr(given, "nodes") and hasattr(given, "edges"):
        given = _of_networkx(given)
    elif hasattr(given, "toarray"):
        given = given.toarray()
    return check_adjacency(given).astype(np.int8)


def _of_networkx(graph: Any) -> Float[np.ndarray, "n n"]:
    """Agent i is node i where the nodes are the numbers 0 to n − 1, in whatever order; else the i-th node."""
    nodes = list(graph.nodes)
    if set(nodes) == set(range(len(nodes))):
        nodes = sorted(nodes)
    index = {node: i for i, node in enumerate(nodes)}
    directed = getattr(graph, "is_directed", lambda: False)()
    matrix = np.zeros((len(index), len(index)))
    for a, b, *_ in graph.edges:
        matrix[index[a], index[b]] = 1
        if not directed:
            matrix[index[b], index[a]] = 1
    return matrix


def as_graph(given: Any, num_agents: int) -> Graph:
    """The graph of a name, or of an adjacency matrix that `given_graph` has checked.

    ``"ring"``, ``"torus"``, ``"complete"``, ``"star"`` (agent 0 in the centre), ``"path"``, or ``"random"`` (each edge
    with probability 2 log n / n from a fixed seed, and a ring, so that it is connected).
    """
    matrix = _named(given, num_agents) if isinstance(given, str) else given
    return Graph.from_adjacency(np.asarray(matrix) != 0)


def agents_in(given: Any) -> int | None:
    """Number of agents of an adjacency matrix; None of a name."""
    return None if given is None or isinstance(given, str) else len(given)


def check_adjacency(matrix: Any) -> Bool[np.ndarray, "n n"]:
    """The matrix as booleans; raise unless it is that of a connected undirected graph without loops."""
    try:
        numbers: Any = np.asarray(matrix, float)
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if numbers.ndim != 2 or numbers.shape[0] != numbers.shape[1] or len(numbers) < 2:
        names = ", ".join(map(repr, NAMES))
        raise InvalidArgument(
            f"graph must be one of {names}, a square adjacency matrix of at least 2 agents or a NetworkX graph, got "
            f"{type(matrix).__name__} of shape {np.shape(matrix)}."
        )
    wrong = ~np.isfinite(numbers) | (numbers < 0)
    if wrong.any():
        i, j = np.argwhere(wrong)[0]
        raise InvalidArgument(
            f"graph must have entries of 0 (no edge) or above (an edge), and that of agents {i} and {j} is "
            f"{numbers[i, j]:g}; set it to 0 or 1."
        )
    adjacency = numbers != 0
    if adjacency.diagonal().any():
        raise InvalidArgument(f"graph has a loop at agent {int(np.argmax(adjacency.diagonal()))}; remove the edge.")
    if (adjacency != adjacency.T).any():
        i, j = np.argwhere(adjacency != adjacency.T)[0]
        raise InvalidArgument(
            f"graph must be undirected, and agents {i} and {j} are joined in one direction only; make the adjacency "
            f"matrix symmetric."
        )
    found = components(adjacency)
    if len(found) > 1:
        parts = "; ".join(_shown(part) for part in found[:4]) + ("; …" if len(found) > 4 else "")
        raise InvalidArgument(
            f"graph must be connected, and it has {len(found)} components ({parts}): agents of different ones would "
            f"never learn of each other's data; join them by an edge."
        )
    return adjacency


def components(adjacency: Bool[np.ndarray, "n n"]) -> list[Int[np.ndarray, " k"]]:
    """Agents of each connected component."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    count, labels = connected_components(csr_array(adjacency), directed=False)
    return [np.flatnonzero(labels == label) for label in range(count)]


def _shown(part: np.ndarray) -> str:
    text = ", ".join(map(str, part[:6])) + (", …" if len(part) > 6 else "")
    return f"agents {text}" if len(part) > 1 else f"agent {text} alone"


def _named(name: str, num_agents: int) -> Float[np.ndarray, "n n"]:
    """Adjacency matrix of a graph with a name."""
    if num_agents < 2:
        raise InvalidArgument(f"graph={name!r} needs at least 2 agents, got {num_agents}; use NUTS() for one.")
    make = {"ring": _ring, "torus": _torus, "complete": _complete, "star": _star, "path": _path, "random": _random}
    return make[name](num_agents)


def _complete(n: int) -> np.ndarray:
    return 1 - np.eye(n)


def _path(n: int) -> np.ndarray:
    return np.eye(n, k=1) + np.eye(n, k=-1)


def _ring(n: int) -> np.ndarray:
    matrix = _path(n)
    matrix[0, -1] = matrix[-1, 0] = 1
    return matrix


def _star(n: int) -> np.ndarray:
    matrix = np.zeros((n, n))
    matrix[0, 1:] = matrix[1:, 0] = 1
    return matrix


def _torus(n: int) -> np.ndarray:
    """A rows × columns grid with its sides joined, as square as n allows."""
    rows = max(r for r in range(1, int(n**0.5) + 1) if n % r == 0)
    if rows < 2:
        raise InvalidArgument(f"graph='torus' needs a number of agents that is a product, got {n}; use 'ring'.")
    grid = np.arange(n).reshape(rows, -1)
    matrix = np.zeros((n, n))
    for axis in (0, 1):
        a, b = grid.ravel(), np.roll(grid, 1, axis).ravel()
        matrix[a, b] = matrix[b, a] = 1
    return matrix


def _random(n: int) -> np.ndarray:
    chance = min(2 * np.log(n) / n, 1.0)
    upper = np.triu(np.random.default_rng(n).random((n, n)) < chance, 1)
    return np.maximum(upper | upper.T, _ring(n))
