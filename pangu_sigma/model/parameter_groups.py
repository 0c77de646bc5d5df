"""Which parameters are treated alike: what is an expert, what decays, what is a linear map, and the order of gradients."""

from typing import List, Tuple

from mindspore import Parameter, nn

from locmoe_ops.tensor_parallel import slice_of


def is_expert_parameter(parameter: Parameter) -> bool:
    """True for the parameters of an expert bank: they differ between expert-parallel ranks."""
    return ".experts." in parameter.name


def decays(parameter: Parameter) -> bool:
    """Matrices and embeddings decay; biases and norms do not."""
    return not parameter.name.rsplit(".", 1)[-1].startswith(("b_", "bias", "gamma", "beta"))


def is_map_weight(parameter: Parameter) -> bool:
    """True for the weight of a linear map of attention or of a dense feed-forward network (not for a router's gate)."""
    return parameter.name.endswith(".weight") and ".router." not in parameter.name


def ordered_parameters(network: nn.Cell) -> List[Parameter]:
    """The trainable parameters in the order of every gradient list: first the weights of linear maps, as the backward
    pass comes by them, then other dense parameters, then experts; in the last two decaying ones first, and of these
    those that are held whole.

    Neighbours that are treated alike can be handled by one mapped function, which MindSpore compiles far faster than a
    loop.
    """
    found = network.trainable_params()
    maps = [parameter for parameter in found if is_map_weight(parameter)][::-1]
    rest = [parameter for parameter in found if not is_map_weight(parameter)]
    return maps + sorted(rest, key=lambda parameter: (*group_key(parameter), slice_of(parameter) is not None))


def group_key(parameter: Parameter) -> Tuple[bool, bool]:
    """(in an expert, does not decay): parameters of one key are updated alike."""
    return is_expert_parameter(parameter), not decays(parameter)
