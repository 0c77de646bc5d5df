"""What routers of single layers may be, and the line that says what they may not."""

import re
from pathlib import Path

import pytest
import yaml

from locmoe_ops.errors import InputError
from pangu_sigma.config.derived import router_names
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.config.validate import validate

PAGE = Path(__file__).resolve().parents[4] / "docs" / "hash_maps.md"
HASH = {"layers": [0, 1], "type": "hash"}
BIAS = {"locality_bias": {"kind": "bias"}}
FOUR = {"model": {"sparse_layers": 4}}


def configuration(router=None, routers=(), moe=None, **sections):
    given = {"num_experts": 8, "router": router or {}, "routers": list(routers), **(moe or {})}
    return config_from_dict({**FOUR, "moe": given, **sections})


@pytest.mark.parametrize(
    "given",
    [
        {"routers": [HASH]},
        {"routers": [HASH, {"layers": [3], "type": "switch", "switch": {"jitter": 0.1}}]},
        {"routers": [{"layers": [2, 0, 3, 1], "type": "hash"}]},
        {"router": {"type": "switch", "top_k": 2}, "routers": [{**HASH, "hash": {"weights": "gate"}}]},
        {"router": {"balance_rate": 0.01, **BIAS}, "routers": [HASH]},
        {"router": {"type": "hash", "balance_rate": 0.01}, "routers": [{"layers": [3], "type": "switch"}]},
        {"router": {"type": "switch", "balance": {"kind": "quantile"}}, "routers": [HASH]},
        {"router": {"type": "hash", "balance": {"kind": "pid"}}, "routers": [{"layers": [3], "type": "topk"}]},
        {"router": BIAS, "routers": [{"layers": [0, 1, 2], "locality_bias": False}]},
        {"router": {"locality_loss": {"initial_weight": 1.0}}, "routers": [HASH]},
        {
            "router": {"locmoe": {"centre_rate": 0.5}},
            "routers": [HASH, {"layers": [2], "locmoe": {"centre_rate": 0.0}}],
        },
        {"router": {"type": "switch"}, "routers": [HASH], "data": {"placement": "known_routes"}},
        {"router": {"balance_rate": 0.01, **BIAS}, "routers": [HASH], "data": {"placement": "known_routes"}},
        {"routers": [{"layers": [4], "type": "hash"}], "model": {"sparse_layers": 4, "sparse_query_layer": True}},
        {"routers": [{"layers": [9], "type": "hash"}], "model": {"sparse_layers": 0}},  # `moe` is of no consequence
    ],
)
def test_layers_may_have_routers_of_their_own(given):
    validate(configuration(**given), 1)


