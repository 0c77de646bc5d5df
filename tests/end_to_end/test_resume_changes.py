"""Every configuration key at a resumption: a run that may resume with another value continues to its summary, and one
that may not is told the key and both values.
"""

import json
import shutil

import pytest
import yaml

from pangu_sigma.cli.main import main
from pangu_sigma.config.load import config_from_dict, to_dict

# What a run is resumed with: overrides by a name. What does not exclude each other comes together, as each run
#     compiles.
FREE = {
    "numbers of optimizer and losses, dropout, seed, log, checkpoints, deadlines": (
        "optimizer.learning_rate=0.01",
        "optimizer.end_learning_rate=0.001",
        "optimizer.warmup_steps=2",
        "optimizer.beta1=0.7",
        "optimizer.beta2=0.9",
        "optimizer.epsilon=1e-7",
        "optimizer.expert_epsilon=1e-19",
        "optimizer.weight_decay=0.1",
        "optimizer.clip_norm=null",
        "model.embedding_dropout=0.1",
        "model.attention_dropout=0.1",
        "model.hidden_dropout=0.1",
        "train.seed=2",
        "train.eval_rows=4",
        "train.eval_interval=1",
        "train.log_interval=1",
        "train.straggler_margin=0.1",
        "train.cosines=true",
        "train.divergence_patience=3",
        "checkpoint.interval=1",
        "checkpoint.keep_last=1",
        "checkpoint.keep_every=3",
        "checkpoint.asynchronous=false",
        "moe.router.locmoe.aux_loss_weight=0.1",
        "moe.router.locmoe.locality_loss_weight=0.1",
        "moe.router.locmoe.locality_smoothing=0.2",
        "moe.router.locality_loss={initial_weight: 0.1, start_step: 2, warmup_steps: 1}",
        "moe.router.locmoe.normalise=token",
        "moe.router.locmoe.value_scale=2.0",
        "moe.router.locmoe.rectify=false",
        "parallel.overlap_gradients=false",
        "parallel.ranks_per_node=1",
        "parallel.nodes=1",
        "runtime.join_timeout=9",
        "runtime.collective_timeout=9",
        "runtime.device=cpu",
        "runtime.backend=tcp",
        "train.tensorboard=true",
        "train.profile=[3, 3]",
        "train.read_results=next_step",
        "optimizer.flat=true",
    ),
    "linear decay, experts' optimizer on the host, rows, sampling, chunks, noise, factors": (
        "optimizer.schedule=linear",
        "optimizer.decay_steps=9",
        "optimizer.expert_state=host_dense",
        "train.global_batch_size=6",
        "train.micro_batch_size=3",
        "data.mixing=proportional",
        "data.reset_at_document_end=false",
        "moe.dispatch.chunks=2",
        "moe.router.statistics=rank",
        "moe.router.locmoe.ties=noise",
        "moe.router.locmoe.noise_scale=0.1",
        "moe.capacity.factor=0.5",
        "moe.capacity.evaluation_factor=1.0",
    ),
    "no decay, idle experts stay, shards, hierarchical, placed with domains, undecided by the value": (
        "optimizer.schedule=constant",
        "optimizer.expert_state=host_lazy",
        "optimizer.zero=data_parallel",
        "moe.dispatch.type=hierarchical",
        "moe.dispatch.chunks=2",
        "moe.capacity.local_share=0.5",
        "data.placement=domain_by_node",
        "moe.expert_placement=node_grouped",
        "moe.router.locmoe.ties=unrectified",
    ),
    "ragged, experts placed, gate weights unused, domains weighted, more steps": (
        "moe.dispatch.type=ragged",
        "moe.dispatch.ragged_limit=4.0",
        "moe.expert_placement=node_grouped",
        "moe.scale_by_gate=false",
        "moe.initial_experts=copies",
        "data.mixing=weighted",
        "data.weights={one: 1.0, two: 3.0}",
        "train.steps=4",
    ),
    "two experts a token, drops by weight, picks anew, another cluster, no rules in evaluation": (
        "moe.evaluation_rules=none",
        "moe.router.top_k=2",
        "moe.dispatch.drop_priority=weight",
        "moe.dispatch.overflow=repick",
        "moe.logical_topology={world_size: 2, ranks_per_node: 1, expert: 2}",
    ),
    "stop": (
        "train.steps=9",
        "train.stop_after=3",
    ),
    "share that is measured to leave": (
        "moe.dispatch.type=hierarchical",
        "moe.capacity.measured_share={interval: 1, buckets: 2, hysteresis: 0.1}",
    ),
    "profile of steps that are done": ("train.profile=[1, 2]",),
    "critical": (
        "moe.capacity.mode=critical",
        "moe.capacity.form=exp",
        "moe.capacity.delta_statistic=quantile",
        "moe.capacity.quantile=0.9",
        "moe.capacity.estimate_steps=2",
    ),
    "adaptive": (
        "moe.capacity.mode=adaptive",
        "moe.capacity.interval=1",
        "moe.capacity.buckets=3",
        "moe.capacity.hysteresis=0.2",
        "moe.capacity.minimum_factor=0.5",
        "moe.capacity.maximum_factor=2.0",
    ),
    "fp16": (
        "runtime.precision=fp16",
        "runtime.loss_scale={initial: 1024, growth_interval: 1, minimum: 2}",
    ),
}
# Further cases, of runs that began with something else than the defaults: what they began with, and what they
# resume with.
BEGUN = {
    "critical to factor": (("moe.capacity.mode=critical",), ("moe.capacity.mode=factor",)),
    "critical to adaptive": (
        ("moe.capacity.mode=critical",),
        ("moe.capacity.mode=adaptive", "moe.capacity.interval=1"),
    ),
    "adaptive to critical": (
        ("moe.capacity.mode=adaptive", "moe.capacity.interval=1"),
        ("moe.capacity.mode=critical", "moe.capacity.interval=100"),
    ),
    "other buckets": (
        ("moe.capacity.mode=adaptive", "moe.capacity.interval=1"),
        ("moe.capacity.buckets=2", "moe.capacity.maximum_factor=0.5"),
    ),
    "bias to margin": (
        ("moe.router.locality_bias.kind=bias",),
        (
            "moe.router.locality_bias={kind: margin, strength: 0.5, initial_strength: 0.2, start_step: 2, "
            "warmup_steps: 2}",
        ),
    ),
    "local term off": (("moe.router.locality_bias.kind=bias",), ("moe.router.locality_bias.kind=none",)),
    "balance": (("moe.router.balance_rate=0.01",), ("moe.router.balance_rate=0.02",)),
    "fp16 to fp32": (("runtime.precision=fp16",), ("runtime.precision=fp32",)),
    "ragged to flat": (("moe.dispatch.type=ragged",), ("moe.dispatch.type=flat",)),
    "divergence": (
        ("moe.num_groups=1", "data.placement=domain_by_node"),
        ("moe.router.locmoe.divergence_loss_weight=0.1",),
    ),
    "context of codes": (
        ("moe.router.locmoe.gate_input=code", "moe.router.locmoe.context_weight=0.1"),
        (
            "moe.router.locmoe.context_weight=0.3",
            "moe.router.locmoe.context_start_step=2",
            "moe.router.locmoe.context_warmup_steps=2",
        ),
    ),
    "jitter": (("moe.router.type=switch",), ("moe.router.switch.jitter=0.1", "moe.router.switch.aux_loss_weight=0.1")),
    "gshard": (("moe.router.type=gshard", "moe.router.top_k=2"), ("moe.router.gshard.aux_loss_weight=0.1",)),
    "faster_moe": (
        ("moe.router.type=faster_moe",),
        ("moe.router.faster_moe.max_remote_fraction=0.5", "moe.router.faster_moe.aux_loss_weight=0.1"),
    ),
    "ta_moe": (
        ("moe.router.type=ta_moe",),
        ("moe.router.ta_moe.bandwidth_ratio=2", "moe.router.ta_moe.aux_loss_weight=0.1"),
    ),
    "etr": (
        ("moe.router.type=etr", "moe.dispatch.drop_priority=weight"),
        (
            "moe.router.etr.temperature=0.2",
            "moe.router.etr.aux_loss_weight=0.1",
            "moe.router.etr.locality_loss_weight=0.1",
            "moe.router.etr.locality_smoothing=0.2",
            "moe.router.etr.expert_choice_start_step=1",
        ),
    ),
    "topk": (
        ("moe.router.type=topk", "moe.router.top_k=2", "moe.router.balance.kind=sign"),
        (
            "moe.router.balance.rate=0.1",
            "moe.router.topk.score_function=sigmoid",
            "moe.router.topk.normalise_weights=true",
            "moe.router.topk.weight_scale=2.0",
            "moe.router.topk.aux_loss_weight=0.1",
            "moe.router.topk.sequence_loss_weight=0.1",
            "moe.router.topk.z_loss_weight=0.1",
        ),
    ),
    "balance by a controller": (
        ("moe.router.type=topk", "moe.router.balance.kind=pid"),
        ("moe.router.balance.rate=0.1", "moe.router.balance.proportional=0.1", "moe.router.balance.derivative=0.1"),
    ),
    "balance by quantiles": (
        ("moe.router.type=topk", "moe.router.balance.kind=quantile"),
        ("moe.router.balance.bins=50",),
    ),
    "node_limited": (
        ("moe.router.type=node_limited", "moe.router.top_k=2"),
        (
            "moe.router.node_limited.max_nodes=2",
            "moe.router.node_limited.node_groups=2",
            "moe.router.node_limited.score_function=softmax",
            "moe.router.node_limited.normalise_weights=false",
            "moe.router.node_limited.weight_scale=2.0",
            "moe.router.node_limited.aux_loss_weight=0.1",
            "moe.router.node_limited.sequence_loss_weight=0.1",
            "moe.router.node_limited.z_loss_weight=0.1",
        ),
    ),
    "moge": (
        ("moe.router.type=moge", "moe.router.top_k=2"),
        (
            "moe.router.moge.device_groups=2",
            "moe.router.moge.score_function=sigmoid",
            "moe.router.moge.normalise_weights=true",
            "moe.router.moge.weight_scale=2.0",
            "moe.router.moge.aux_loss_weight=0.1",
            "moe.router.moge.sequence_loss_weight=0.1",
            "moe.router.moge.z_loss_weight=0.1",
        ),
    ),
    "smile": (
        ("moe.router.type=smile",),
        ("moe.router.smile.node_loss_weight=0.1", "moe.router.smile.expert_loss_weight=0.1"),
    ),
    "c2r": (("moe.router.type=c2r",), ("moe.router.c2r.aux_loss_weight=0.1",)),
    "gate of a hash": (
        ("moe.router.type=hash", "moe.router.top_k=2", "moe.router.hash.weights=gate"),
        ("moe.router.hash.renormalise=false", "moe.router.hash.scale=2.0"),
    ),
    "the library's cap": (
        ("moe.router.type=faster_moe", "moe.router.top_k=2"),
        ("moe.router.faster_moe.rule=fastmoe",),
    ),
    "room for copies": (
        ("moe.router.type=topk", "moe.router.top_k=2", "moe.dispatch.type=node_dedup"),
        ("moe.capacity.node_share=0.7",),
    ),
}
# What is refused: what the run began with beyond the defaults, the override, and the key and both values as they are
# told.
REFUSED = [
    ((), "model.hidden_size=32", "model.hidden_size is 32", "trained with 16"),
    ((), "model.num_heads=4", "model.num_heads is 4", "trained with 2"),
    ((), "model.ffn_hidden_size=32", "model.ffn_hidden_size is 32", "trained with null"),
    ((), "model.dense_layers=1", "model.dense_layers is 1", "trained with 0"),
    ((), "model.sparse_layers=2", "model.sparse_layers is 2", "trained with 1"),
    ((), "model.sparse_query_layer=true", "model.sparse_query_layer is true", "trained with false"),
    ((), "model.sequence_length=16", "model.sequence_length (16)", "(32)"),
    ((), "model.vocab_size=999", "model.vocab_size is 999", "trained with null"),
    ((), "model.domain_embeddings=true", "model.domain_embeddings is true", "trained with false"),
    ((), "model.activation=relu", "model.activation is relu", "trained with gelu"),
    ((), "model.init_std=0.1", "model.init_std is 0.1", "trained with 0.02"),
    ((), "model.layer_norm_epsilon=1e-4", "model.layer_norm_epsilon is 0.0001", "trained with 1e-05"),
    ((), "model.final_norm=after_query", "model.final_norm is after_query", "trained with before_query"),
    ((), "moe.num_experts=8", "moe.num_experts is 8", "trained with 4"),
    ((), "moe.num_groups=1", "moe.num_groups is 1", "trained with 2"),
    ((), "moe.domain_groups=[1, 0]", "moe.domain_groups is (1, 0)", "trained with null"),
    ((), "moe.router.type=switch", "moe.router.type is switch", "trained with locmoe"),
    ((), "moe.router.locmoe.gate=dense", "moe.router.locmoe.gate is dense", "trained with grap"),
    ((), "moe.router.locmoe.gate_input=code", "moe.router.locmoe.gate_input is code", "trained with hidden"),
    ((), "moe.router.locmoe.centre_rate=0.5", "moe.router.locmoe.centre_rate is 0.5", "trained with 0.0"),
    (("moe.router.type=smile",), "moe.router.smile.num_nodes=2", "smile.num_nodes is 2", "trained with 1"),
    (("moe.router.type=c2r",), "moe.router.c2r.num_devices=2", "c2r.num_devices is 2", "trained with null"),
    ((), "moe.router.locmoe.blocks=by_layer", "moe.router.locmoe.blocks is by_layer", "trained with contiguous"),
    (
        ("moe.router.type=hash",),
        "moe.router.hash.balance=frequency",
        "moe.router.hash.balance is frequency",
        "trained with uniform",
    ),
    (
        ("moe.router.locmoe.gate_input=code",),
        "moe.router.locmoe.context_weight=0.3",
        "moe.router.locmoe.context_weight is 0.3",
        "trained with 0.0",
    ),
    ((), "moe.router.balance_rate=0.01", "moe.router.balance_rate is 0.01", "trained with 0.0"),
    (
        ("moe.router.balance_rate=0.01",),
        "moe.router.balance_rate=0.0",
        "moe.router.balance_rate is 0.0",
        "trained with 0.01",
    ),
    ((), "moe.router.locality_bias.kind=bias", "moe.router.locality_bias.kind is bias", "trained with none"),
    ((), "moe.router.locality_bias.kind=margin", "moe.router.locality_bias.kind is margin", "trained with none"),
    (
        ("moe.router.balance_rate=0.01", "moe.router.locality_bias.kind=bias"),
        "moe.router.locality_bias.kind=none",
        "moe.router.locality_bias.kind is none",
        "trained with bias",
    ),
    (
        ("moe.router.type=topk", "moe.router.balance.kind=sign"),
        "moe.router.balance.kind=pid",
        "moe.router.balance.kind is pid",
        "trained with sign",
    ),
    (
        ("moe.router.type=hash", "moe.router.top_k=2", "moe.router.hash.weights=gate"),
        "moe.router.hash.score=sigmoid",
        "hash.score is sigmoid",
        "trained with sqrt_softplus",
    ),
    (
        ("moe.router.type=hash", "moe.router.top_k=2"),
        "moe.router.hash.weights=gate",
        "hash.weights is gate",
        "trained with equal",
    ),
    ((), "moe.shared_experts=1", "moe.shared_experts is 1", "trained with 0"),
    ((), "moe.routers=[{layers: [0], type: switch}]", "moe.routers[0].type is switch", "trained with locmoe"),
    ((), "train.steps=1", "train.steps (1)", "at step 2"),
]
# Keys that need other ranks, a device or a library, and those that say what a run resumes from or where it is.
ELSEWHERE = {
    "moe.router.c2r.table",
    "moe.router.c2r.partners",
    "moe.router.hash.map",
    "moe.router.replay.trace",  # files
    "parallel.expert",
    "parallel.tensor",
    "moe.dispatch.group_wise",  # tests/distributed/test_checkpoints.py
    "parallel.all_to_all",
    "parallel.bucket_mb",
    "parallel.reduce_precision",  # how ranks exchange: no part of what a run is
    "runtime.mode",  # with train.recompute, which asks for graphs: the last test of this file
    "train.recompute",
    "runtime.compile_cache",
    "runtime.lazy_inline",  # how graphs are compiled: no part of what a run is
    "train.tracker",
    "train.output_dir",
    "checkpoint.resume",
    "checkpoint.initial",
    "data.path",
    "runtime.jit_level",
    "runtime.chip",
    "runtime.deterministic",  # with runtime.hccl, memory and fused: of Ascend
}
ELSEWHERE_BELOW = ("data.prepare.", "runtime.hccl.", "runtime.memory.", "runtime.fused.")


