"""Checks across keys: each refusal names the keys and values that do not fit; what fits is let through."""

import ast
from pathlib import Path

import pytest

import pangu_sigma.config
from locmoe_ops.errors import InputError
from pangu_sigma.config.ascend import resolve_runtime
from pangu_sigma.config.check_run import check_paths
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.config.validate import validate


def _config(settings):
    """`{"moe.num_experts": 6}` as a `Config`."""
    raw = {}
    for path, value in settings.items():
        *sections, name = path.split(".")
        section = raw
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return config_from_dict(raw)


@pytest.mark.parametrize(
    ("world_size", "settings"),
    [
        (1, {}),
        (4, {"parallel.expert": 4, "parallel.ranks_per_node": 2}),
        (4, {"parallel.expert": 2, "parallel.ranks_per_node": 4}),
        (4, {"parallel.expert": 2, "parallel.tensor": 2, "parallel.ranks_per_node": 2}),
        (4, {"parallel.expert": 2, "parallel.tensor": 2, "moe.dispatch.group_wise": True, "moe.dispatch.chunks": 3}),
        (8, {"parallel.expert": 2, "parallel.tensor": 4, "parallel.ranks_per_node": 4, "model.ffn_hidden_size": 12}),
        (1, {"moe.logical_topology": {"world_size": 8, "ranks_per_node": 4, "expert": 8}}),
        (3, {"train.global_batch_size": 12, "train.micro_batch_size": 2}),
        (1, {"model.sparse_layers": 0, "moe.num_experts": 3}),
        (1, {"model.sparse_layers": 0, "model.dense_layers": 0}),
        (1, {"model.sparse_layers": 0, "moe.router.top_k": 99}),
        (1, {"moe.num_experts": 6, "moe.router.type": "switch"}),
        (1, {"moe.num_experts": 6, "moe.router.locmoe.gate": "dense"}),
        (1, {"moe.num_experts": 6, "moe.num_groups": 3}),
        (1, {"moe.router.locmoe.ties": "unrectified", "moe.router.locmoe.gate_input": "word"}),
        (1, {"moe.router.locmoe": {"ties": "noise", "gate": "dense", "noise_scale": 0.5}}),
        (1, {"moe.router.locmoe": {"ties": "noise"}, "moe.router.type": "switch"}),
        (1, {"data.placement": "known_routes", "moe.router.type": "hash", "moe.router.hash.balance": "cooccurrence"}),
        (1, {"data.placement": "known_routes", "moe.router.locmoe.gate_input": "code"}),
        (1, {"data.placement": "known_routes", "moe.router.locmoe.gate_input": "code", "moe.router.top_k": 2}),
        (1, {"moe.router.type": "hash", "moe.router.top_k": 2, "moe.router.hash.weights": "gate"}),
        (1, {"moe.capacity.measured_share": {"interval": 5}, "moe.dispatch": {"type": "hierarchical", "chunks": 2}}),
        (1, {"moe.router.locality_loss": {"initial_weight": 0.0, "start_step": 10, "warmup_steps": 20}}),
        (
            1,
            {
                "moe.router.type": "etr",
                "moe.router.locality_loss.initial_weight": 1.0,
                "moe.dispatch.drop_priority": "weight",
            },
        ),
        (1, {"moe.router.locmoe": {"ties": "unrectified", "noise_scale": 0.5, "normalise": "token"}}),
        (1, {"moe.router.locmoe": {"rectify": False, "noise_scale": 0.5, "value_scale": 4.0}}),
        (1, {"moe.router.locmoe": {"gate_input": "code", "rectify": False, "value_scale": 2.0}}),
        (1, {"moe.dispatch.type": "hierarchical", "moe.dispatch.overflow": "repick"}),
        (1, {"moe.router": {"type": "topk", "top_k": 2, "topk": {"normalise_weights": True, "weight_scale": 2.5}}}),
        (1, {"moe.router": {"type": "topk", "balance": {"kind": "quantile", "bins": 50}}}),
        (1, {"moe.router": {"type": "locmoe", "balance": {"kind": "pid", "rate": 0.01, "derivative": 0.1}}}),
        (1, {"moe.router": {"type": "node_limited", "top_k": 4, "balance": {"kind": "sign"}}}),
        (4, {"moe.router": {"type": "moge", "top_k": 4}, "parallel": {"expert": 4, "ranks_per_node": 2}}),
        (4, {"moe.router": {"type": "moge", "moge": {"device_groups": 1}}, "parallel.expert": 4}),
        (4, {"moe.router": {"type": "switch", "statistics": "expert_parallel"}, "parallel.expert": 2}),
        (1, {"moe.dispatch.type": "ragged", "moe.dispatch.ragged_limit": 1.5, "moe.router.top_k": 2}),
        (1, {"train.steps": 10, "optimizer.schedule": "constant"}),
        (
            1,
            {
                "moe.capacity": {
                    "mode": "critical",
                    "form": "exp",
                    "minimum_factor": 0.5,
                    "maximum_factor": 0.5,
                    "estimate_steps": 3,
                }
            },
        ),
        (1, {"moe.capacity": {"mode": "critical", "delta_statistic": "quantile", "quantile": 0.5}}),
        (
            1,
            {
                "moe.capacity": {"mode": "adaptive", "interval": 5, "buckets": 3, "hysteresis": 0.0},
                "moe.router.type": "etr",
                "moe.dispatch.drop_priority": "weight",
            },
        ),
        (1, {"model.sparse_layers": 0, "moe.capacity.buckets": 3}),
        (1, {"model.sparse_layers": 0, "moe.router.type": "smile", "moe.router.smile.num_nodes": 3}),
        (
            4,
            {
                "moe.router.type": "smile",
                "moe.router.smile.num_nodes": 2,
                "parallel.expert": 4,
                "parallel.ranks_per_node": 2,
            },
        ),
        (1, {"train.steps": 100, "optimizer.decay_steps": 5000}),
        (1, {"runtime.precision": "bf16", "runtime.device": "ascend"}),
        (1, {"data.path": "runs/a/data", "train.output_dir": "runs/a"}),
        (1, {"data.path": "data/new", "data.prepare.sources": {"en": "data/texts"}}),
    ],
)
def test_what_fits_is_accepted(world_size, settings):
    validate(_config(settings), world_size)


