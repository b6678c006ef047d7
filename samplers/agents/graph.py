"""Communication graphs: who talks to whom, sums over neighbours, Metropolis weights, the Laplacian."""

from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ...infer.errors import InvalidArgument

NAMES = ("ring", "torus", "complete", "star", "path", "random")
DENSE = 4
"""A graph with more than n²/DENSE directed edges is summed over as a matrix."""
FEW = 200
"""Agents up to which eigenvalues are those of a dense matrix."""


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
        Neighbours of each agent, padded with itself, and which entries are neighbours; shape (n, largest degree), or
        (n, 0) in the other forms.
    """

    degrees: Any
    senders: Any
    receivers: Any
    table: Any
    mask: Any
    form: str = eqx.field(static=True)

    @classmethod
    def from_edges(cls, edges: Int[np.ndarray, "m 2"]) -> Self:
        """The graph of checked edges, each of which is listed once."""
        receivers, senders = np.concatenate([edges, edges[:, ::-1]]).T
        order = np.lexsort((senders, receivers))
        receivers, senders = receivers[order], senders[order]
        degrees = np.bincount(receivers)
        n, ends, most = len(degrees), len(receivers), int(degrees.max())
        form = "matrix" if ends * DENSE > n**2 else "table" if n * most <= 2 * ends else "edges"
        # Other forms have no use for a table, and that of a star would be as large as a matrix.
        table = np.tile(np.arange(n)[:, None], (1, most if form == "table" else 0))
        if form == "table":
            table[receivers, np.arange(ends) - np.repeat(np.cumsum(degrees) - degrees, degrees)] = senders
        mask = np.arange(table.shape[1]) < degrees[:, None]
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
        return self._sparse().toarray()

    def laplacian(self) -> Float[np.ndarray, "n n"]:
        """L = D − A; on the host."""
        return np.diag(np.asarray(self.degrees, float)) - self.adjacency()

    def largest_eigenvalue(self) -> float:
        """Of the Laplacian; on the host."""
        return _largest_eigenvalue(self._sparse())

    def least_weight(self) -> float:
        """The least eigenvalue of the Metropolis weights; on the host."""
        larger = np.maximum(np.asarray(self.degrees)[self.receivers], np.asarray(self.degrees)[self.senders])
        return 1.0 - _largest_eigenvalue(self._sparse(1.0 / (larger + 1)))  # W = I − a weighted Laplacian

    def metropolis(self) -> Float[np.ndarray, "n n"]:
        """Metropolis weights W, symmetric and doubly stochastic: W_ij = 1/(max(d_i, d_j) + 1) on edges; on the host."""
        larger = np.maximum.outer(np.asarray(self.degrees), np.asarray(self.degrees))
        weights = self.adjacency() / (larger + 1)
        return weights + np.diag(1 - weights.sum(1))

    def _sparse(self, weights: Any = 1.0) -> Any:
        from scipy.sparse import csr_array

        at = (np.asarray(self.receivers), np.asarray(self.senders))
        return csr_array((np.broadcast_to(weights, at[0].shape), at), (self.num_agents, self.num_agents))

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


def _largest_eigenvalue(weights: Any) -> float:
    """Of the Laplacian of sparse symmetric weights."""
    from scipy.sparse import diags_array
    from scipy.sparse.linalg import eigsh

    laplacian = diags_array(weights.sum(1)) - weights
    if len(weights.sum(1)) <= FEW:
        return float(np.linalg.eigvalsh(laplacian.toarray())[-1])
    start = np.cos(np.arange(laplacian.shape[0]))
    return float(eigsh(laplacian.tocsr(), 1, v0=start, tol=1e-4, return_eigenvectors=False)[0])


def given_graph(given: Any) -> Any:
    """A name as it is; anything else as checked edges, shape (m, 2), each once, the smaller agent first, sorted.

    Parameters
    ----------
    given
        A name; an adjacency matrix, dense or sparse, whose entries other than 0 are edges, whatever their weight; a
        NetworkX graph, whose nodes are agents by their number if they are numbered from 0, otherwise in its order; or
        an array of edges, shape (m, 2), of agents numbered from 0 (two edges each with the smaller agent first, since
        [[0, 1], [1, 0]] is an adjacency matrix).

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
        pairs, n = _of_networkx(given)
    elif _are_edges(given):
        pairs = np.asarray(given)
        n = int(pairs.max(initial=0)) + 1
        pairs = np.concatenate([pairs, pairs[:, ::-1]])
    else:
        _refuse_unordered_edges(given)
        pairs, n = _of_matrix(given)
    return _checked(pairs, n)


