"""Graphs: sums over neighbours against matrices, Metropolis weights, and every way in which one can be wrong."""

import jax
import jax.numpy as jnp
import networkx
import numpy as np
import pytest
from scipy.sparse import csr_array

import pushforward as pf
from pushforward.samplers.agents.graph import NAMES, agents_in, as_graph, given_graph

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


def test_a_networkx_graph_is_its_edges():
    graph = networkx.Graph([("a", "b"), ("b", "c", {"weight": 2})])
    np.testing.assert_array_equal(given_graph(graph), [[0, 1], [1, 2]])
    np.testing.assert_array_equal(given_graph(networkx.MultiGraph([(0, 1), (0, 1)])), [[0, 1]])


def test_numbered_nodes_are_agents_by_their_number():
    """NetworkX keeps nodes in the order in which edges named them."""
    graph = networkx.Graph([(2, 0), (0, 1)])
    assert list(graph.nodes) == [2, 0, 1]
    np.testing.assert_array_equal(given_graph(graph), [[0, 1], [0, 2]])


def test_directed_networkx_graphs_need_both_directions():
    with pytest.raises(pf.InvalidArgument, match="agents 0 and 1 are joined in one direction"):
        given_graph(networkx.DiGraph([(0, 1)]))
    np.testing.assert_array_equal(given_graph(networkx.DiGraph([(0, 1), (1, 0)])), [[0, 1]])


@pytest.mark.parametrize("name", NAMES)
def test_matrices_sparse_ones_networkx_graphs_and_edges_are_one(name):
    graph = as_graph(name, SIZES[name])
    matrix = graph.adjacency()
    edges = given_graph(matrix)
    for given in (csr_array(matrix), 2 * matrix, networkx.from_numpy_array(matrix), edges, edges[::-1], edges.tolist()):
        np.testing.assert_array_equal(given_graph(given), edges)
    again = as_graph(edges, agents_in(edges))
    np.testing.assert_array_equal(again.adjacency(), matrix)
    assert again.form == graph.form


def test_two_agents_and_three():
    np.testing.assert_array_equal(given_graph(np.array([[0, 1], [1, 0]])), [[0, 1]])
    np.testing.assert_array_equal(given_graph(np.array([[0, 1], [1, 2]])), [[0, 1], [1, 2]])


@pytest.mark.parametrize("name", ["ring", "random", "star"])
def test_the_largest_eigenvalue_of_many_agents(name):
    graph = as_graph(name, 300)
    expected = np.linalg.eigvalsh(graph.laplacian())[-1]
    np.testing.assert_allclose(graph.largest_eigenvalue(), expected, rtol=2e-4)


def test_ten_thousand_agents_take_no_matrices():
    import tracemalloc

    tracemalloc.start()
    for name in ("ring", "torus", "star", "path", "random"):
        pf.DULA(name).placed(10_000).links.largest_eigenvalue()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


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
        (np.array([[0, 1], [2, 3], [3, 2]]), r"2 components \(agents 0, 1; agents 2, 3\)"),
        (np.array([[0, 1], [1, 3], [3, 0]]), "agent 2 alone"),
        (np.array([[0, 1], [1, 1], [1, 2]]), "loop at agent 1"),
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


@pytest.mark.parametrize("given", [[[1, 0], [2, 1]], np.array([[0, 1], [2, 1]])])
def test_two_edges_that_look_like_a_matrix_are_told_how_to_be_given(given):
    ordered = np.sort(given, axis=1).tolist()
    with pytest.raises(
        pf.InvalidArgument, match=r"if these are two edges, give each with the smaller .*\[\[0, 1\], \[1, 2"
    ):
        given_graph(given)
    np.testing.assert_array_equal(given_graph(ordered), ordered)
    np.testing.assert_array_equal(given_graph([[0, 1], [1, 0]]), [[0, 1]])