@pytest.mark.parametrize(
    ("world_size", "settings", "fragments"),
    [
        (1, {"model.num_heads": 3}, ["model.num_heads (3)", "model.hidden_size (256)"]),
        (1, {"moe.num_groups": 3}, ["moe.num_groups (3)", "moe.num_experts (8)"]),
        (1, {"moe.domain_groups": []}, ["moe.domain_groups", "empty"]),
        (1, {"moe.domain_groups": [0, 1]}, ["moe.domain_groups[1] is 1", "moe.num_groups is 1"]),
        (1, {"moe.domain_groups": [-1]}, ["moe.domain_groups[0] is -1"]),
        (1, {"moe.router.type": "gshard", "moe.router.top_k": 3}, ["moe.router.top_k is 3", "moe.router.type gshard"]),
        (1, {"moe.num_groups": 4, "moe.router.top_k": 3}, ["moe.router.top_k (3)", "2 experts", "moe.num_groups 4"]),
        (1, {"moe.router.type": "gshard"}, ["moe.router.top_k is 1", "moe.router.type gshard", "expected 2"]),
        (1, {"moe.router.type": "etr"}, ["moe.dispatch.drop_priority is position", "moe.router.type etr"]),
        (
            1,
            {
                "moe.router.type": "etr",
                "moe.dispatch.drop_priority": "weight",
                "moe.router.etr.expert_choice_start_step": 7,
                "train.steps": 7,
            },
            ["moe.router.etr.expert_choice_start_step (7)", "train.steps (7)", "expected an earlier step, or null"],
        ),
        (
            1,
            {"moe.router.type": "faster_moe", "moe.router.faster_moe.rule": "fastmoe"},
            ["moe.router.top_k is 1", "moe.router.faster_moe.rule fastmoe", "expected 2, or rule ours"],
        ),
        (
            4,
            {"moe.router.type": "smile", "parallel.expert": 4, "parallel.ranks_per_node": 2},
            ["moe.router.smile.num_nodes is 1", "are on 2 nodes", "expected 2"],
        ),
        (
            4,
            {
                "moe.router.type": "c2r",
                "moe.router.top_k": 2,
                "moe.router.c2r.num_devices": 2,
                "parallel.expert": 4,
            },
            ["moe.router.c2r.num_devices is 2", "experts 0 to 3", "are on 2 devices", "expected 4"],
        ),
        (
            1,
            {"moe.router.type": "hash", "moe.router.locality_bias.kind": "bias"},
            ["moe.router.locality_bias.kind is bias", "by token id alone"],
        ),
        (
            1,
            {"moe.router.type": "faster_moe", "moe.router.locality_bias.kind": "margin"},
            ["locality_bias.kind is margin", "its own cap"],
        ),
        (
            1,
            {"moe.router.locality_bias": {"kind": "bias", "start_step": 1000}},
            ["moe.router.locality_bias.start_step (1000)", "train.steps (1000)"],
        ),
        (
            1,
            {"moe.router.type": "hash", "moe.router.balance_rate": 0.01},
            ["moe.router.balance_rate is 0.01", "moe.router.type hash"],
        ),
        (
            1,
            {"moe.router.type": "ta_moe", "moe.router.balance_rate": 0.01},
            ["moe.router.balance_rate is 0.01", "c2r, etr, locmoe, moge, node_limited, switch, topk"],
        ),
        (
            1,
            {"moe.router": {"type": "ta_moe", "balance": {"kind": "sign"}}},
            [
                "moe.router.balance.kind sign",
                "moe.router.type ta_moe",
                "c2r, etr, locmoe, moge, node_limited, switch, topk",
            ],
        ),
        (
            1,
            {"moe.router": {"type": "moge", "balance": {"kind": "quantile"}}},
            ["moe.router.balance.kind quantile", "moe.router.type moge", "one of etr, locmoe, switch, topk"],
        ),
        (
            1,
            {"moe.router": {"type": "topk", "balance_rate": 0.01, "balance": {"kind": "pid"}}},
            ["moe.router.balance_rate is 0.01", "moe.router.balance.kind pid", "the same biases"],
        ),
        *(
            (
                1,
                {"moe.router.balance": {"kind": kind, key: value}},
                [f"moe.router.balance.{key} is {value}", f"moe.router.balance.kind {kind}", "does not use it"],
            )
            for kind, key, value in (
                ("none", "rate", 0.01),
                ("none", "bins", 50),
                ("sign", "proportional", 0.1),
                ("sign", "bins", 50),
                ("pid", "bins", 50),
                ("quantile", "rate", 0.01),
                ("quantile", "derivative", 0.1),
            )
        ),
        (
            1,
            {"moe.router": {"type": "topk", "top_k": 8, "balance": {"kind": "quantile"}}},
            ["balance.kind quantile", "moe.router.top_k 8 of 8 experts"],
        ),
        (
            1,
            {"moe.router": {"balance": {"kind": "quantile"}, "locality_bias": {"kind": "margin"}}},
            ["balance.kind quantile", "moe.router.locality_bias.kind margin", "expected bias or none"],
        ),
        *(
            (
                1,
                {"moe.router": {"type": name, name: {"normalise_weights": True}}},
                [f"moe.router.{name}.normalise_weights is true", "moe.router.top_k 1", "every weight would be 1"],
            )
            for name in ("topk", "node_limited", "moge")
        ),
        (
            1,
            {"moe.router": {"type": "topk", "topk": {"weight_scale": 2.5}}, "moe.scale_by_gate": False},
            ["moe.router.topk.weight_scale is 2.5", "moe.scale_by_gate false", "expected 1.0"],
        ),
        (
            4,
            {
                "moe.router": {"type": "node_limited", "top_k": 4, "node_limited": {"max_nodes": 1}},
                "parallel": {"expert": 4, "ranks_per_node": 1},
            },
            ["moe.router.node_limited.max_nodes is 1", "hold 2 experts", "moe.router.top_k (4)"],
        ),
        (
            4,
            {"moe.router": {"type": "moge", "top_k": 2}, "parallel.expert": 4},
            ["moe.router.top_k (2)", "each of 4 device groups", "moe.router.moge.device_groups"],
        ),
        (
            1,
            {"moe.router": {"type": "moge", "moge": {"device_groups": 3}}},
            ["moe.router.moge.device_groups (3)", "the 8 experts of a group"],
        ),
        (
            2,
            {
                "moe.router": {"type": "node_limited"},
                "moe.num_experts": 6,
                "moe.num_groups": 2,
                "parallel": {"expert": 2, "ranks_per_node": 1},
            },
            ["moe.router.type node_limited", "do not lie in equal blocks"],
        ),
        (
            1,
            {"moe.router.locmoe": {"gate": "dense", "blocks": "by_layer"}},
            ["moe.router.locmoe.blocks is by_layer", "gate dense"],
        ),
        (
            1,
            {"moe.router.locmoe": {"gate_input": "code", "blocks": "by_layer"}},
            ["blocks is by_layer", "gate_input code", "no blocks"],
        ),
        (
            1,
            {"moe.router.locmoe": {"gate_input": "code", "gate": "dense"}},
            ["gate is dense", "gate_input code", "expected grap"],
        ),
        (
            1,
            {"moe.router.locmoe": {"gate_input": "code", "noise_scale": 0.5}},
            ["moe.router.locmoe.noise_scale is 0.5", "moe.router.locmoe.gate_input code", "expected null"],
        ),
        (
            1,
            {"moe.router.locality_loss.warmup_steps": 5},
            ["moe.router.locality_loss.warmup_steps is 5", "initial_weight null", "expected 0"],
        ),
        (
            1,
            {"moe.router.type": "switch", "moe.router.locality_loss.initial_weight": 0.5},
            ["moe.router.locality_loss.initial_weight is 0.5", "moe.router.type switch", "expected null"],
        ),
        (
            1,
            {"moe.router.locality_loss": {"initial_weight": 0.5, "start_step": 100000}},
            ["moe.router.locality_loss.start_step (100000)", "train.steps", "earlier"],
        ),
        (
            1,
            {"moe.router.locmoe": {"gate_input": "code", "centre_rate": 0.5}},
            ["moe.router.locmoe.centre_rate is 0.5", "moe.router.locmoe.gate_input code", "expected 0"],
        ),
        (
            1,
            {"moe.router.locmoe": {"divergence_loss_weight": 0.1}, "moe.num_groups": 2, "moe.num_experts": 8},
            ["moe.router.locmoe.divergence_loss_weight is 0.1", "moe.num_groups 2", "expected 0, or moe.num_groups 1"],
        ),
        (
            1,
            {"moe.router.locmoe": {"divergence_loss_weight": 0.1, "gate_input": "code"}},
            ["divergence_loss_weight is 0.1", "gate_input code", "no loss can bend"],
        ),
        (
            1,
            {"moe.router.locmoe": {"context_weight": 0.1}},
            ["moe.router.locmoe.context_weight is 0.1", "gate_input hidden", "gate_input code"],
        ),
        (
            1,
            {"moe.router.locmoe": {"gate_input": "code", "context_warmup_steps": 5}},
            ["context_warmup_steps is 5", "moe.router.locmoe.context_weight 0", "expected 0"],
        ),
        (
            1,
            {"moe.router.locmoe": {"gate_input": "code", "context_weight": 0.1, "context_start_step": 100000}},
            ["moe.router.locmoe.context_start_step (100000)", "train.steps", "earlier step"],
        ),
        (
            1,
            {"data.placement": "known_routes", "moe.router.locmoe": {"gate_input": "code", "context_weight": 0.1}},
            ["data.placement is known_routes", "not known before the step"],
        ),
        (
            1,
            {"data.placement": "known_routes"},
            ["data.placement is known_routes", "moe.router.type locmoe", "moe.router.type hash"],
        ),
        (
            1,
            {"data.placement": "known_routes", "moe.router.type": "hash", "model.sparse_layers": 0},
            ["data.placement is known_routes", "model.sparse_layers is 0", "expected shuffled"],
        ),
        *(
            (
                1,
                {"data.placement": "known_routes", "moe.router.locmoe.gate_input": "code", f"moe.router.{key}": value},
                [f"moe.router.{key} is {value}", "data.placement known_routes"],
            )
            for key, value in (("balance_rate", 0.01), ("balance.kind", "pid"), ("locality_bias.kind", "bias"))
        ),
        (
            1,
            {"moe.router.locmoe": {"ties": "unrectified", "rectify": False}},
            ["moe.router.locmoe.ties is unrectified", "moe.router.locmoe.rectify false", "expected first"],
        ),
        (
            1,
            {"moe.router.locmoe": {"gate_input": "code", "ties": "noise"}},
            ["ties is noise", "gate_input code", "expected first"],
        ),
        (
            1,
            {"moe.router.locmoe": {"gate_input": "code", "ties": "unrectified"}},
            ["ties is unrectified", "gate_input code"],
        ),
        (
            1,
            {"moe.dispatch": {"type": "hierarchical", "chunks": 3}},
            ["moe.dispatch.chunks is 3", "hierarchical", "1 or 2"],
        ),
        (1, {"moe.capacity.local_share": 0.5}, ["moe.capacity.local_share is 0.5", "moe.dispatch.type flat"]),
        *(
            (
                1,
                {"moe.capacity.node_share": 0.5, "moe.dispatch.type": kind},
                ["moe.capacity.node_share is 0.5", f"type {kind}, where each assignment travels by itself", "null"],
            )
            for kind in ("flat", "hierarchical", "ragged")
        ),
        (
            4,
            {
                "moe.dispatch": {"type": "node_dedup", "group_wise": True},
                "parallel": {"expert": 2, "tensor": 2, "ranks_per_node": 2},
            },
            ["moe.dispatch.group_wise is true", "type node_dedup, where the slots of a share", "expected false"],
        ),
        (1, {"moe.dispatch": {"type": "node_dedup", "chunks": 3}}, ["chunks is 3", "node_dedup", "1 or 2"]),
        (
            1,
            {"moe.dispatch": {"type": "node_dedup", "ragged_limit": 2.0}},
            ["ragged_limit is 2.0", "which has slots", "expected null"],
        ),
        (
            1,
            {"moe.evaluation_rules": "none", "moe.capacity.evaluation_factor": 8.0},
            ["moe.capacity.evaluation_factor is 8.0", "moe.evaluation_rules none", "expected 2.0"],
        ),
        (
            1,
            {"moe.capacity.measured_share": {}},
            ["moe.capacity.measured_share is a section", "moe.dispatch.type flat"],
        ),
        (
            1,
            {"moe.capacity": {"measured_share": {}, "local_share": 0.5}, "moe.dispatch.type": "hierarchical"},
            ["moe.capacity.local_share is 0.5", "moe.capacity.measured_share", "expected null"],
        ),
        (
            4,
            {
                "moe.capacity.measured_share": {},
                "moe.dispatch.type": "hierarchical",
                "moe.logical_topology": {"world_size": 8, "ranks_per_node": 2},
                "parallel": {"expert": 4, "ranks_per_node": 2},
            },
            ["moe.capacity.measured_share", "8 ranks, 2 a node", "4 data-parallel ranks, 2 a node"],
        ),
        (
            1,
            {"moe.capacity.local_share": 1.0, "moe.dispatch.type": "hierarchical", "moe.dispatch.chunks": 2},
            ["moe.dispatch.chunks is 2", "moe.capacity.local_share 1.0", "expected 1"],
        ),
        (1, {"moe.num_experts": 6}, ["moe.router.locmoe.gate grap", "moe.num_experts 6", "model.hidden_size (256)"]),
        (1, {"model.sparse_layers": 0, "model.sparse_query_layer": True, "moe.num_experts": 6}, ["gate grap"]),
        (
            1,
            {"moe.capacity.mode": "critical", "moe.router.type": "hash"},
            ["moe.capacity.mode is critical", "moe.router.type hash"],
        ),
        (1, {"moe.capacity.buckets": 3}, ["moe.capacity.buckets is 3", "moe.capacity.mode factor", "expected 8"]),
        (
            1,
            {"moe.capacity.maximum_factor": 2.0},
            ["moe.capacity.maximum_factor is 2.0", "moe.capacity.mode factor", "expected null"],
        ),
        (
            1,
            {"moe.capacity": {"mode": "critical", "interval": 5}},
            ["moe.capacity.interval is 5", "moe.capacity.mode critical"],
        ),
        (
            1,
            {"moe.capacity": {"mode": "adaptive", "factor": 1.5}},
            ["moe.capacity.factor is 1.5", "moe.capacity.mode adaptive", "1.25"],
        ),
        (
            1,
            {"moe.capacity": {"mode": "adaptive", "quantile": 0.5}},
            ["moe.capacity.quantile is 0.5", "delta_statistic maximum"],
        ),
        (
            1,
            {"moe.capacity": {"mode": "critical", "minimum_factor": 2.0, "maximum_factor": 1.0}},
            ["moe.capacity.minimum_factor (2.0)", "moe.capacity.maximum_factor (1.0)"],
        ),
        (1, {"moe.dispatch.ragged_limit": 2.0}, ["moe.dispatch.ragged_limit is 2.0", "moe.dispatch.type flat"]),
        (
            1,
            {"moe.dispatch.type": "ragged", "moe.capacity.factor": 1.5},
            ["moe.capacity.factor is 1.5", "moe.dispatch.type ragged"],
        ),
        (
            1,
            {"moe.dispatch.type": "ragged", "moe.capacity.mode": "critical"},
            ["moe.capacity.mode is critical", "type ragged"],
        ),
        (
            4,
            {"moe.dispatch": {"type": "ragged", "group_wise": True}, "parallel": {"expert": 2, "tensor": 2}},
            ["group_wise", "type ragged"],
        ),
        (
            1,
            {"moe.router.type": "hash", "moe.dispatch.overflow": "repick"},
            ["moe.dispatch.overflow is repick", "moe.router.type hash"],
        ),
        (
            1,
            {"moe.router.type": "gshard", "moe.router.top_k": 2, "moe.dispatch.overflow": "repick"},
            ["overflow is repick", "type gshard"],
        ),
        (
            1,
            {"moe.dispatch.type": "ragged", "moe.dispatch.overflow": "repick"},
            ["moe.dispatch.overflow is repick", "type ragged"],
        ),
        (
            1,
            {"moe.dispatch.type": "ragged", "moe.dispatch.chunks": 2},
            ["moe.dispatch.chunks is 2", "moe.dispatch.type ragged"],
        ),
        (
            1,
            {"moe.dispatch.type": "ragged", "moe.dispatch.drop_priority": "weight"},
            ["drop_priority is weight", "drops nothing"],
        ),
        (
            1,
            {"moe.dispatch.type": "ragged", "moe.router.type": "etr", "moe.dispatch.drop_priority": "weight"},
            ["moe.dispatch.type is ragged", "moe.router.type etr"],
        ),
        (4, {"parallel.expert": 3}, ["parallel.expert x parallel.tensor (3)", "the number of ranks (4)"]),
        (6, {"parallel.expert": 3}, ["parallel.expert (3)", "moe.num_experts (8)"]),
        (4, {"parallel.ranks_per_node": 3}, ["parallel.ranks_per_node (3)", "the number of ranks (4)"]),
        (
            12,
            {"parallel.expert": 4, "parallel.ranks_per_node": 6, "train.global_batch_size": 12},
            ["parallel.expert (4)", "parallel.ranks_per_node (6)", "multiple"],
        ),
        (1, {"moe.dispatch.group_wise": True}, ["moe.dispatch.group_wise", "parallel.tensor 1"]),
        (2, {"moe.dispatch.group_wise": True, "parallel.tensor": 2}, ["moe.dispatch.group_wise", "parallel.expert 1"]),
        (16, {"parallel.tensor": 8}, ["parallel.tensor (8)", "model.num_heads (4)"]),
        (
            8,
            {"parallel.tensor": 4, "parallel.ranks_per_node": 2},
            ["parallel.tensor (4)", "parallel.ranks_per_node (2)"],
        ),
        (2, {"parallel.tensor": 2, "model.ffn_hidden_size": 21}, ["parallel.tensor (2)", "model.ffn_hidden_size (21)"]),
        (
            3,
            {"parallel.tensor": 3, "model.hidden_size": 8, "model.num_heads": 1},
            ["parallel.tensor (3)", "model.num_heads (1)"],
        ),
        (
            24,
            {"parallel.tensor": 2, "parallel.expert": 2, "parallel.ranks_per_node": 6},
            ["parallel.expert x parallel.tensor (4)", "parallel.ranks_per_node (6)", "multiple"],
        ),
        (
            1,
            {"moe.logical_topology": {"world_size": 4, "ranks_per_node": 3}},
            ["moe.logical_topology.ranks_per_node (3)", "world_size (4)"],
        ),
        (
            1,
            {"moe.logical_topology": {"world_size": 4, "expert": 3}},
            ["moe.logical_topology.expert (3)", "moe.logical_topology.world_size (4)"],
        ),
        (
            1,
            {"moe.logical_topology": {"world_size": 3, "expert": 3}},
            ["moe.logical_topology.expert (3)", "moe.num_experts (8)"],
        ),
        (
            1,
            {"moe.logical_topology": {"world_size": 16}},
            ["moe.logical_topology.world_size (16)", "train.global_batch_size (8)"],
        ),
        (3, {}, ["data-parallel ranks (3)", "train.global_batch_size (8)"]),
        (2, {"train.micro_batch_size": 3}, ["train.micro_batch_size (3)", "train.global_batch_size (8)"]),
        (1, {"train.stop_after": 2000}, ["train.stop_after (2000)", "train.steps (1000)"]),
        (1, {"train.profile": [4]}, ["train.profile is [4]", "as in [20, 24]"]),
        (1, {"train.profile": [4, 3]}, ["train.profile is [4, 3]"]),
        (1, {"train.profile": [4, 9], "train.stop_after": 8}, ["train.profile ([4, 9])", "last step (8)"]),
        (1, {"train.steps": 50}, ["optimizer.warmup_steps (100)", "train.steps (50)"]),
        (1, {"optimizer.decay_steps": 50}, ["optimizer.warmup_steps (100)", "optimizer.decay_steps (50)"]),
        (
            1,
            {"optimizer.schedule": "constant", "optimizer.decay_steps": 500},
            ["optimizer.decay_steps is 500", "constant"],
        ),
        (
            1,
            {"optimizer.learning_rate": 1e-6},
            ["optimizer.end_learning_rate (2e-05)", "optimizer.learning_rate (1e-06)"],
        ),
        (1, {"runtime.precision": "bf16", "runtime.device": "cpu"}, ["runtime.precision bf16", "fp32 or fp16"]),
        (1, {"runtime.backend": "hccl", "runtime.device": "cpu"}, ["runtime.backend hccl", "runtime.device cpu"]),
        (1, {"runtime.backend": "tcp", "runtime.device": "ascend"}, ["runtime.backend tcp", "runtime.device ascend"]),
        (1, {"runtime.loss_scale": {"initial": 2.0, "minimum": 4.0}}, ["loss_scale.minimum (4.0)", "initial (2.0)"]),
        (1, {"data.path": "x", "train.output_dir": "x"}, ["train.output_dir (x)", "data.path (x)"]),
        (1, {"train.recompute": 6}, ["train.recompute is 6", "5 layers (model.dense_layers 2", "expected 1 to 5"]),
        (1, {"train.recompute": "sparse", "model.sparse_layers": 0}, ["train.recompute is sparse", "without experts"]),
        (1, {"train.recompute": "all", "runtime.mode": "pynative"}, ["train.recompute is all", "expected none"]),
        (1, {"train.recompute": 1, "runtime.mode": "pynative"}, ["train.recompute is 1", "runtime.mode pynative"]),
    ],
)
def test_what_does_not_fit_names_both_keys(world_size, settings, fragments):
    with pytest.raises(InputError) as caught:
        validate(_config(settings), world_size)
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({"data.path": "d", "data.prepare.sources": {"en": "d/en"}}, "data.prepare.sources.en (d/en) lies inside"),
        (
            {"data.path": "d", "data.prepare.tokenizer": "./d/t.model"},
            "data.prepare.tokenizer (./d/t.model) lies inside",
        ),
    ],
)
def test_prepare_may_not_replace_its_own_inputs(settings, fragment):
    with pytest.raises(InputError) as caught:
        check_paths(_config(settings))
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("device", "backend", "resolved"),
    [
        ("cpu", "auto", ("cpu", "tcp")),
        ("ascend", "auto", ("ascend", "hccl")),
        ("ascend", "hccl", ("ascend", "hccl")),
    ],
)
def test_auto_follows_the_device(device, backend, resolved):
    runtime = resolve_runtime(_config({"runtime.device": device, "runtime.backend": backend})).runtime
    assert (runtime.device, runtime.backend) == resolved
    assert resolve_runtime(Config()).runtime.backend in ("tcp", "hccl")