@pytest.mark.parametrize(
    "given, line",
    [
        (
            {"routers": [{"layers": [0, 4], "type": "hash"}]},
            "moe.routers[0].layers has 4; expected sparse layers, from 0 to 3 (model.sparse_layers is 4)",
        ),
        (
            {"routers": [{"layers": [5]}], "model": {"sparse_layers": 4, "sparse_query_layer": True}},
            "moe.routers[0].layers has 5; expected sparse layers, from 0 to 4 (model.sparse_layers is 4, and the query "
            "layer is sparse)",
        ),
        ({"routers": [HASH, {"type": "switch"}]}, "moe.routers[1].layers is empty; expected sparse layers, from 0"),
        ({"routers": [{"layers": [2, 2]}]}, "moe.routers[0].layers has 2 twice; expected one entry a layer"),
        ({"routers": [HASH, {"layers": [3, 1]}]}, "moe.routers[1].layers has 1 as moe.routers[0] has; expected one"),
        (
            {"routers": [{**HASH, "switch": {"jitter": 0.1}}]},
            "moe.routers[0].switch is a section of a router that moe.routers[0].type, hash, does not name; expected "
            "none, or moe.routers[0].hash",
        ),
        (
            {"routers": [{"layers": [1], "type": "gshard"}]},
            "moe.router.top_k is 1 with moe.routers[0].type gshard, which sends a token to 2 experts; expected 2",
        ),
        (
            {"routers": [{"layers": [1], "type": "etr"}]},
            "moe.dispatch.drop_priority is position with moe.routers[0].type etr, whose experts choose",
        ),
        (
            {"routers": [{"layers": [1], "type": "etr"}], "moe": {"dispatch": {"type": "ragged"}}},
            "moe.dispatch.drop_priority is position with moe.routers[0].type etr",
        ),
        (
            {"routers": [HASH], "moe": {"dispatch": {"overflow": "repick"}}},
            "moe.dispatch.overflow is repick with moe.routers[0].type hash, which has no weight for another expert",
        ),
        (
            {"routers": [HASH], "moe": {"capacity": {"mode": "critical", "factor": 1.25}}},
            "moe.capacity.mode is critical with moe.routers[0].type hash, which has no gate weights",
        ),
        (
            {"routers": [{**HASH, "hash": {"scale": 2.0}}]},
            "moe.routers[0].hash.scale is 2.0 with moe.routers[0].hash.weights equal, which has no gate",
        ),
        (
            {"routers": [{**HASH, "hash": {"weights": "gate"}}]},
            "moe.routers[0].hash.weights is gate with moe.router.top_k 1 and moe.routers[0].hash.renormalise true",
        ),
        (
            {"routers": [{"layers": [0], "locmoe": {"gate": "dense", "gate_input": "code"}}]},
            "moe.routers[0].locmoe.gate is dense with moe.routers[0].locmoe.gate_input code",
        ),
        (
            {"router": {"type": "hash", "balance_rate": 0.01}, "routers": [{"layers": [0], "type": "faster_moe"}]},
            "moe.router.balance_rate is 0.01, which the router of no layer takes (faster_moe (0), hash (1-3))",
        ),
        (
            {"router": {"type": "hash", "balance": {"kind": "pid"}}, "routers": [{"layers": [0], "type": "ta_moe"}]},
            "moe.router.balance.kind is pid, which the router of no layer takes (ta_moe (0), hash (1-3)); expected "
            "none",
        ),
        (
            {"routers": [{"layers": [1], "type": "moge", "moge": {"device_groups": 3}}]},
            "moe.routers[0].moge.device_groups (3)",
        ),
        (
            {"router": BIAS, "routers": [{"layers": [0, 1, 2, 3], "locality_bias": False}]},
            "moe.router.locality_bias.kind is bias, which the router of no layer takes (locmoe); expected none",
        ),
        (
            {
                "router": {"type": "switch", "locality_loss": {"initial_weight": 1.0}},
                "routers": [HASH],
            },
            "moe.router.locality_loss.initial_weight is 1.0, which the router of no layer takes (hash (0-1), switch "
            "(2-3)); expected null",
        ),
        (
            {"router": {"locmoe": {"centre_rate": 0.5}}, "routers": [{"layers": [1], "locmoe": {"centre_rate": 0.1}}]},
            "moe.routers[0].locmoe.centre_rate is 0.1 and moe.router.locmoe.centre_rate 0.5; expected one value",
        ),
        (
            {
                "router": {"type": "etr", "etr": {"expert_choice_start_step": 0}},
                "routers": [
                    {"layers": [0], "etr": {"expert_choice_start_step": None}},
                    {"layers": [1], "etr": {"expert_choice_start_step": 5}},
                ],
                "moe": {"dispatch": {"drop_priority": "weight"}},
            },
            "moe.router.etr.expert_choice_start_step is 0 and moe.routers[1].etr.expert_choice_start_step 5",
        ),
        (
            {
                "router": {"locality_loss": {"initial_weight": 1.0}},
                "routers": [{"layers": [0], "locmoe": {"locality_loss_weight": 0.5}}],
            },
            "moe.router.locmoe.locality_loss_weight is 0.01 and moe.routers[0].locmoe.locality_loss_weight 0.5",
        ),
        (
            {"router": BIAS, "routers": [{"layers": [0], "locmoe": {"gate_input": "code"}}],
             "data": {"placement": "known_routes"}},
            "moe.router.locality_bias.kind is bias with data.placement known_routes",
        ),
        (
            {"routers": [{"layers": [0], "type": "switch"}], "data": {"placement": "known_routes"}},
            "data.placement is known_routes with moe.router.type switch (0), locmoe (1-3), whose routes are not known",
        ),
    ],
)  # fmt: skip
def test_one_line_says_what_does_not_fit(given, line):
    with pytest.raises(InputError) as caught:
        validate(configuration(**given), 1)
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    "routers, line",
    [
        (3, "moe.routers: found 3, expected a list, as in [{layers: [0, 1], type: hash}]"),
        ([3], "moe.routers[0]: found 3, expected a section with keys layers, type, locality_bias"),
        ([{"layer": [0]}], "moe.routers[0].layer: unknown key, did you mean moe.routers[0].layers?"),
        ([{"layers": 0}], "moe.routers[0].layers: found 0, expected a list, as in [0, 1]"),
        ([{"layers": [-1]}], "moe.routers[0].layers[0]: found -1, expected an integer >= 0"),
        ([{"layers": [True]}], "moe.routers[0].layers[0]: found true, expected an integer >= 0"),
        ([{}, {"type": "hsh"}], "moe.routers[1].type: found 'hsh', expected one of"),
        ([{"type": 3}], "moe.routers[0].type: found 3, expected one of"),
        ([{"type": "hash", "hash": 3}], "moe.routers[0].hash: found 3, expected a section with keys balance"),
        ([{"type": "hash", "hash": {"balanc": 1}}], "moe.routers[0].hash.balanc: unknown key, did you mean moe."),
        ([{"type": "hash", "top_k": 2}], "moe.routers[0].top_k: unknown key, did you mean moe.router.top_k?"),
    ],
)  # fmt: skip
def test_entries_are_read_strictly(routers, line):
    with pytest.raises(InputError) as caught:
        config_from_dict({"moe": {"routers": routers}})
    assert str(caught.value).startswith(line)


def test_the_example_of_the_page_is_what_the_page_says_of_it():
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    config = config_from_dict(yaml.safe_load(block))
    validate(config, 1)
    assert router_names(config) == "hash (0-2), switch (3-5)"
    assert config.moe.routers[0].hash.weights == "gate" and config.moe.routers[1].switch.aux_loss_weight == 0.0
