"""One small network in which every sparse layer has another router, so that one set of graphs tells of all of them."""

from dataclasses import replace

import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor

from pangu_sigma.config.load import config_from_dict
from pangu_sigma.inference.generator import Generator
from pangu_sigma.inference.load import Model, inference_config, network_context
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.model.sparse import build_sparse_layer
from pangu_sigma.runtime.runtime import Runtime

VOCABULARY, DOMAINS, LENGTH, END = 29, 2, 12, 3
LAYOUT = {"world_size": 4, "ranks_per_node": 2, "expert": 2}
HOMES = (0, 3)  # on different nodes
MARGIN = {"kind": "margin", "strength": 0.9}
ROUTERS = (
    {"type": "hash"},
    {"type": "hash", "top_k": 2, "hash": {"weights": "gate", "score": "sigmoid"}},
    {"type": "switch", "switch": {"jitter": 0.1}, "balance_rate": 0.01},
    {"type": "locmoe"},
    {"type": "locmoe", "locmoe": {"gate_input": "word", "blocks": "by_layer"}, "locality_bias": MARGIN},
    {"type": "locmoe", "locmoe": {"gate_input": "code"}},
    {"type": "gshard", "top_k": 2},
    {"type": "faster_moe"},
    {"type": "ta_moe", "locality_bias": {"kind": "bias", "strength": 0.5}},
    {"type": "etr", "top_k": 2},
    {"type": "smile"},
    {"type": "c2r", "top_k": 2},
)


@pytest.fixture(autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


def _config(router, shared=0, **model):
    return inference_config(
        config_from_dict(
            {
                "model": {
                    "hidden_size": 8,
                    "num_heads": 2,
                    "ffn_hidden_size": 12,
                    "sequence_length": LENGTH,
                    "dense_layers": 1,
                    "sparse_layers": len(ROUTERS),
                    "attention_dropout": 0.1,
                    "domain_embeddings": True,
                    **model,
                },
                "moe": {
                    "num_experts": 8,
                    "shared_experts": shared,
                    "num_groups": 2,
                    "logical_topology": LAYOUT,
                    "router": router,
                },
            }
        )
    )


@pytest.fixture(scope="session")
def every_router():
    """The model; random in every number, so that no part can be forgotten unnoticed. There is no tokenizer."""
    context = network_context(_config({"type": "switch"}), VOCABULARY, DOMAINS)
    network = PanGuSigma(context)
    for index, router in enumerate(ROUTERS):
        own = replace(context, config=_config(router, shared=2 * (router["type"] == "gshard")))
        block = network.blocks[1 + index]
        block.feed_forward = block.normed_feed_forward.layer = build_sparse_layer(own, index)
    network.routes_by_word = True
    generator = np.random.default_rng(0)
    for parameter in network.trainable_params():
        around = 1.0 if parameter.name.endswith("gamma") else 0.0
        parameter.set_data(Tensor((around + 0.3 * generator.standard_normal(parameter.shape)).astype(np.float32)))
    network.set_train(False)
    return Model(network, context, None, HOMES, None, 0, Runtime(context.collectives))


@pytest.fixture(scope="session")
def run_folder(save_run):
    return save_run({})


@pytest.fixture(scope="session")
def generator(run_folder):
    """Rows go through its graphs two at a time."""
    return Generator.load(run_folder, batch_size=2)