@pytest.mark.parametrize("module", ["validate", "check_parallel", "check_run", "ascend"])
def test_every_refusal_says_what_would_do(module):
    """Read in the source, since a message that no test triggers needs a remedy as well."""
    tree = ast.parse((Path(pangu_sigma.config.__file__).with_name(f"{module}.py")).read_text(encoding="utf-8"))
    refusals = [node for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    assert len(refusals) > 2
    without = [ast.unparse(node) for node in refusals if "expected" not in ast.unparse(node)]
    assert not without, f"no remedy in: {without[0]}"


@pytest.mark.parametrize(
    ("ranks", "expert", "tensor", "enough"), [(1, 4, 1, 4), (1, 2, 2, 4), (3, 2, 1, 4), (6, 4, 1, 8), (2, 1, 4, 4)]
)
def test_too_few_ranks_for_a_group_names_three_ways_out(ranks, expert, tensor, enough):
    with pytest.raises(InputError) as refusal:
        validate(_config({"parallel.expert": expert, "parallel.tensor": tensor}), ranks)
    text = str(refusal.value)
    assert (
        f"parallel.expert x parallel.tensor ({expert * tensor}) does not divide the number of ranks ({ranks})" in text
    )
    for way in (
        f"`pangu-sigma launch --ranks-per-node {enough}`",
        f"product divides {ranks}",
        f"--ranks {enough}",
    ):
        assert way in text
    try:  # the first way out leads out: what is refused next, if anything, is another matter
        validate(_config({"parallel.expert": expert, "parallel.tensor": tensor}), enough)
    except InputError as error:
        assert "does not divide the number of ranks" not in str(error)


@pytest.mark.parametrize(
    ("settings", "ways"),
    [
        ({"model.num_heads": 7, "model.hidden_size": 32}, "as in 4 or 8"),
        ({"model.num_heads": 99, "model.hidden_size": 32}, "as in 32"),
        ({"moe.num_groups": 5, "moe.num_experts": 4}, "as in 4"),
        (
            {"model.num_heads": 10**9 + 1, "model.hidden_size": 2**40},
            "as in 1 or",
        ),  # answered at once, however far the next divisor is
    ],
)
def test_near_divisors_are_offered(settings, ways):
    with pytest.raises(InputError, match=ways):
        validate(_config(settings), 1)
