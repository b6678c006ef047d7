"""Graphs: sums over neighbours against matrices, Metropolis weights, and every way in which one can be wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.samplers.agents.graph import NAMES, as_graph, given_graph

SIZES = {"ring": 20, "torus": 12, "complete": 6, "star": 40, "path": 5, "random": 30}


@pytest.mark.parametrize("name", NAMES)
def test_sums_are_those_of_the_matrices(name):
    graph = as_graph(name, SIZES[name])
    x = np.random.default_rng(0).normal(size=(graph.num_agents, 3))
    with jax.enable_x64(True):
        total, mixed = graph.neighbour_sum(jnp.asarray(x)), graph.mix(jnp.asarray(x))
    np.testing.assert_allclose(total, graph.adjacency() @ x, atol=1e-12)
    np.testing.assert_allclose(mixed, graph.metropolis() @ x, atol=1e-12)
    weights = graph.metropolis()
    np.testing.assert_allclose(weights, weights.T)
    np.testing.assert_allclose(weights.sum(1), 1)
    assert np.all(np.diag(weights) > 0)
    np.testing.assert_allclose(graph.laplacian().sum(1), 0)
    assert np.linalg.eigvalsh(graph.laplacian())[1] > 1e-9  # connected


def test_the_three_forms_are_used():
    assert {as_graph(name, SIZES[name]).form for name in NAMES} == {"matrix", "table", "edges"}


def test_named_graphs_have_their_degrees():
    assert set(as_graph("ring", 9).degrees) == {2}
    assert set(as_graph("torus", 12).degrees) == {4}
    assert sorted(as_graph("star", 5).degrees) == [1, 1, 1, 1, 4]
    assert as_graph("path", 4).num_edges == 3
    assert as_graph("complete", 5).num_edges == 10
    assert as_graph("ring", 2).num_edges == 1


def test_a_networkx_graph_is_its_adjacency():
    class Graph:
        nodes = ("a", "b", "c")
        edges = (("a", "b"), ("b", "c", {"weight": 2}))

    np.testing.assert_array_equal(given_graph(Graph()), [[0, 1, 0], [1, 0, 1], [0, 1, 0]])


def test_numbered_nodes_are_agents_by_their_number():
    """NetworkX keeps nodes in the order in which edges named them."""

    class Graph:
        nodes = (2, 0, 1)
        edges = ((2, 0), (0, 1))

    np.testing.assert_array_equal(given_graph(Graph()), [[0, 1, 1], [1, 0, 0], [1, 0, 0]])


def test_directed_networkx_graphs_need_both_directions():
    class Directed:
        nodes = (0, 1)
        edges = ((0, 1),)

        def is_directed(self):
            return True

    with pytest.raises(pf.InvalidArgument, match="agents 0 and 1 are joined in one direction"):
        given_graph(Directed())


def test_sparse_matrices_are_taken():
    from scipy.sparse import csr_array

    matrix = as_graph("path", 4).adjacency()
    np.testing.assert_array_equal(given_graph(csr_array(matrix)), matrix)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (
            np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]),
            r"2 components \(agents 0, 1; agents 2, 3\)",
        ),
        (np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]]), "agent 2 alone"),
        (np.array([[1, 1], [1, 0]]), "loop at agent 0"),
        (np.array([[0, 1, 1], [1, 0, 1], [0, 1, 0]]), "agents 0 and 2 are joined in one direction"),
        (np.array([[0, np.nan], [np.nan, 0]]), "agents 0 and 1 is nan"),
        (np.array([[0, 1, 1], [1, 0, -0.5], [1, -0.5, 0]]), "agents 1 and 2 is -0.5"),
        (np.zeros((2, 3)), "square adjacency matrix"),
        (np.zeros((1, 1)), "at least 2 agents"),
        ("hexagon", "'hexagon'"),
    ],
)
def test_wrong_graphs_are_refused(graph, message):
    with pytest.raises(pf.InvalidArgument, match=message):
        pf.DistributedADMM(graph)


def test_a_prime_torus_and_a_lonely_agent_are_refused():
    with pytest.raises(pf.InvalidArgument, match="product, got 7"):
        as_graph("torus", 7)
    with pytest.raises(pf.InvalidArgument, match="at least 2 agents, got 1"):
        as_graph("ring", 1)
