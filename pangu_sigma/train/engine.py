"""From a configuration to what a run computes with: network, training step, evaluation step."""

import os
from dataclasses import dataclass, replace
from typing import Dict, Iterator, List, Optional, Tuple

import numpy as np

from mindspore import Tensor, dtype, nn

from locmoe_ops.dispatch.base import Dispatcher
from locmoe_ops.routers.centring import value_means
from locmoe_ops.routers.etr import set_expert_choice
from locmoe_ops.routers.gated import set_locality_loss_weight
from locmoe_ops.routers.locmoe import set_context_weight
from locmoe_ops.routers.selection_bias import balance_biases, set_locality_strength
from locmoe_ops.tensor_parallel import TensorGroup, slice_of
from pangu_sigma.checkpoint.state import StateEntry, parameter_entries
from pangu_sigma.config.ascend import flattens, overlap_bucket
from pangu_sigma.config.chips import reads_status
from pangu_sigma.config.derived import (
    experts_per_group,
    layer_routers,
    micro_batch_sequences,
    micro_batches_per_step,
    num_sparse_layers,
    recomputed_parts,
    tokens_per_step,
)
from pangu_sigma.config.schema import Config
from pangu_sigma.data.batch import Batch
from pangu_sigma.data.vocabulary import Vocabulary
from pangu_sigma.model.alike import share_alike_blocks
from pangu_sigma.model.dims import model_dims
from pangu_sigma.model.initialise import initialise
from pangu_sigma.model.inputs import pack_batch
from pangu_sigma.model.objective import Objective
from pangu_sigma.model.pangu_sigma import PanGuSigma, sparse_layers
from pangu_sigma.model.parameter_groups import is_expert_parameter, ordered_parameters
from pangu_sigma.model.recompute import set_recompute
from pangu_sigma.model.sparse import SparseContext, training_dispatcher
from pangu_sigma.runtime.processes import usable_cpus
from pangu_sigma.runtime.runtime import Runtime
from pangu_sigma.train.capacity import CapacityControl
from pangu_sigma.train.evaluation import EvaluationStep, RoutedTokens
from pangu_sigma.train.flat import gradient_exchange
from pangu_sigma.train.gradient_overlap import GradientOverlap
from pangu_sigma.train.graphs import AccumulatedStep, OptimizerStep, OverlappedStep, SingleGraphStep, StepGraph
from pangu_sigma.train.half_copies import HalfCopies
from pangu_sigma.train.local_share import LocalShareControl
from pangu_sigma.train.offloaded_experts import OffloadedExpertOptimizer
from pangu_sigma.train.optimizer_state import OptimizerState
from pangu_sigma.train.overflow import StatusRegister
from pangu_sigma.train.schedule import LossScale
from pangu_sigma.train.statistics import (
    AfterStep,
    ExtraSums,
    Rebalance,
    Recentre,
    RowsOfLayers,
    Statistics,
    balance_update,
    check_row_limit,
)
from pangu_sigma.train.step import (
    Accumulators,
    ApplyStep,
    BatchGradients,
    LastMicroStep,
    MicroStep,
    WholeStep,
)
from pangu_sigma.train.update import StepOutputs, Update


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step reports.

    Attributes:
        sums: over all ranks, by name, see `Statistics.unpack`.
        grad_norm: of the mean gradient over the global batch, before clipping.
        loss_scale: that the step used.
        skipped_steps: steps that overflowed so far.
    """

    sums: Dict[str, np.ndarray]
    grad_norm: float
    loss_scale: float
    skipped_steps: int


class TrainEngine:
    """The network and the graphs that train and evaluate it, sharing parameters and state.

    Args:
        config: of the run.
        runtime: this rank and its collectives.
        words: sizes of the tables that ids look up.
        draw: draw initial weights; False: a checkpoint brings them, see `pangu_sigma.checkpoint.resume`.

    Attributes:
        drawn: whether the weights were drawn here.
        context: what sparse layers were built from.
        network: the model.
        parameters: its trainable ones, in gradient order.
        statistics: layout of the sums.
        update: the compiled update; `adam` and `loss_scale` are its state.
        host: updates the experts, unless the compiled step does.
        capacity, local_share: decide the slots of each step, see `CapacityControl` and `LocalShareControl`.
    """

    def __init__(self, config: Config, runtime: Runtime, words: Vocabulary, draw: bool = True) -> None:
        rows = micro_batch_sequences(config, runtime.topology.data)
        shape = model_dims(config, rows, words.vocab_size, words.domains, TensorGroup(runtime.collectives))
        self.words, self.drawn = words, draw
        self.seed = config.train.seed
        self.context = SparseContext(config, shape, runtime.collectives, words.counts, words.id_nodes, reads_files=draw)
        self.network = PanGuSigma(self.context)
        alike = experts_per_group(config) if config.moe.initial_experts == "copies" else 1
        if draw:
            threads = max(usable_cpus() // runtime.topology.ranks_per_node, 1)
            initialise(self.network, config.train.seed, config.model.init_std, alike, threads)
        set_recompute(self.network, recomputed_parts(config))
        self.parameters = ordered_parameters(self.network.trainable_params(), slice_of)
        # Now: the hooks that overlap gradients put sums of micro-batches into the network, which are no part of a run.
        self._saved = list(self.network.get_parameters())
        self.statistics = Statistics(num_sparse_layers(config), config.moe.num_experts, ExtraSums.of(self.network))
        nominal = tokens_per_step(config)
        self._objective = Objective(self.network, nominal)
        self._micro_batches = micro_batches_per_step(config, runtime.topology.data)
        reads = reads_status(runtime.chip, config.runtime.precision, os.environ)
        self._register = StatusRegister() if reads else None
        self._accumulators = None
        if self._micro_batches > 1:
            self._accumulators = Accumulators(self.parameters, self.statistics.size, overflows=reads)
        # What gradients travel in; the checks see to it that it is the matmuls' type.
        self._wire = None if config.parallel.reduce_precision == "fp32" else shape.compute_dtype
        self._overlap = self._gradient_overlap(config, runtime)
        self.loss_scale = LossScale(config.runtime.loss_scale if config.runtime.precision == "fp16" else None)
        optimizer = replace(config.optimizer, flat=flattens(config, runtime.topology.data))
        exchange = gradient_exchange(
            self.parameters, self.statistics.size, runtime.collectives, optimizer, self._overlap, self._wire
        )
        sum_overflows = runtime.collectives.all_reduce("world", "gradient/overflow") if reads else None
        self.update = Update(
            exchange, self.loss_scale, config.optimizer, nominal, self._after_step(config), sum_overflows
        )
        self.adam = self.update.adam
        host_updates = config.optimizer.expert_state != "device"
        hosted = [p for p in self.parameters if host_updates and is_expert_parameter(p.name)]
        self.host = OffloadedExpertOptimizer(hosted, config.optimizer) if hosted else None
        self.optimizer_state = OptimizerState(self.update, runtime.collectives, self.host)
        # After all that looks for the network's own parameters: copies become parts of it too.
        self._copies = None
        if self._accumulators is not None and shape.compute_dtype != dtype.float32:
            self._copies = HalfCopies(self.network, shape.compute_dtype)
        self._evaluate = EvaluationStep(self._objective)
        self._step = self._new_step()
        self._sparse = sparse_layers(self.network)
        self._capacity, self._bucket = (0, config.moe.capacity.factor), 0  # as configured, which is no measured number
        # By slots: dispatchers of the sparse layers, and the step
        self._variants: Dict[Tuple[int, ...], Tuple[List[Dispatcher], OptimizerStep]] = {
            self._variant(): ([layer.dispatcher for layer in self._sparse], self._step)
        }
        self.capacity = CapacityControl(self.context, len(self._sparse), self.routed_tokens, self.set_capacity)
        self.local_share = LocalShareControl(self.context, len(self._sparse), self.routed_tokens, self.set_far_tier)
        if config.runtime.lazy_inline:  # last: what was put into some blocks tells them apart
            share_alike_blocks(self.network)

    def state(self) -> List[StateEntry]:
        """Everything that a resumed run needs, to be set: weights, hash maps, Adam's moments, counters, loss scale."""
        return [*self._without_moments(), *self.optimizer_state.entries()]

    def saved_state(self) -> List[StateEntry]:
        """The same to be read, as far as this rank writes it (see `pangu_sigma.checkpoint.state.local_tensors`). Every
        rank must call it.
        """
        return [*self._without_moments(), *self.optimizer_state.gathered()]

    def _without_moments(self) -> List[StateEntry]:
        scale, on_host = self.loss_scale, {} if self.host is None else self.host.weights
        measured = [*self.capacity.state(), *self.local_share.state()]
        counters = [self.adam.updates, scale.scale, scale.good, scale.skipped, *measured]
        entries = parameter_entries([*self._saved, *counters])
        return [on_host.get(entry.name, entry) for entry in entries]

    def set_capacity(self, slots: int, factor: float) -> None:
        """Trains with `slots` per (source rank, expert), which capacity factor `factor` gives, from the next step on.

        Slots that were set before need no new graph. All variants of the step share parameters, optimizer state and
        accumulators.
        """
        self._capacity = slots, factor
        self._use_variant()

    def set_far_tier(self, bucket: int) -> None:
        """Trains with the far tier of `SlotRules.far_shares`' place `bucket`, from the next step on; graphs as for
        `set_capacity`.
        """
        self._bucket = bucket
        self._use_variant()

    def _variant(self) -> Tuple[int, ...]:
        """What tells one graph of the step from another: the slots that were measured, and those of both tiers."""
        slots, factor = self._capacity
        if self._sparse and self.context.config.moe.capacity.measured_share is not None:
            rules = self.context.slot_rules
            return slots, *rules.tier_capacities(rules.placement, factor, bucket=self._bucket)
        return (slots,)

    def _use_variant(self) -> None:
        variant = self._variant()
        if variant not in self._variants:
            name = f"/{' '.join(map(str, variant))} slots"
            dispatchers = [
                training_dispatcher(self.context, layer, self._capacity[1], name, self._bucket)
                for layer in range(len(self._sparse))
            ]
            self._variants[variant] = dispatchers, self._new_step()
        dispatchers, self._step = self._variants[variant]
        for layer, dispatcher in zip(self._sparse, dispatchers):
            layer.dispatcher = dispatcher

    def routed_tokens(self, batch: Batch) -> List[RoutedTokens]:
        """What a micro-batch brings to each sparse layer, as in evaluation. Every rank must call it."""
        self._refresh_copies()
        return self._evaluate.routed(self._pack(batch))

    def train_step(self, batches: List[Batch], step: int, learning_rate: float) -> StepResult:
        """One optimizer step.

        Args:
            batches: this rank's micro-batches.
            step: its number, from 1, which seeds dropout and jitter.
            learning_rate: of this step.

        Raises:
            CollectiveError: on all ranks, see `check_row_limit`.
        """
        outputs = self.launch_step(batches, step, learning_rate)
        result = self.read_step(outputs)
        check_row_limit(result.sums, self.context.config.moe.dispatch.ragged_limit, f"step {step}")
        return result

    def launch_step(self, batches: List[Batch], step: int, learning_rate: float) -> StepOutputs:
        """`train_step` without reading its results, which may still be being computed. Where the host updates the
        experts, it waits for their gradients.
        """
        self.network.set_train(True)
        self._refresh_copies()
        rate = Tensor(learning_rate, dtype.float32)
        outputs = self._step(rate, [self._pack(batch, step) for batch in batches])
        if self.host is not None and outputs.host_scalars is not None:
            self.host.update(outputs.host_scalars, outputs.expert_gradients)
        return outputs

    def read_step(self, outputs: StepOutputs) -> StepResult:
        """What a step reports, from its `outputs`, once they have been computed."""
        return StepResult(
            self.statistics.unpack(outputs.statistics.asnumpy()),
            float(outputs.grad_norm.asnumpy()),
            float(outputs.loss_scale.asnumpy()),
            int(outputs.skipped_steps.asnumpy()),
        )

    def set_locality_bias(self, strength: float) -> None:
        """Sets the strength of the routers' local terms, if they have any; 0 turns them off. Needs no other graph."""
        set_locality_strength(self.network, strength)

    def set_locality_loss_weight(self, weight: float) -> None:
        """Sets mu of the routers' locality losses, where it has a schedule. Needs no other graph."""
        set_locality_loss_weight(self.network, weight)

    def set_context_weight(self, weight: float) -> None:
        """Sets the weight of the context beside the routers' codes, if they have one. Needs no other graph."""
        set_context_weight(self.network, weight)

    def set_expert_choice(self, value: float) -> None:
        """Says whether experts choose (1) or tokens (0), where that changes in training. Needs no other graph."""
        set_expert_choice(self.network, value)

    def evaluate(self, batches: List[Batch]) -> np.ndarray:
        """This rank's statistics, summed over its validation batches: <float64>[size], see `Statistics`."""
        self.network.set_train(False)
        self._refresh_copies()
        total = np.zeros(self.statistics.size, np.float64)
        for batch in batches:
            sums, _, _ = self._evaluate(*self._pack(batch))
            total += sums.asnumpy()
        return total

    def graphs(self, batch: Batch) -> Iterator[StepGraph]:
        """The graphs of an optimizer step of micro-batches like `batch`, each set up to be compiled until the next one
        is taken.
        """
        self.network.set_train(True)
        if self._copies is not None:
            yield StepGraph("copies", 1, self._copies.refresh, [])
        yield from self._step.graphs(Tensor(0.0, dtype.float32), self._pack(batch, 1), self._micro_batches)

    def _refresh_copies(self) -> None:
        """Before the network computes: whatever has changed parameters since, an update, a checkpoint, the host."""
        if self._copies is not None:
            self._copies.refresh()

    def _new_step(self) -> OptimizerStep:
        if self._accumulators is None:
            return SingleGraphStep(WholeStep(self._gradients(), self.update))
        fused = self.context.config.runtime.fused.accumulate
        micro = MicroStep(self._gradients(), self._accumulators, self.loss_scale, fused)
        if self._overlap is None:
            return AccumulatedStep(micro, ApplyStep(self._accumulators, self.update))
        last = LastMicroStep(self._gradients(self._overlap), self._accumulators, self.update, self._overlap)
        return OverlappedStep(micro, last, self._overlap)

    def _gradients(self, overlap: Optional[GradientOverlap] = None) -> BatchGradients:
        return BatchGradients(self._objective, self.parameters, self._register, self._copies, overlap)

    def _after_step(self, config: Config) -> Optional[nn.Cell]:
        """What moves the state of the routers that no optimizer touches; None: they have none."""
        router, moves, layers = config.moe.router, [], sparse_layers(self.network)
        balanced = [number for number, layer in enumerate(layers) if balance_biases(layer)]
        if balanced:
            update = balance_update(balance_biases(self.network), router)
            sums = self.statistics.required or self.statistics.assigned
            moves.append(Rebalance(update, sums, RowsOfLayers(balanced, self.statistics.layers)))
        centred = [number for number, layer in enumerate(layers) if value_means(layer)]
        if centred:
            rate = layer_routers(config)[centred[0]].own.centre_rate  # all layers have one
            moves.append(Recentre(value_means(self.network), rate, router.top_k, self.statistics, centred))
        return AfterStep(moves) if len(moves) > 1 else moves[0] if moves else None

    def _gradient_overlap(self, config: Config, runtime: Runtime) -> Optional[GradientOverlap]:
        """Set up to sum gradients early with one micro-batch a step; with several, each step switches it."""
        if not config.parallel.overlap_gradients or runtime.topology.data == 1:
            return None
        of_earlier = None
        if self._accumulators is not None:
            of_earlier = dict(zip([parameter.name for parameter in self.parameters], self._accumulators.gradients))
        overlap = GradientOverlap(self.network, runtime.collectives, of_earlier, overlap_bucket(config), self._wire)
        if of_earlier is None:
            overlap.send(True)
        return overlap

    def _pack(self, batch: Batch, step: Optional[int] = None) -> List[Tensor]:
        """A batch as the graphs take it, for training step `step`, or None: for evaluation."""
        key = (0, 0) if step is None else (self.seed, step)
        return pack_batch(batch, self.words.vocab_size, self.words.domains, key)
