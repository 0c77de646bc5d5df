"""Comparison files: which runs they mean, in which order, and what is wrong with those that mean none."""

from pathlib import Path

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.compare.comparison import load_plan

CONFIGS = Path(__file__).resolve().parents[4] / "configs" / "compare"
TWO_NODES = {"nodes": 2, "ranks_per_node": 2}


def names(plan):
    return [run.name for run in plan.runs]


def test_runs_are_interleaved_and_rotated(make_plan):
    variants = {name: {} for name in "abc"}
    assert names(make_plan(variants=variants, seeds=[5, 1, 7, 2])) == [
        f"all/{name}/seed_{seed}"
        for name, seed in (
            ("a", 5),
            ("b", 5),
            ("c", 5),
            ("b", 1),
            ("c", 1),
            ("a", 1),
            ("c", 7),
            ("a", 7),
            ("b", 7),
            ("a", 2),
            ("b", 2),
            ("c", 2),
        )
    ]


def test_phases_have_their_own_seeds_rates_and_overrides(make_plan):
    plan = make_plan(
        seeds=[3],
        cluster={**TWO_NODES, "rate": "200mbit"},
        phases={"time": {"seeds": [8, 9], "overrides": {"train.steps": 4}}, "quality": {"rate": None}},
    )
    assert names(plan) == [
        "quality/hash/seed_3",
        "quality/locmoe/seed_3",
        "time/hash/seed_8",
        "time/locmoe/seed_8",
        "time/locmoe/seed_9",
        "time/hash/seed_9",
    ]
    assert [(run.cluster.rate, run.config.train.steps) for run in plan.runs[1:3]] == [(None, 10), ("200mbit", 4)]
    assert (plan.quality_phase, plan.time_phase) == ("quality", "time")


def test_another_rate_leaves_the_phases_at_full_speed_out(write_plan):
    cluster = {"nodes": 2, "ranks_per_node": 2, "rate": "200mbit"}
    path = write_plan(cluster=cluster, phases={"quality": {"rate": None}, "time": None})
    plan = load_plan(path, "90mbit")
    assert plan.phases == ("time",) and {run.cluster.rate for run in plan.runs} == {"90mbit"}
    assert len(plan.runs) == sum(run.phase == "time" for run in load_plan(path).runs)
    with pytest.raises(InputError, match="--rate: found '90', expected null or a rate"):
        load_plan(path, "90")
    with pytest.raises(InputError, match="--rate: no phase of the comparison has a rate"):
        load_plan(write_plan(cluster={"nodes": 2, "ranks_per_node": 2}), "90mbit")


def test_one_phase_gives_both(make_plan):
    assert (make_plan().quality_phase, make_plan().time_phase) == ("all", "all")
    only = make_plan(phases={"time": {}})
    assert (only.quality_phase, only.time_phase) == ("time", "time")


def test_later_overrides_win_whole(make_plan):
    """Base, then all, then phase, then variant: a section set as a whole does not undo a key of a later one."""
    plan = make_plan(
        base_overrides={"train.steps": 20, "moe.capacity.factor": 3.0},
        phases={"time": {"overrides": {"train.steps": 30}}},
        variants={
            "plain": {},
            "own": {"train.steps": 40, "moe.capacity": {"evaluation_factor": 4.0}, "moe.capacity.factor": 1.0},
        },
    )
    plain, own = (run.config for run in plan.runs)
    assert (plain.train.steps, plain.moe.capacity.factor, plain.moe.capacity.evaluation_factor) == (30, 3.0, 2.0)
    assert (own.train.steps, own.moe.capacity.factor, own.moe.capacity.evaluation_factor) == (40, 1.0, 4.0)


@pytest.mark.parametrize(
    "value", ["hash", "no", "1", "a b", "é: x", "", None, True, 3, 0.25, 1e-5, [0, 1], {"en": "a/b c", "zh": "d"}]
)
def test_values_arrive_as_they_were_written(make_plan, value):
    key = {
        list: "moe.domain_groups",
        dict: "data.prepare.sources",
        bool: "moe.scale_by_gate",
        int: "train.log_interval",
        float: "optimizer.weight_decay",
        type(None): "model.vocab_size",
        str: "data.prepare.tokenizer",
    }[type(value)]
    config = make_plan(base_overrides={"moe.num_groups": 2, key: value}).runs[0].config
    for name in key.split("."):
        config = getattr(config, name)
    assert (list(config) if isinstance(value, list) else config) == value


def test_settings_tell_what_decides_the_outcome(make_plan, tmp_path):
    def first(**changed):
        return make_plan(**changed).runs[0].settings

    (tmp_path / "data").mkdir()
    data = {"base_overrides": {"data.path": str(tmp_path / "data")}}
    seen = [
        first(),
        first(seeds=[2]),
        first(base_overrides={"train.steps": 11}),
        first(cluster=TWO_NODES),
        first(cluster={**TWO_NODES, "rate": "1gbit"}),
        first(cluster={**TWO_NODES, "pin": True}),
        first(**data),
    ]
    (tmp_path / "data" / "manifest.json").write_text("{}")
    seen.append(first(**data))
    assert len(set(seen)) == len(seen)
    assert first() == first(run_timeout=5, seeds=[1, 2], baseline="locmoe") == seen[0]  # of no consequence for this run


def test_simulated_nodes_say_how_many_ranks_they_have(make_plan):
    assert make_plan(cluster=TWO_NODES).runs[0].config.parallel.ranks_per_node == 2
    assert make_plan(cluster={"ranks_per_node": 2}).runs[0].config.parallel.ranks_per_node is None


