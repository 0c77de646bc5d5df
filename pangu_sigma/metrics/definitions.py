"""Every metric of `metrics.jsonl` and `summary.json`: its name, which records of which runs have it, and what it is.

Where they are computed: `pangu_sigma.train.metrics` (most), `capacity`, `loop`, `run`. `docs/metrics.md` is made of
this (`python scripts/make_reference.py`); a test fails where a run writes a metric that is not here. A run leaves out
what cannot occur in it (`pangu_sigma.metrics.conditions`): who reads its files has to expect that.
"""

from typing import Dict, FrozenSet, NamedTuple

from pangu_sigma.metrics import conditions as only
from pangu_sigma.metrics.conditions import ALWAYS, Condition, RunFacts, all_of

# The first parts of the tags of token traffic, of gradients, and of split layers
CAUSES = ("all_to_all", "gradient", "tensor")
_STEP, _VALIDATION, _END = "every step", "steps with a validation", "summary.json"
_TRACE, _TRACES = "pangu-sigma trace", "pangu-sigma trace, of two traces"
_INTERVAL, _DIVERGED = "every train.log_interval steps", "summary.json of a run that diverged"
_OF_CAUSE = {
    "all_to_all": "the tokens' way to their experts and back, forward and backward",
    "gradient": "the gradients' sums",
    "tensor": "the sums inside layers that are split over a tensor-parallel group",
}
# Of the causes whose exchanges can run beside computation; those inside split layers are waited for at once.
OVERLAPPING = {"all_to_all": only.TOKENS_OVERLAP, "gradient": only.GRADIENTS_OVERLAP}


class Definition(NamedTuple):
    """What a metric's name stands for.

    Attributes:
        when: the records that have the metric.
        meaning: what it is, in one sentence or two.
        condition: of the runs whose records have it; the others leave it out.
    """

    when: str
    meaning: str
    condition: Condition = ALWAYS

    @property
    def where(self) -> str:
        """Records and condition in one phrase."""
        return f"{self.when}, {self.condition.text}" if self.condition.text else self.when


