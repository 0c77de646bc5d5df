"""Every metric of `metrics.jsonl` and `summary.json`: its name, when it is there, and what it adds up.

Where they are computed: `pangu_sigma.train.metrics` (most), `capacity`, `loop`, `run`. `docs/metrics.md` is made of
this (`python scripts/make_reference.py`); a test fails where a run writes a metric that is not here.
"""

from typing import Dict, NamedTuple

# The first parts of the tags of token traffic, of gradients, and of split layers
CAUSES = ("all_to_all", "gradient", "tensor")
_STEP, _VALIDATION, _END = "every step", "steps with a validation", "summary.json"
_DIVERGED = "summary.json of a run that diverged"
_OFF = "validations of a run with a local term, unless moe.evaluation_rules is none"
_BOUND = "moe.capacity.mode critical, adaptive"
_EXPERTS = "every step, with experts"
_SHARE = "every step of a run with moe.capacity.measured_share, unless nothing can leave its node"
_ON_DEVICE = "every step on Ascend"
_KNOWN_PEAK = "every step on Ascend, where the chip has a hardware file with the peak of runtime.precision"
_COMPARED = "every train.log_interval steps, several ranks, backend tcp"
_OF_CAUSE = {
    "all_to_all": "the tokens' way to their experts and back, forward and backward",
    "gradient": "the gradients' sums",
    "tensor": "the sums inside layers that are split over a tensor-parallel group",
}


class Definition(NamedTuple):
    """What a metric's name stands for.

    Attributes:
        when: the records that have the metric.
        meaning: what it is, in one sentence or two.
    """

    when: str
    meaning: str


