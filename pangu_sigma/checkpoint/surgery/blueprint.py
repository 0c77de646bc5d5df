"""A network's parameters by name, with shapes and initial values, without its experts taking room.

It is the network that training builds, seen by one rank of as many as there are experts: of each bank it holds one
expert, and everything else whole.
"""

from dataclasses import replace
from typing import Dict, NamedTuple, Tuple

import numpy as np

from locmoe_ops.collectives.local import AbsentPeers
from locmoe_ops.topology import Topology
from pangu_sigma.config.schema import CapacityConfig, Config, DispatchConfig, ParallelConfig
from pangu_sigma.data.vocabulary import Vocabulary
from pangu_sigma.model.dims import model_dims
from pangu_sigma.model.initialise import initialise
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.model.parameter_groups import is_expert_parameter
from pangu_sigma.model.sparse import SparseContext


class Blueprint(NamedTuple):
    """Attributes: shared, initial values by name of what all experts share; banks, the shape of one expert's part of
    each bank; scalars, single numbers.
    """

    shared: Dict[str, np.ndarray]
    banks: Dict[str, Tuple[int, ...]]
    scalars: Dict[str, float]


def draw_blueprint(config: Config, words: Vocabulary) -> Blueprint:
    """What training of `config` would begin with, gates and hash maps included."""
    experts = config.moe.num_experts
    plain = replace(
        config,
        parallel=ParallelConfig(expert=experts),
        data=replace(config.data, placement="shuffled"),
        moe=replace(config.moe, capacity=CapacityConfig(), dispatch=DispatchConfig()),
    )
    nobody = AbsentPeers(0, Topology(experts, experts, experts))
    network = PanGuSigma(SparseContext(plain, model_dims(plain, 1, words.words, words.domains), nobody, words.counts))
    initialise(network, config.train.seed, config.model.init_std)
    shared, banks, scalars = {}, {}, {}
    for parameter in network.get_parameters():
        if is_expert_parameter(parameter.name):
            banks[parameter.name] = tuple(parameter.shape[1:])
        elif parameter.shape:
            shared[parameter.name] = parameter.asnumpy()
        else:
            scalars[parameter.name] = float(parameter.asnumpy())
    return Blueprint(shared, banks, scalars)