DEFINITIONS: Dict[str, Definition] = {
    "progress/step": Definition(_STEP, "the optimizer step, from 1"),
    "progress/epoch": Definition(_STEP, "rows drawn so far over the rows of the training data"),
    "progress/tokens": Definition(
        _STEP, "tokens seen: steps so far x tokens of the global batch of this run, padding included"
    ),
    "loss/total": Definition(_STEP, "what is minimised, in nats a token: task + aux + locality"),
    "loss/task": Definition(_STEP, "cross entropy in nats a token, over the tokens of all ranks that count"),
    "loss/aux": Definition(
        _STEP,
        "the routers' load-balancing losses, and z-losses, weighted, summed over layers, as nats a token",
        only.AUX_LOSS,
    ),
    "loss/locality": Definition(
        _STEP,
        "the locality losses (LocMoE Eq. 6), weighted, summed over layers, as nats a token",
        only.LOCALITY_LOSS,
    ),
    "optim/learning_rate": Definition(_STEP, "the learning rate of the step"),
    "optim/grad_norm": Definition(
        _STEP, "norm of the gradient of all parameters on all ranks, before clipping; null where it overflowed"
    ),
    "optim/loss_scale": Definition(_STEP, "the dynamic loss scale", only.FP16),
    "optim/skipped_steps": Definition(_STEP, "steps so far that an overflow kept from changing the weights"),
    "moe/local_fraction": Definition(
        _STEP, "assignments that found a slot on the token's home node, of all that found one", only.HOME_NODES
    ),
    "moe/copies_between_nodes": Definition(
        _STEP,
        "copies of a token that are sent to other nodes, mean over tokens, padding included, and sparse layers: one "
        "for each node with dispatcher node_dedup, one for each assignment with the others; filled slots alone, while "
        "`comm/all_to_all/inter_node(B)` has the empty ones, too",
        only.COPIES,
    ),
    "moe/drop_fraction": Definition(_STEP, "assignments without a slot, of all", only.SLOTS),
    "moe/load_max_over_mean": Definition(
        _STEP, "tokens of the busiest expert over the mean, before drops, mean over layers", only.EXPERTS
    ),
    "moe/max_violation": Definition(
        _STEP,
        "MaxVio: load of the busiest expert over the mean, less 1, before drops, mean over layers; 0 is an even load "
        "(of the step's batch, as in arXiv 2408.15664; `moe/load_max_over_mean` less 1)",
        only.EXPERTS,
    ),
    "moe/min_violation": Definition(
        _STEP,
        "MinVio: 1 less the load of the idlest expert over the mean, before drops, mean over layers; 0 is an even "
        "load, 1 an expert without a token",
        only.EXPERTS,
    ),
    "moe/load_entropy": Definition(
        _STEP,
        "entropy of the experts' shares of the load over its largest value, ln of the number of experts, before drops, "
        "mean over layers; 1 is an even load, 0 one expert that has all",
        only.EXPERTS,
    ),
    "moe/tokens_by_nodes": Definition(
        _STEP,
        "shares of tokens whose experts are on 1, 2, ... different nodes, as chosen, before drops, mean over layers: "
        "one list that ends where `moe.router.top_k` or the nodes do, and adds up to 1",
        only.SEVERAL_NODES,
    ),
    "moe/nodes_per_token": Definition(
        _STEP,
        "the mean of that: different nodes that a token's experts are on, its home or not",
        only.SEVERAL_NODES,
    ),
    "moe/tokens_per_expert": Definition(
        _STEP, "assignments of each expert before drops, over all ranks: one list a sparse layer", only.EXPERTS
    ),
    "moe/undecided_fraction": Definition(
        _STEP,
        "tokens with fewer than `moe.router.top_k` gate values above 0 among the experts of their group, so that the "
        "ReLU of LocMoE's Eq. 2 leaves a choice to `moe.router.locmoe.ties`, of all tokens, mean over layers with such "
        "a router. Gate values are those that enter the ReLU, with noise if there is any. Of router replay: tokens "
        "that the trace does not hold",
        only.UNDECIDED,
    ),
    "moe/local_strength": Definition(_STEP, "the strength of `moe.router.locality_bias` in the step", only.LOCAL_TERM),
    "moe/local_fraction_by_layer": Definition(
        _STEP,
        "`moe/local_fraction` of each sparse layer, bottom up: tokens at home over training, by layer",
        only.HOME_NODES,
    ),
    "moe/drop_fraction_by_layer": Definition(
        _STEP, "`moe/drop_fraction` of each sparse layer, bottom up", all_of(only.SLOTS, only.MIXED)
    ),
    "moe/load_max_over_mean_by_layer": Definition(
        _STEP, "`moe/load_max_over_mean` of each sparse layer, bottom up", only.MIXED
    ),
    "moe/locality_divergence": Definition(
        _STEP,
        "KL(D_c || D_l) of LocMoE's Eq. 6 in nats, mean over layers with a locality loss: `loss/locality` over mu of "
        "the step and over their number (of layers with different mu: weighted by it); not in steps whose mu is 0. A "
        "mu of 1e-9 measures it and all but leaves the weights alone",
        only.LOCALITY_LOSS,
    ),
    "moe/locality_loss_weight": Definition(_STEP, "mu, the weight of the locality loss", only.LOCALITY_SCHEDULE),
    "moe/context_weight": Definition(_STEP, "weight of the context beside codes", only.CONTEXT),
    "moe/expert_choice": Definition(
        _STEP, "1 where experts chose their tokens in the step, 0 where tokens chose", only.EXPERT_CHOICE
    ),
    "moe/capacity_slots": Definition(
        _STEP,
        "slots per (source rank, expert), the same in all sparse layers, before a dispatcher rounds them to its chunks",
        only.BOUND,
    ),
    "moe/capacity_factor": Definition(_STEP, "these slots over the even load", only.BOUND),
    "moe/graphs": Definition(
        _STEP,
        "different slots used so far in the run, each of which is a graph of the training step (one that a "
        "resumed run compiles again is not counted again)",
        only.BOUND,
    ),
    "moe/measured_local_share": Definition(
        _STEP,
        "share of assignments that stay on their node, before drops, of the node and layer with the smallest; as last "
        "measured, and not below that of an even spread",
        only.MEASURED_SHARE,
    ),
    "moe/local_share": Definition(
        _STEP,
        "1 minus the share that the tier between nodes has slots for at capacity factor 1; 1: there is none",
        only.MEASURED_SHARE,
    ),
    "time/step(s)": Definition(
        _STEP,
        "wall clock of rank 0, measuring and compiling included where the step does so; on Ascend, where "
        "train.read_results is not each_step, the mean of the steps that were read together",
    ),
    "time/unix": Definition(
        _STEP,
        "when rank 0 read the step's results: seconds since 1970-01-01 UTC, by its clock. TensorBoard has it as the "
        "time of each point",
    ),
    "time/compute(s)": Definition(
        _STEP,
        "mean over ranks of what is left: step = compute + communication + idle - overlapped. In a "
        "run without it all of the step is, or the backend sees no traffic",
        only.COUNTED,
    ),
    "time/communication(s)": Definition(
        _STEP, "mean over ranks of the time in which something travelled", only.COUNTED
    ),
    "time/overlapped(s)": Definition(
        _STEP, "the part of communication that computation overlapped, mean over ranks", only.COUNTED
    ),
    "time/idle(s)": Definition(
        _STEP, "waiting for other ranks to arrive at a collective, mean over ranks", only.COUNTED
    ),
    "time/slowest_rank": Definition(
        _INTERVAL,
        "the rank whose own computation took longest since the last report; a run's first step, "
        "which compiles, is left out",
        only.COUNTED,
    ),
    "time/slowest_rank/compute(s)": Definition(
        _INTERVAL, "its own computation a step: wall clock without communication and waiting", only.COUNTED
    ),
    "time/median_rank/compute(s)": Definition(_INTERVAL, "the same of the median rank", only.COUNTED),
    "throughput/tokens_per_second": Definition(
        _STEP, "tokens of the global batch, padding included, over `time/step(s)`"
    ),
    "throughput/mfu": Definition(
        _STEP,
        "model FLOPs utilisation: FLOPs of the model for the global batch, forward and backward, over what all devices "
        "do at their peak in `time/step(s)`. FLOPs are those of `pangu-sigma plan`: products alone, two a "
        "multiply-add, backward twice the forward, attention with all S x S scores, experts with the tokens that they "
        "serve (no empty slots), nothing computed twice; the peak is `compute.peak_tflops` of the chip's file in "
        "configs/hardware",
        only.KNOWN_PEAK,
    ),
    "memory/peak(B)": Definition(
        _STEP,
        "the most memory that rank 0 has had since it began, where its tensors are: of MindSpore's memory pool on "
        "Ascend, of its process (resident set) on CPU",
    ),
    "memory/device_peak(B)": Definition(
        _STEP,
        "the most that tensors took of MindSpore's memory pool in the step, on rank 0's device "
        "(`mindspore.runtime.max_memory_allocated`)",
        only.ON_DEVICE,
    ),
    "memory/process_peak(B)": Definition(
        _STEP, "the most memory that rank 0's process has had since it began, in the host (resident set)"
    ),
    "comm/intra_node(B)": Definition(
        _STEP,
        "bytes that all ranks sent inside nodes: tokens, gradients, split layers, statistics, metrics",
        only.INSIDE_NODES,
    ),
    "comm/inter_node(B)": Definition(_STEP, "bytes that all ranks sent between nodes, likewise", only.BETWEEN_NODES),
    **{
        f"time/{cause}(s)": Definition(
            _STEP, f"communication and waiting for it, mean over ranks, of {what}", only.exchanged(cause)
        )
        for cause, what in _OF_CAUSE.items()
    },
    **{
        f"time/{cause}/idle(s)": Definition(
            _STEP, f"the waiting in it, mean over ranks, of {what}", only.exchanged(cause)
        )
        for cause, what in _OF_CAUSE.items()
    },
    **{
        f"time/{cause}/overlapped(s)": Definition(
            _STEP, f"the part that computation overlapped, mean over ranks, of {_OF_CAUSE[cause]}", condition
        )
        for cause, condition in OVERLAPPING.items()
    },
    **{
        f"comm/{cause}/intra_node(B)": Definition(_STEP, f"bytes inside nodes of {what}", only.exchanged_inside(cause))
        for cause, what in _OF_CAUSE.items()
    },
    **{
        f"comm/{cause}/inter_node(B)": Definition(
            _STEP, f"bytes between nodes of {what}", only.exchanged_between(cause)
        )
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
    "valid/local_term_off/loss": Definition(
        _VALIDATION, "the same loss with the local term of the routers at strength 0", only.TERM_OFF
    ),
    "valid/local_term_off/perplexity": Definition(_VALIDATION, "exp of that", only.TERM_OFF),
    "trace/max_violation": Definition(_TRACE, "MaxVio of a layer, over all tokens of the trace"),
    "trace/min_violation": Definition(_TRACE, "MinVio of a layer, likewise"),
    "trace/load_entropy": Definition(
        _TRACE, "entropy of the load of a layer, likewise, over ln of the number of experts"
    ),
    "trace/specialisation": Definition(
        _TRACE,
        "of a layer, the mutual information of a token's domain and its expert over the entropy of the domain: 0 where "
        "every domain uses the experts alike, 1 where no two domains share an expert (so it is with an expert group a "
        "domain); null of one domain. Each of a token's k experts counts",
    ),
    "trace/effective_experts": Definition(
        _TRACE,
        "of a layer and domain, exp of the entropy of its tokens' load: as many experts, used alike, have the same",
    ),
    "trace/tokens_by_nodes": Definition(
        _TRACE, "of a layer, shares of tokens whose experts are on 1, 2, ... different nodes of the run's cluster"
    ),
    "trace/same_expert": Definition(
        _TRACES,
        "of a layer, share of choices in which the second trace has the expert of the same number for the same token: "
        "what is left of the routes between two checkpoints of one run",
    ),
    "trace/matched_expert": Definition(
        _TRACES,
        "the same share where experts of the second trace are matched to those of the first, one to one, so that most "
        "choices agree (Hungarian method): how alike the routes of two seeds are. Matched on every other row, counted "
        "on the rest, as are `trace/same_expert` and `trace/chance`",
    ),
    "trace/chance": Definition(
        _TRACES, "what `trace/matched_expert` would be of two routings with these loads that know nothing of each other"
    ),
    "router": Definition(_END, "`moe.router.type`; with `moe.routers` every router with its layers"),
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


def left_out(facts: RunFacts) -> FrozenSet[str]:
    """Names of the metrics that cannot occur in a run of which these are the `facts`."""
    return frozenset(name for name, definition in DEFINITIONS.items() if not definition.condition.holds(facts))