@pytest.mark.parametrize(
    ("changed", "fragment"),
    [
        (
            {"variant": {}},
            "variant: unknown key, expected one of base, base_overrides, variants, baseline, seeds, cluster, phases, "
            "warmup_steps_ignored, run_timeout (did you mean variants?)",
        ),
        (
            {"cluster": {"node": 2}},
            "cluster.node: unknown key, expected one of nodes, ranks_per_node, rate, pin (did you mean nodes?)",
        ),
        (
            {"cluster": {"nodes": 2, "workers_per_node": 2}},
            "cluster.workers_per_node: unknown key, expected one of nodes, ranks_per_node, rate, pin "
            "(did you mean ranks_per_node?)",
        ),
        ({"phases": {"times": {}}}, "phases.times: unknown key, expected one of quality, time (did you mean time?)"),
        ({"phases": {"time": {"override": {}}}}, "phases.time.override: unknown key"),
        ({"phases": {}}, "phases: is empty"),
        ({"base": None}, "base: is missing"),
        ({"base": "absent.yaml"}, "base: absent.yaml: cannot be read"),
        ({"base": 3}, "base: found 3, expected the path"),
        ({"variants": None}, "variants: is missing"),
        ({"variants": {}}, "variants: found {}, expected a mapping"),
        ({"variants": {"a/b": {}}}, "variants: found the name 'a/b'"),
        ({"variants": {True: {}}}, "variants: found the name true"),
        ({"variants": {"a": ["x"]}}, "variants.a: found ['x'], expected overrides"),
        (
            {"variants": {"a": {"moe.ruter.type": "hash"}}},
            "variants.a: moe.ruter: unknown key, did you mean moe.router?",
        ),
        (
            {"variants": {"a": {"train.seed": 1}}},
            "variants.a: train.seed cannot be set in a comparison: seeds gives it",
        ),
        ({"base_overrides": {"train.output_dir": "x"}}, "base_overrides: train.output_dir cannot be set"),
        (
            {
                "variants": {"a": {"moe.num_experts": 3, "moe.router.type": "hash"}},
                "cluster": {"ranks_per_node": 2},
                "base_overrides": {"parallel.expert": 2},
            },
            "variants.a: parallel.expert (2) does not divide moe.num_experts (3)",
        ),
        ({"phases": {"time": {"overrides": {"train.steps": 0}}}}, "variants.hash in phases.time: train.steps: found 0"),
        ({"base_overrides": {"train": {"stop_after": 3}}}, "variants.hash: train.stop_after is 3, expected null"),
        ({"baseline": "hush"}, "baseline: found 'hush', expected one of hash, locmoe (did you mean hash?)"),
        ({"seeds": 1}, "seeds: found 1, expected a list"),
        ({"seeds": []}, "seeds: found [], expected a list"),
        ({"seeds": [1, -1]}, "seeds[1]: found -1, expected an integer >= 0"),
        ({"seeds": [1, 1]}, "seeds: found [1, 1], expected each seed once"),
        ({"phases": {"time": {"seeds": [True]}}}, "phases.time.seeds[0]: found true"),
        ({"cluster": {"nodes": 0}}, "cluster.nodes: found 0, expected an integer >= 1"),
        ({"cluster": {**TWO_NODES, "rate": "fast"}}, "cluster.rate: found 'fast', expected null or a rate"),
        ({"cluster": {**TWO_NODES, "rate": "1.5gbit"}}, "cluster.rate: found '1.5gbit'"),
        ({"cluster": {"rate": "200mbit"}}, "cluster.rate is 200mbit with cluster.nodes 1"),
        ({"cluster": {"pin": True}}, "cluster.pin is true with cluster.nodes 1"),
        ({"cluster": {**TWO_NODES, "pin": "yes"}}, "cluster.pin: found 'yes', expected true or false"),
        (
            {"cluster": TWO_NODES, "base_overrides": {"parallel.ranks_per_node": 4}},
            "parallel.ranks_per_node is 4, but cluster.ranks_per_node 2",
        ),
        ({"run_timeout": 0}, "run_timeout: found 0, expected seconds > 0"),
        ({"run_timeout": "long"}, "run_timeout: found 'long'"),
        ({"warmup_steps_ignored": 10}, "warmup_steps_ignored (10) leaves no step of all/hash/seed_1 (train.steps 10)"),
        ({"warmup_steps_ignored": 1.5}, "warmup_steps_ignored: found 1.5, expected an integer >= 0"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(write_plan, changed, fragment):
    path = write_plan(**changed)
    with pytest.raises(InputError) as error:
        load_plan(path)
    assert str(error.value).startswith(f"{path}: ")
    assert fragment in str(error.value)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("", "is empty"),
        ("[1]", "found [1], expected a section with keys base"),
        ("base: a\nbase: b\n", "key 'base' is given twice"),
    ],
)
def test_a_file_that_is_no_comparison(tmp_path, text, fragment):
    path = tmp_path / "compare.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_plan(str(path))
    assert str(error.value).startswith(str(path)) and fragment in str(error.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_comparisons_that_come_with_the_project(path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parents[1])
    plan = load_plan(str(path))
    assert plan.baseline in plan.variants
    if path.stem in ("headline", "smoke"):
        assert {"hash", "switch", "locmoe"} <= set(plan.variants) and plan.baseline == "switch"
