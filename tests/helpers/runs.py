"""Comparison files, and what runs leave, made up: everything that a report can show."""

import json
import math

import pytest
import yaml

from pangu_sigma.compare.comparison import load_plan
from pangu_sigma.report.comparison import folder_of

BASE = {
    "model": {"hidden_size": 16, "num_heads": 2, "sequence_length": 32},
    "moe": {"num_experts": 4},
    "optimizer": {"warmup_steps": 1},
    "train": {"steps": 10, "global_batch_size": 4},
    "data": {"path": "absent"},
}
LONG_NAME = "locmoe.hierarchical+two_chunks+capacity_1.0"


@pytest.fixture
def write_plan(tmp_path):
    """Writes a comparison of two variants (or as changed; None leaves a key out), and its base; returns its path."""
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))

    def _write(**changed):
        content = {
            "base": str(tmp_path / "base.yaml"),
            "seeds": [1],
            "variants": {"hash": {"moe.router.type": "hash"}, "locmoe": {"moe.router.type": "locmoe"}},
            **changed,
        }
        path = tmp_path / "compare.yaml"
        path.write_text(
            yaml.safe_dump({key: value for key, value in content.items() if value is not None}, sort_keys=False)
        )
        return str(path)

    return _write


@pytest.fixture
def make_plan(write_plan):
    return lambda **changed: load_plan(write_plan(**changed))


@pytest.fixture
def write_run(tmp_path):
    """Leaves what a finished run leaves, in tmp_path/out; other files by name (without .json) and content."""

    def _write(run, records, /, **files):
        folder = folder_of(tmp_path / "out", run)
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        note = {"settings": run.settings, "status": "finished"}
        for name, content in {"run": note, "summary": {"router": "x", "unigram_perplexity": 900.0}, **files}.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        return folder

    return _write


@pytest.fixture
def whole_plan(make_plan, write_run, made_up_records, made_up_cosines):
    """A comparison of two phases and four variants whose runs, all made up, have everything that a report can show."""
    plan = make_plan(
        seeds=[1, 2, 3],
        baseline="switch",
        warmup_steps_ignored=5,
        cluster={"nodes": 2, "ranks_per_node": 2, "rate": "200mbit"},
        base_overrides={"parallel.expert": 4, "moe.capacity.factor": 1.5},
        variants={
            "switch": {"moe.router.type": "switch"},
            "hash": {"moe.router.type": "hash", "moe.capacity.factor": 1.25},
            "locmoe": {},
            LONG_NAME: {"moe.dispatch.type": "hierarchical", "moe.dispatch.chunks": 2, "moe.capacity.factor": 1.0},
        },
        phases={
            "quality": {"rate": None, "overrides": {"train.steps": 400}},
            "time": {"overrides": {"train.steps": 60}},
        },
    )
    for run in plan.runs:
        place = plan.variants.index(run.variant)
        counters = [
            {"node": node, "tx_bytes": {"before": 1000, "after": 1000 + (9 - node) * 10**9 // (place + 1)}}
            for node in range(2)
        ]
        write_run(
            run,
            made_up_records(place, run.seed, run.config.train.steps),
            cosines=made_up_cosines(place),
            interfaces={"interfaces": counters},
        )
    return plan


@pytest.fixture(scope="session")
def made_up_records():
    return _records


@pytest.fixture(scope="session")
def made_up_cosines():
    return _cosines


def _records(place, seed, steps):
    """Records of the `place`-th variant: shorter steps and fewer bytes for later ones, the best text for the second."""
    step = 1.9 - 0.2 * place + 0.03 * seed
    communication, idle, overlapped = 0.55 * step - 0.1 * place, 0.12, 0.15 * place
    far, near = 25_100_000 // (place + 1), 12_500_000 + 4_000_000 * place
    records = []
    for number in range(1, steps + 1):
        counts = [[100.0 + 60 * math.sin(expert + place + number / 40) for expert in range(8)] for _ in range(2)]
        record = {
            "progress/step": number,
            "progress/epoch": number / 500,
            "loss/total": 7.0,
            "loss/task": 5.0 - 0.1 * place + 4 * math.exp(-number / 60),
            "optim/grad_norm": 1.0 + 0.1 * place + math.exp(-number / 40),
            "optim/learning_rate": 1e-3 * min(1.0, number / 20),
            "time/step(s)": step + 0.01 * (number % 7),
            "time/communication(s)": communication,
            "time/idle(s)": idle,
            "time/overlapped(s)": overlapped,
            "time/compute(s)": step - communication - idle + overlapped,
            "time/all_to_all(s)": 0.8 * communication,
            "comm/intra_node(B)": near + 3_000_000,
            "comm/inter_node(B)": far + 6_000_000,
            "comm/all_to_all/intra_node(B)": near,
            "comm/gradient/intra_node(B)": 3_000_000,
            "comm/all_to_all/inter_node(B)": far,
            "comm/gradient/inter_node(B)": 6_000_000,
            "moe/drop_fraction": 0.02 * place,
            "moe/local_fraction": 0.5 + 0.1 * place,
            "moe/load_max_over_mean": 1.6,
            "moe/tokens_per_expert": counts,
            "throughput/tokens_per_second": 128 / step,
        }
        if number % 20 == 0:
            perplexity = 230 + 4 * (place - 1) ** 2 + 2 * seed + 1400 * math.exp(-number / 60)
            record.update({"valid/loss": math.log(perplexity), "valid/perplexity": perplexity})
        records.append(record)
    return records


def _cosines(place):
    edges = [-1 + 0.1 * number for number in range(21)]

    def bell(middle, width):
        return {
            "edges": edges,
            "counts": [round(1000 * math.exp(-(((edge + 0.05 - middle) / width) ** 2))) for edge in edges[:-1]],
        }

    return {
        "token_token_within": bell(0.3 + 0.1 * place, 0.3),
        "token_token_across": bell(0.1, 0.25),
        "token_gate": bell(0.02, 0.08),
    }