DEFINITIONS: Dict[str, Definition] = {
    "progress/step": Definition(_STEP, "the optimizer step, from 1"),
    "progress/epoch": Definition(_STEP, "rows drawn so far over the rows of the training data"),
    "progress/tokens": Definition(
        _STEP, "tokens seen: steps so far x tokens of the global batch of this run, padding included"
    ),
    "loss/total": Definition(_STEP, "what is minimised, in nats a token: task + aux + locality"),
    "loss/task": Definition(_STEP, "cross entropy in nats a token, over the tokens of all ranks that count"),
    "loss/aux": Definition(_STEP, "the routers' load-balancing losses, weighted, summed over layers, as nats a token"),
    "loss/locality": Definition(
        _STEP, "the locality losses (LocMoE Eq. 6), weighted, summed over layers, as nats a token"
    ),
    "optim/learning_rate": Definition(_STEP, "the learning rate of the step"),
    "optim/grad_norm": Definition(
        _STEP, "norm of the gradient of all parameters on all ranks, before clipping; null where it overflowed"
    ),
    "optim/loss_scale": Definition(_STEP, "the dynamic loss scale (1 without fp16)"),
    "optim/skipped_steps": Definition(_STEP, "steps so far that an overflow kept from changing the weights"),
    "moe/local_fraction": Definition(
        _EXPERTS, "assignments that found a slot on the token's home node, of all that found one"
    ),
    "moe/drop_fraction": Definition(_EXPERTS, "assignments without a slot, of all"),
    "moe/load_max_over_mean": Definition(
        _EXPERTS, "tokens of the busiest expert over the mean, before drops, mean over layers"
    ),
    "moe/tokens_per_expert": Definition(
        _EXPERTS, "assignments of each expert before drops, over all ranks: one list a sparse layer"
    ),
    "moe/undecided_fraction": Definition(
        "every step, with router locmoe",
        "tokens with fewer than `moe.router.top_k` gate values above 0 among the experts of their group, so that the "
        "ReLU of LocMoE's Eq. 2 leaves a choice to `moe.router.locmoe.ties`, of all tokens, mean over layers. Gate "
        "values are those that enter the ReLU, with noise if there is any; 0 where `rectify` is false",
    ),
    "moe/local_strength": Definition(
        "every step of a run with a local term", "the strength of `moe.router.local_term` in the step"
    ),
    "moe/local_fraction_by_layer": Definition(
        _EXPERTS, "`moe/local_fraction` of each sparse layer, bottom up: tokens at home over training, by layer"
    ),
    "moe/locality_divergence": Definition(
        "every step of a run whose router has a locality loss of a weight mu above 0",
        "KL(D_c || D_l) of LocMoE's Eq. 6 in nats, mean over layers: `loss/locality` over mu of the step and over the "
        "number of layers. A mu of 1e-9 measures it and all but leaves the weights alone",
    ),
    "moe/locality_loss_weight": Definition(
        "every step of a run with moe.router.locality_loss.initial_weight", "mu, the weight of the locality loss"
    ),
    "moe/context_weight": Definition(
        "every step of a run with moe.router.locmoe.context_weight above 0", "weight of the context beside codes"
    ),
    "moe/capacity_slots": Definition(
        _BOUND,
        "slots per (source rank, expert), the same in all sparse layers, before a dispatcher rounds them to its chunks",
    ),
    "moe/capacity_factor": Definition(_BOUND, "these slots over the even load"),
    "moe/graphs": Definition(
        _BOUND,
        "different slots used so far in the run, each of which is a graph of the training step (one that a "
        "resumed run compiles again is not counted again)",
    ),
    "moe/measured_local_share": Definition(
        _SHARE,
        "share of assignments that stay on their node, before drops, of the node and layer with the smallest; as last "
        "measured, and not below that of an even spread",
    ),
    "moe/local_share": Definition(
        _SHARE, "1 minus the share that the tier between nodes has slots for at capacity factor 1; 1: there is none"
    ),
    "time/step(s)": Definition(
        _STEP,
        "wall clock of rank 0, measuring and compiling included where the step does so; on Ascend, where "
        "train.read_results is not each_step, the mean of the steps that were read together",
    ),
    "time/compute(s)": Definition(
        _STEP, "mean over ranks of what is left: step = compute + communication + idle - overlapped"
    ),
    "time/communication(s)": Definition(_STEP, "mean over ranks of the time in which something travelled"),
    "time/overlapped(s)": Definition(_STEP, "the part of communication that computation overlapped, mean over ranks"),
    "time/idle(s)": Definition(_STEP, "waiting for other ranks to arrive at a collective, mean over ranks"),
    "time/slowest_rank": Definition(
        _COMPARED,
        "the rank whose own computation took longest since the last report; a run's first step, "
        "which compiles, is left out",
    ),
    "time/slowest_rank/compute(s)": Definition(
        _COMPARED, "its own computation a step: wall clock without communication and waiting"
    ),
    "time/median_rank/compute(s)": Definition(_COMPARED, "the same of the median rank"),
    "throughput/tokens_per_second": Definition(
        _STEP, "tokens of the global batch, padding included, over `time/step(s)`"
    ),
    "throughput/mfu": Definition(
        _KNOWN_PEAK,
        "model FLOPs utilisation: FLOPs of the model for the global batch, forward and backward, over what all devices "
        "do at their peak in `time/step(s)`. FLOPs are those of `pangu-sigma plan`: products alone, two a "
        "multiply-add, backward twice the forward, attention with all S x S scores, experts with the tokens that they "
        "serve (no empty slots), nothing computed twice; the peak is `compute.peak_tflops` of the chip's file in "
        "configs/hardware",
    ),
    "memory/device_peak(B)": Definition(
        _ON_DEVICE,
        "the most that tensors took of MindSpore's memory pool in the step, on rank 0's device "
        "(`mindspore.runtime.max_memory_allocated`)",
    ),
    "memory/process_peak(B)": Definition(
        _STEP, "the most memory that rank 0's process has had since it began, in the host (resident set)"
    ),
    "comm/intra_node(B)": Definition(
        _STEP, "bytes that all ranks sent inside nodes: tokens, gradients, split layers, statistics, metrics"
    ),
    "comm/inter_node(B)": Definition(_STEP, "bytes that all ranks sent between nodes, likewise"),
    **{
        f"time/{cause}(s)": Definition(_STEP, f"communication and waiting for it, mean over ranks, of {what}")
        for cause, what in _OF_CAUSE.items()
    },
    **{
        f"time/{cause}/idle(s)": Definition(_STEP, f"the waiting in it, mean over ranks, of {what}")
        for cause, what in _OF_CAUSE.items()
    },
    **{
        f"time/{cause}/overlapped(s)": Definition(
            _STEP, f"the part that computation overlapped, mean over ranks, of {what}"
        )
        for cause, what in _OF_CAUSE.items()
    },
    **{
        f"comm/{cause}/intra_node(B)": Definition(_STEP, f"bytes inside nodes of {what}")
        for cause, what in _OF_CAUSE.items()
    },
    **{
        f"comm/{cause}/inter_node(B)": Definition(_STEP, f"bytes between nodes of {what}")
        for cause, what in _OF_CAUSE.items()
    },
    "valid/loss": Definition(
        _VALIDATION,
        "task loss in nats a token on the fixed validation rows, the model as it is trained; with moe.evaluation_rules "
        "none, without local term, cap on remote choices and drops",
    ),
    "valid/perplexity": Definition(
        _VALIDATION, "exp of `valid/loss`; null where that is beyond float64: the run diverged"
    ),
    "valid/local_term_off/loss": Definition(_OFF, "the same loss with the local term of the routers at strength 0"),
    "valid/local_term_off/perplexity": Definition(_OFF, "exp of that"),
    "router": Definition(_END, "`moe.router.type`"),
    "status": Definition(_END, "finished, or diverged: the run ended with status 1, see `train.divergence_patience`"),
    "progress/diverged_step": Definition(_DIVERGED, "the first of the steps for which the run ended"),
    "progress/last_usable_step": Definition(_DIVERGED, "the last step before with a usable loss; 0: none"),
    "loss/last_usable": Definition(_DIVERGED, "its `loss/task`; null: none"),
    "code": Definition(
        _END, "12 digits of a hash of this project's Python files as the run, or its last part after a resume, began"
    ),
    "unigram_perplexity": Definition(
        _END,
        "perplexity of the training text's word frequencies on the validation rows: the line that any "
        "trained model must beat",
    ),
    "time/checkpoint_stall(s)": Definition(
        _END, "time in which training waited for checkpoints, rank 0, the whole run"
    ),
    "time/checkpoint_writing(s)": Definition(_END, "time in which rank 0 wrote checkpoints, the whole run"),
}
