"""Small networks and their doubles in NumPy, compiled once and shared by the tests of this folder."""

from functools import cache
from types import ModuleType
from typing import Any, Callable, Iterator

import pytest

import mindspore as ms

LAYOUT = {"world_size": 4, "ranks_per_node": 2, "expert": 4}
# Between them: every router, every activation, every statistics scope, overflow by either priority, shared experts,
# blocks of one kind only.
CASES = {
    "dense": {"model": {"sparse_layers": 0, "dense_layers": 2, "activation": "fast_gelu"}},
    "hash": {
        "model": {"dense_layers": 0, "activation": "gelu_tanh", "domain_embeddings": True},
        "moe": {"router": {"type": "hash"}, "capacity": {"factor": 0.8, "evaluation_factor": 1.1}},
    },
    "switch": {
        "model": {"activation": "relu"},
        "moe": {
            "router": {"type": "switch", "top_k": 2, "statistics": "rank", "switch": {"aux_loss_weight": 0.7}},
            "logical_topology": LAYOUT,
            "num_groups": 1,
            "dispatch": {"drop_priority": "weight"},
            "capacity": {"factor": 0.9, "evaluation_factor": 4.0},
        },
    },
    "locmoe": {
        "model": {"dense_layers": 0, "sparse_query_layer": True, "domain_embeddings": True},
        "moe": {
            "router": {"type": "locmoe", "locmoe": {"aux_loss_weight": 0.8, "locality_loss_weight": 0.5}},
            "logical_topology": LAYOUT,
            "expert_placement": "node_grouped",
            "capacity": {"factor": 1.0},
        },
    },
    "locmoe dense gate": {
        "model": {"dense_layers": 0, "num_heads": 4},
        "moe": {
            "router": {
                "statistics": "node",
                "locmoe": {"gate": "dense", "aux_loss_weight": 0.8, "locality_loss_weight": 0.5},
            },
            "logical_topology": LAYOUT,
            "scale_by_gate": False,
            "shared_experts": 2,
        },
    },
    "query layer alone": {"model": {"dense_layers": 0, "sparse_layers": 0, "final_norm": "after_query"}},
}


@pytest.fixture(scope="session")
def case(networks: ModuleType, numpy_model: ModuleType) -> Callable[[str], Any]:
    """`case(name)`: the small network of that name, built once."""

    @cache
    def build(name: str) -> Any:
        return networks.SmallNetwork(numpy_model, networks.small_config(**CASES[name]), seed=len(name))

    return build


@pytest.fixture(params=sorted(CASES))
def any_case(request: pytest.FixtureRequest, case: Callable[[str], Any]) -> Any:
    return case(request.param)


@pytest.fixture(autouse=True)
def graph_mode() -> None:
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.fixture
def pynative_mode(graph_mode: None) -> Iterator[None]:
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)
