"""Memory against arithmetic by hand on a network of few numbers."""

from dataclasses import replace

import pytest

from pangu_sigma.planner.hardware import HardwareFigure, load_hardware
from pangu_sigma.planner.memory import LayerMemory, layer_activations, layer_memory, peak, rank_memory
from pangu_sigma.planner.parameters import count_parameters

# 8 rows x 12 positions; width 16, 4 heads, 24 inner features.
TOKENS, ROW, SCORES = 96, 96 * 16, 8 * 4 * 12 * 12


@pytest.fixture
def device():
    return load_hardware("910a")


def test_state_follows_from_parameters(make_job, device):
    job = make_job(2, 2, parallel={"expert": 4}, runtime={"precision": "fp16"})
    memory, own = rank_memory(job, device), count_parameters(job).rank
    assert (memory.parameters, memory.optimizer, memory.gradients) == (4 * own, 8 * own, 4 * own)
    matrices = (
        24 * 16 + 2 * 12 * 16 + 3 * 4 * 16 * 16 + 2 * 2 * 24 * 16 + 2 * (2 * 24 * 16 + 24 + 16)
    )  # expert biases have three axes
    assert memory.half_copies == 2 * matrices


def test_shared_and_hosted_state_by_hand(make_job, device):
    """Of two moments and the weights under way a rank has a quarter, of dense parameters, and half, of experts with two
    replicas. The host has weights and moments of all experts of its rank.
    """

    def held(**optimizer):
        memory = rank_memory(make_job(2, 2, parallel={"expert": 2}, optimizer=optimizer), device)
        assert memory.parameters == 4 * (dense + experts)
        return memory.optimizer, memory.host

    dense, experts = 7440 - 1616, 2 * 1616  # see below
    assert held() == (4 * 2 * (dense + experts), 0)
    assert held(zero="data_parallel") == (4 * 3 * (dense // 4 + experts // 2), 0)
    assert held(expert_state="host_lazy") == (4 * 2 * dense, 4 * 3 * experts)
    assert held(zero="data_parallel", expert_state="host_dense") == (4 * 3 * dense // 4, 4 * 3 * experts)


def test_one_rank_shares_nothing(make_job, device):
    whole, alone = (rank_memory(make_job(optimizer={"zero": shard}), device) for shard in ("none", "data_parallel"))
    assert alone == whole


def test_several_micro_batches_need_accumulators(make_job, device):
    one, two = (rank_memory(make_job(train={"micro_batch_size": rows}), device) for rows in (8, 4))
    assert two.gradients == 2 * one.gradients


def test_gradients_of_copies_are_half_as_wide(make_job, device):
    """Beside the accumulators, which are float32: all but those of norms, positions and learned queries."""
    job = make_job(train={"micro_batch_size": 4}, runtime={"precision": "fp16"})
    own, in_float32 = count_parameters(job).rank, 7 * 2 * 16 + 2 * 12 * 16
    assert rank_memory(job, device).gradients == 4 * own + 2 * (own - in_float32) + 4 * in_float32


def test_communicators_are_of_ranks_and_a_purpose(make_job, device):
    """Of 4 ranks on one node, expert parallel: one for tokens and statistics, one for gradients, of experts none, and
    the norm's of the same ranks is the first. Two replicas of experts: a pair for tokens, all ranks for gradients and
    for statistics, the other pair for gradients of experts.
    """
    small = replace(device, memory=replace(device.memory, per_group_mb=HardwareFigure(1.0, source="by hand")))
    none = replace(device, memory=replace(device.memory, per_group_mb=HardwareFigure(0.0, source="by hand")))

    def communicators(expert):
        job = make_job(1, 4, parallel={"expert": expert})
        return (rank_memory(job, small).reserved - rank_memory(job, none).reserved) / 1e6

    assert communicators(4) == pytest.approx(2) and communicators(2) == pytest.approx(4)


def test_dense_layers_by_hand(make_job):
    """float32. Attention: norm's input and output, 4 maps of heads, probabilities. FFN: norm's input and output, inner
    features twice. The query layer also has the final norm's input and its queries.
    """
    layer = 4 * (2 * ROW + 4 * ROW + SCORES + 2 * ROW + 2 * TOKENS * 24)
    found = layer_activations(make_job(model={"dense_layers": 2, "sparse_layers": 0}))
    assert found == [layer, layer, layer + 4 * 2 * ROW]


def test_half_precision_by_hand(make_job):
    """Norms' inputs stay float32, and so do probabilities, of which a copy enters the product."""
    layer = 4 * ROW + 2 * ROW + 4 * 2 * ROW + (4 + 2) * SCORES + 4 * ROW + 2 * (ROW + 2 * TOKENS * 24)
    assert layer_activations(make_job(model={"sparse_layers": 0}, runtime={"precision": "fp16"}))[0] == layer


def test_flash_attention_keeps_no_probabilities(make_job):
    """Of each of its rows of scores the largest and the sum, as eight float32 numbers each."""
    plain, fused = (
        layer_activations(
            make_job(
                model={"hidden_size": 64}, runtime={"precision": "fp16", "device": "ascend", "fused": {"attention": on}}
            )
        )[0]
        for on in (False, True)
    )
    assert plain - fused == (4 + 2) * SCORES - 8 * 4 * 12 * 16 * 4


def test_groups_have_buffers_of_the_size_asked_for(make_job, device):
    """HCCL has two a group, of 200 MB unless told otherwise."""
    default, small = (
        rank_memory(
            make_job(2, 2, parallel={"expert": 4}, runtime={"device": "ascend", "hccl": {"buffer_mb": size}}), device
        )
        for size in (200, 50)
    )
    unset = rank_memory(make_job(2, 2, parallel={"expert": 4}, runtime={"device": "ascend"}), device)
    assert default.reserved == unset.reserved
    assert default.reserved - small.reserved in [groups * 300e6 for groups in range(1, 6)]


def test_sparse_layer_by_hand(make_job):
    """96 x 1.25 / 8 = 15 slots for each of 8 experts: their inputs, inner features twice; results of 96 assignments."""
    found = layer_activations(make_job(model={"dense_layers": 0}))[0]
    attention = 4 * (2 * ROW + 4 * ROW + SCORES)
    assert found == attention + 4 * (2 * ROW + 120 * (16 + 48) + ROW)


@pytest.mark.parametrize("precision, item", [("fp32", 4), ("fp16", 2)])
def test_shared_experts_by_hand(make_job, precision, item):
    """Inner features of two networks of 24, twice, in each of two tensor-parallel ranks a half. Their input is the
    norm's output, of which half precision has a copy. Recomputed, the input alone is left.
    """
    copy = item * ROW if item < 4 else 0
    for tensor in (1, 2):
        inner = 2 * item * TOKENS * 2 * 24 // tensor
        for recompute, expected in (("none", inner + copy), ("all", copy)):
            plain, shared = (
                kept(
                    make_job(
                        1,
                        tensor,
                        moe={"shared_experts": count},
                        runtime={"precision": precision},
                        parallel={"tensor": tensor},
                        train={"recompute": recompute},
                    )
                )[1]
                for count in (0, 2)
            )
            assert shared - plain == expected, (tensor, recompute)


def kept(job):
    return [layer.kept for layer in layer_memory(job)]


def test_layers_that_are_recomputed_keep_the_inputs_of_their_halves(make_job):
    """Of dense layers what both norms read; the query layer also what the final norm reads and what asks. Of experts
    remain the norm's input and output, 120 slots of inputs, and results of 96 assignments.
    """
    row = 4 * ROW
    none = kept(make_job(model={"dense_layers": 2}))
    found = kept(make_job(model={"dense_layers": 2}, train={"recompute": "all"}))
    assert found == [2 * row, 2 * row, row + 2 * row + 4 * 120 * 16 + row, 4 * row]
    assert kept(make_job(model={"dense_layers": 2}, train={"recompute": 1})) == [found[0], *none[1:]]
    assert kept(make_job(model={"dense_layers": 2}, train={"recompute": "sparse"})) == [*none[:2], found[2], none[3]]


def test_attention_that_is_recomputed_keeps_what_its_norm_reads(make_job):
    """Not the norm's output, 4 maps of heads, and probabilities."""
    none, attention = (make_job(train={"recompute": part}) for part in ("none", "attention"))
    lost = [a - b for a, b in zip(kept(none), kept(attention))]
    assert lost == [4 * (ROW + 4 * ROW + SCORES)] * 2 + [4 * (ROW + 4 * ROW + SCORES)]
    half = {"runtime": {"precision": "fp16"}}
    none, attention = (make_job(**half, train={"recompute": part}) for part in ("none", "attention"))
    lost = [a - b for a, b in zip(kept(none), kept(attention))]
    # The query layer keeps what asks in float32, of which attention needs a cast copy alone.
    assert lost == [2 * 5 * ROW + (4 + 2) * SCORES] * 2 + [2 * 5 * ROW + (4 + 2) * SCORES - 2 * ROW]


def test_experts_that_are_recomputed_keep_what_was_sent_to_them(make_job):
    """In fp16, as what goes out: of 48 tokens a rank 8 x 2 slots of each of 4 experts, and half of the inner features,
    before and after the activation, on each of two ranks.
    """
    ranks = {"parallel": {"expert": 2, "tensor": 2}, "runtime": {"precision": "fp16"}}
    none, sparse = (make_job(1, 4, **ranks, train={"recompute": part}) for part in ("none", "sparse"))
    tokens, slots = 48, 4 * 2 * 8
    attention = 2 * tokens * 16 + 4 * 2 * tokens * 16 // 2 + (4 + 2) * SCORES // 2 // 2
    experts = 2 * slots * 2 * 24 // 2
    assert kept(none)[1] - kept(sparse)[1] == attention + experts


def test_one_half_of_a_layer_is_there_again_at_a_time(make_job):
    """Of a dense layer: what its attention keeps, with the feed-forward network; or the attention. The inner features
    decide which is more.
    """
    for inner in (24, 400):
        model = {"dense_layers": 2, "sparse_layers": 0, "ffn_hidden_size": inner}
        layer = layer_memory(make_job(model=model, train={"recompute": "all"}))[0]
        attention, feed_forward = 4 * (6 * ROW + SCORES), 4 * (2 * ROW + 2 * TOKENS * inner)
        assert layer == (2 * 4 * ROW, max(attention, 4 * ROW + feed_forward))
        half = layer_memory(make_job(model=model, train={"recompute": "attention"}))[0]
        assert half == (4 * ROW + feed_forward, max(attention, 4 * ROW + feed_forward))


@pytest.mark.parametrize(
    ("layers", "most"),
    [
        ([(1, 5), (1, 5), (1, 5)], 7),  # the topmost is computed anew while two others keep their input
        ([(1, 9), (1, 5), (1, 2)], 9),  # the lowest is the largest
        ([(1, 5), (1, 5), (5, 5)], 7),  # the topmost keeps everything; or the one below it is computed anew
        ([(5, 5), (5, 5), (5, 5)], 15),
    ],
)
def test_the_most_at_a_time(layers, most):
    assert peak([LayerMemory(*layer) for layer in layers]) == most


def test_a_plan_has_both(make_job, device):
    """As the configuration has it, and with everything recomputed."""
    none, every = (make_job(model={"dense_layers": 3}, train={"recompute": part}) for part in ("none", "all"))
    memory, other = rank_memory(none, device), rank_memory(every, device)
    assert memory.activations == sum(layer_activations(none)) and memory.recomputed == other.activations
    assert other.activations == other.recomputed == peak(layer_memory(every)) < memory.activations
    assert memory.total - memory.total_recomputed == pytest.approx((memory.activations - memory.recomputed) * 1.05)


def test_hardware_may_hold_activations_several_times(make_job, device):
    twice = replace(device, memory=replace(device.memory, activation_factor=HardwareFigure(2.0, source="by hand")))
    one, two = (rank_memory(make_job(), each) for each in (device, twice))
    assert (two.activations, two.recomputed, two.gradients) == (2 * one.activations, 2 * one.recomputed, one.gradients)


def test_tensor_parallelism_divides_what_it_shares(make_job):
    """Heads, inner features; not norms."""
    one, two = (
        layer_activations(make_job(1, ranks, model={"sparse_layers": 0}, parallel={"tensor": ranks}))[0]
        for ranks in (1, 2)
    )
    assert one - two == 4 * (4 * ROW + SCORES + 2 * TOKENS * 24) / 2


def test_buffers_of_the_loss_by_hand(make_job, device):
    """Logits of 24 words in three copies, gradients of inner features."""
    assert rank_memory(make_job(), device).working == 3 * 4 * TOKENS * 24 + 2 * 4 * TOKENS * 24


def test_buffers_of_gradients_by_hand(make_job, device):
    """Of 7440 numbers, 1616 are in experts, which have no replica; 15 statistics travel with the others, and 1 number
    more makes two equal parts for the ranks of a node. Weights of maps, which may be sent early: 3 x 4 x 256 of
    attention, 2 x 2 x 384 of feed-forward networks.
    """
    late = make_job(2, 2, parallel={"expert": 4, "overlap_gradients": False})
    assert rank_memory(late, device).working == 4 * 3 * (7440 - 1616 + 16)
    early = make_job(2, 2, parallel={"expert": 4})
    maps = 3 * 4 * 256 + 2 * 2 * 384
    assert rank_memory(early, device).working == 4 * (maps + 3 * (7440 - 1616 + 16 - maps))
    in_graph = make_job(2, 2, parallel={"expert": 4}, runtime={"device": "ascend"})
    assert rank_memory(in_graph, device).working == 4 * 3 * (7440 - 1616 + 16 - maps)


def test_total_is_the_sum_of_its_parts(make_job, device):
    memory = rank_memory(make_job(2, 2, parallel={"expert": 4}, runtime={"precision": "fp16"}), device)
    parts = (
        memory.parameters
        + memory.optimizer
        + memory.gradients
        + memory.half_copies
        + memory.activations
        + memory.dispatch
        + memory.working
        + memory.margin
        + memory.reserved
    )
    assert memory.total == pytest.approx(parts)
