"""How tensors are named in a checkpoint: a parameter's own name, and for an expert's share of one, its global id behind
it.

`blocks.1.feed_forward.experts.w_in@5` is what expert 5 has of the bank's parameter; Adam's moments of it are
`adam_m.blocks.1.feed_forward.experts.w_in@5` and `adam_v....`. The id does not depend on the rank that held the expert.
"""

from typing import Optional, Tuple

MOMENTS = ("adam_m.", "adam_v.")
# What only training has use for: a checkpoint of weights alone leaves it out.
TRAINING_STATE = (*MOMENTS, "optimizer.", "loss_scale.", "capacity.")


def expert_name(parameter: str, expert: int) -> str:
    """The tensor of expert `expert` (global id) out of a bank's parameter."""
    return f"{parameter}@{expert}"


def split_name(name: str) -> Tuple[str, Optional[int]]:
    """The parameter's name and the expert's global id, None where all experts share the tensor."""
    parameter, at, expert = name.rpartition("@")
    return (parameter, int(expert)) if at else (name, None)


def without_moment(name: str) -> Tuple[str, str]:
    """("adam_m." or "adam_v." or "", the name of the weight it belongs to)."""
    prefix = next((moment for moment in MOMENTS if name.startswith(moment)), "")
    return prefix, name[len(prefix) :]


def is_training_state(name: str) -> bool:
    """True for what a resumed run needs beyond the weights: moments, counters, loss scale, measured capacity."""
    return name.startswith(TRAINING_STATE)


def is_set_anew(name: str) -> bool:
    """True for a parameter that a run is given anew, by a schedule for the step's number or by the configuration:
    checkpoints have no such tensor.
    """
    return name.endswith((".locality_loss_weight", ".max_remote_fraction", ".expert_choice"))


CAPACITY_STATE = "capacity.state"
SHARE_STATE = "capacity.measured_share"