def leaves(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_key_is_in_a_case():
    """A new key has to be decided on."""
    tried = [override for overrides in FREE.values() for override in overrides]
    tried += [override for _, overrides in BEGUN.values() for override in overrides] + [
        override for _, override, _, _ in REFUSED
    ]
    named = set()
    for override in tried:
        key, value = override.split("=", 1)
        named |= (
            {f"{key}.{name}" for name in yaml.safe_load(value)}
            if value.startswith("{")
            and key not in ("moe.logical_topology", "moe.capacity.measured_share", "data.weights")  # null, or all
            else {key}
        )
    missing = (
        {key for key in leaves(to_dict(config_from_dict({}))) if not key.startswith(ELSEWHERE_BELOW)}
        - named
        - ELSEWHERE
    )
    assert not missing


@pytest.fixture(scope="module")
def begun(tiny_data, tmp_path_factory):
    """`begun(overrides)`: the folder of a run of three steps that was cut off at the second; the summary is of the last
    two.
    """
    made = {}
    base = {
        "model": {"hidden_size": 16, "num_heads": 2, "dense_layers": 0, "sparse_layers": 1, "sequence_length": 32},
        "moe": {"num_experts": 4, "num_groups": 2},
        "data": {"path": str(tiny_data)},
        "optimizer": {"warmup_steps": 1},
        "runtime": {"mode": "pynative"},
        "checkpoint": {"interval": 2},
        "train": {"steps": 3, "global_batch_size": 2, "eval_rows": 0, "cosines": False, "log_interval": 100},
    }

    def run(overrides):
        if overrides not in made:
            folder = tmp_path_factory.mktemp("begun")
            (folder / "base.yaml").write_text(
                yaml.safe_dump({**base, "train": {**base["train"], "output_dir": str(folder / "run")}})
            )
            assert (
                main(["train", str(folder / "base.yaml"), *as_options(overrides), "--set", "train.stop_after=2"]) == 0
            )
            made[overrides] = folder
        return made[overrides]

    return run


def as_options(overrides):
    return [word for override in overrides for word in ("--set", override)]


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


CASES = {**{name: ((), overrides) for name, overrides in FREE.items()}, **BEGUN}


@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_on_with_another_value_to_its_summary(begun, tmp_path, case):
    first, changed = CASES[case]
    folder = begun(first)
    out = tmp_path / "run"
    options = as_options((*first, "train.stop_after=null", *changed, f"train.output_dir={out}"))
    shutil.copytree(folder / "run", out)  # the run is that of other cases, too
    assert main(["train", str(folder / "base.yaml"), *options, "--set", "checkpoint.resume=auto"]) == 0
    records = [strict(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    stopped = any(override.startswith("train.stop_after") for override in changed)
    assert [record["progress/step"] for record in records][:3] == [1, 2, 3]
    assert (out / "summary.json").exists() != stopped
    if not stopped:
        summary = strict((out / "summary.json").read_text())
        assert [name for name, value in summary.items() if value is None] in (
            [],
            ["unigram_perplexity"],
        )  # without validation rows
        missing = set(records[-1]) - set(summary)
        assert not missing


@pytest.mark.parametrize("first, override, now, before", REFUSED)
def test_a_refusal_names_the_key_and_both_values(begun, tmp_path, capsys, first, override, now, before):
    folder = begun(first)
    out, step = tmp_path / "run", folder / "run" / "checkpoints" / "step_2"
    options = as_options(
        (*first, override, "optimizer.warmup_steps=1", f"train.output_dir={out}", f"checkpoint.resume={step}")
    )
    capsys.readouterr()
    assert main(["train", str(folder / "base.yaml"), *options]) == 2
    told = capsys.readouterr().err
    assert now in told and before in told and told.count("\n") == 1
    assert not out.exists()


def test_a_loss_scale_begins_with_fp16_and_ends_with_it(begun, tmp_path):
    """fp32 has a scale of 1, from which fp16 would take thousands of steps to one that is of use; its records have
    none.
    """

    def scales(first, changed):
        step, out = begun(first) / "run" / "checkpoints" / "step_2", tmp_path / changed[-4:]
        options = as_options(
            (changed, "runtime.loss_scale.initial=4096", f"train.output_dir={out}", f"checkpoint.resume={step}")
        )
        assert main(["train", str(begun(first) / "base.yaml"), *options]) == 0
        return [strict(line).get("optim/loss_scale") for line in (out / "metrics.jsonl").read_text().splitlines()]

    assert scales((), "runtime.precision=fp16") == [4096.0]
    assert scales(("runtime.precision=fp16",), "runtime.precision=fp32") == [None]


def test_a_run_goes_on_compiled_and_recomputed(begun, tmp_path):
    """Last, since after graphs of the same process PyNative takes fewer kinds of indices."""
    out, step = tmp_path / "run", begun(()) / "run" / "checkpoints" / "step_2"
    options = as_options(
        ("runtime.mode=graph", "train.recompute=all", f"train.output_dir={out}", f"checkpoint.resume={step}")
    )
    assert main(["train", str(begun(()) / "base.yaml"), *options]) == 0
    assert (out / "summary.json").is_file()