def as_graph(given: Any, num_agents: int) -> Graph:
    """The graph of a name, or of edges that `given_graph` has checked.

    ``"ring"``, ``"torus"``, ``"complete"``, ``"star"`` (agent 0 in the centre), ``"path"``, or ``"random"`` (each edge
    with probability 2 log n / n from a fixed seed, and a ring, so that it is connected).
    """
    return Graph.from_edges(_named(given, num_agents) if isinstance(given, str) else np.asarray(given))


def agents_in(given: Any) -> int | None:
    """Number of agents of edges; None of a name."""
    return None if given is None or isinstance(given, str) else int(np.max(given)) + 1


def _are_edges(given: Any) -> bool:
    """Whether an array lists edges: two columns, and no adjacency matrix of two agents, whose diagonal is 0."""
    if not isinstance(given, np.ndarray | list | tuple) and not hasattr(given, "__array__"):
        return False
    try:
        array = np.asarray(given)
    except ValueError:
        return False
    two_columns = array.ndim == 2 and array.shape[1] == 2 and np.issubdtype(array.dtype, np.integer)
    return bool(two_columns and (array >= 0).all() and (len(array) != 2 or (array[:, 0] < array[:, 1]).all()))


def _refuse_unordered_edges(given: Any) -> None:
    """Raise on two rows of two numbers that are no adjacency matrix, which edges with the larger agent first may be."""
    try:
        array = np.asarray(given)
    except ValueError:
        return
    if array.shape == (2, 2) and np.issubdtype(array.dtype, np.integer) and (array >= 0).all():
        matrix = (array == array.T).all() and not np.diagonal(array).any()
        if matrix or (array[:, 0] == array[:, 1]).any():
            return
        ordered = np.sort(array, axis=1).tolist()
        raise InvalidArgument(
            f"graph {array.tolist()} is no adjacency matrix of two agents, which is [[0, 1], [1, 0]]; if these are two "
            f"edges, give each with the smaller agent first: {ordered}."
        )


def _of_networkx(graph: Any) -> tuple[Int[np.ndarray, "m 2"], int]:
    """Directed edges; agent i is node i where the nodes are the numbers 0 to n − 1, in whatever order."""
    nodes = list(graph.nodes)
    if set(nodes) == set(range(len(nodes))):
        nodes = sorted(nodes)
    index = {node: i for i, node in enumerate(nodes)}
    pairs = np.array([(index[a], index[b]) for a, b, *_ in graph.edges], int).reshape(-1, 2)
    return (pairs if graph.is_directed() else np.concatenate([pairs, pairs[:, ::-1]])), len(nodes)


def _of_matrix(matrix: Any) -> tuple[Int[np.ndarray, "m 2"], int]:
    """Directed edges of an adjacency matrix; raise if it is none."""
    from scipy.sparse import coo_array

    try:
        numbers: Any = coo_array(matrix if hasattr(matrix, "tocoo") else np.asarray(matrix, float))
    except (TypeError, ValueError):
        numbers = coo_array((0, 0))
    if numbers.ndim != 2 or numbers.shape[0] != numbers.shape[1] or numbers.shape[0] < 2:
        names = ", ".join(map(repr, NAMES))
        raise InvalidArgument(
            f"graph must be one of {names}, a square adjacency matrix of at least 2 agents, an array of edges or a "
            f"NetworkX graph, got {type(matrix).__name__} of shape {np.shape(matrix)}."
        )
    wrong = ~np.isfinite(numbers.data) | (numbers.data < 0)
    if wrong.any():
        i, j, value = (x[wrong][0] for x in (*numbers.coords, numbers.data))
        raise InvalidArgument(
            f"graph must have entries of 0 (no edge) or above (an edge), and that of agents {i} and {j} is "
            f"{value:g}; set it to 0 or 1."
        )
    return np.stack(numbers.coords, axis=1)[numbers.data != 0], numbers.shape[0]


def _checked(pairs: Int[np.ndarray, "m 2"], n: int) -> Int[np.ndarray, "k 2"]:
    """Each undirected edge of these directed ones once; raise unless they make a connected graph of n agents."""
    if n < 2:
        raise InvalidArgument(f"graph must have at least 2 agents, got {n}; use NUTS() for one.")
    loops = pairs[pairs[:, 0] == pairs[:, 1]]
    if len(loops):
        raise InvalidArgument(f"graph has a loop at agent {int(loops[0, 0])}; remove the edge.")
    pairs = np.unique(pairs, axis=0)
    there, back = (np.ravel_multi_index(tuple(ends.T), (n, n)) for ends in (pairs, pairs[:, ::-1]))
    alone = ~np.isin(there, back)
    if alone.any():
        i, j = sorted(pairs[np.argmax(alone)].tolist())
        raise InvalidArgument(
            f"graph must be undirected, and agents {i} and {j} are joined in one direction only; make the adjacency "
            f"matrix symmetric."
        )
    found = components(pairs, n)
    if len(found) > 1:
        parts = "; ".join(_shown(part) for part in found[:4]) + ("; …" if len(found) > 4 else "")
        raise InvalidArgument(
            f"graph must be connected, and it has {len(found)} components ({parts}): agents of different ones would "
            f"never learn of each other's data; join them by an edge."
        )
    return pairs[pairs[:, 0] < pairs[:, 1]]


def components(pairs: Int[np.ndarray, "m 2"], n: int) -> list[Int[np.ndarray, " k"]]:
    """Agents of each connected component of n agents with these edges."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs)), tuple(pairs.T)), (n, n))
    count, labels = connected_components(graph, directed=False)
    return [np.flatnonzero(labels == label) for label in range(count)]


def _shown(part: np.ndarray) -> str:
    text = ", ".join(map(str, part[:6])) + (", …" if len(part) > 6 else "")
    return f"agents {text}" if len(part) > 1 else f"agent {text} alone"


def _named(name: str, num_agents: int) -> Int[np.ndarray, "m 2"]:
    """Edges of a graph with a name."""
    if num_agents < 2:
        raise InvalidArgument(f"graph={name!r} needs at least 2 agents, got {num_agents}; use NUTS() for one.")
    make = {"ring": _ring, "torus": _torus, "complete": _complete, "star": _star, "path": _path, "random": _random}
    return np.unique(np.sort(make[name](num_agents), axis=1), axis=0)


def _complete(n: int) -> np.ndarray:
    return np.stack(np.triu_indices(n, 1), axis=1)


def _path(n: int) -> np.ndarray:
    return np.stack([np.arange(n - 1), np.arange(1, n)], axis=1)


def _ring(n: int) -> np.ndarray:
    return np.concatenate([_path(n), [[0, n - 1]]])


def _star(n: int) -> np.ndarray:
    return np.stack([np.zeros(n - 1, int), np.arange(1, n)], axis=1)


def _torus(n: int) -> np.ndarray:
    """A rows × columns grid with its sides joined, as square as n allows."""
    rows = max(r for r in range(1, int(n**0.5) + 1) if n % r == 0)
    if rows < 2:
        raise InvalidArgument(f"graph='torus' needs a number of agents that is a product, got {n}; use 'ring'.")
    grid = np.arange(n).reshape(rows, -1)
    return np.concatenate([np.stack([grid.ravel(), np.roll(grid, 1, axis).ravel()], axis=1) for axis in (0, 1)])


def _random(n: int) -> np.ndarray:
    """Of each agent a binomial number of edges to later ones."""
    rng, chance = np.random.default_rng(n), min(2 * np.log(n) / n, 1.0)
    found = [_ring(n)]
    for i in range(n - 1):
        later = i + 1 + rng.choice(n - 1 - i, rng.binomial(n - 1 - i, chance), replace=False)
        found.append(np.stack([np.full(len(later), i), later], axis=1))
    return np.concatenate(found)
