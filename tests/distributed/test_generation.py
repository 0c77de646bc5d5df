"""Generation with experts spread over two ranks, by the launcher, beside the same command in one process."""

import json
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train_msrun.sh"
LIMIT = 600
# Two experts of each group, one a rank; of a token's two experts either may be elsewhere. Output is scaled by the gate.
ROUTER = {"type": "gshard", "top_k": 2}
PROMPTS = [("abcd efgh", "one"), ("c", "two"), ("jihg fedc ba", "one")]


def test_two_ranks_say_what_one_process_says(save_run, tmp_path, capsys):
    """Texts of several prompts, greedy and sampled; the second rank keeps silent. Sums over ranks round otherwise, by
    1e-7 of logits whose ties would have to be as close for another token.
    """
    from pangu_sigma.cli.main import main

    run = save_run({"router": ROUTER})
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text, "domain": domain}) + "\n" for text, domain in PROMPTS))
    config = str(run / "config.yaml")
    words = [
        "--prompt-file",
        str(prompts),
        "--json",
        "--max-new-tokens",
        "12",
        "--temperature",
        "1.2",
        "--seed",
        "4",
        "--ignore-end",
    ]
    done = subprocess.run(
        [
            "bash",
            str(SCRIPT),
            "--ranks-per-node",
            "2",
            "--generate",
            config,
            "--set",
            "parallel.expert=2",
            "--log-dir",
            str(tmp_path / "logs"),
            "--",
            *words,
        ],
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert main(["generate", config, *words]) == 0
    expected = capsys.readouterr().out
    assert len(expected.splitlines()) == 3 and len(set(map(len, expected.splitlines()))) > 1
    assert [line for line in done.stdout.splitlines() if line.startswith("{")] == expected.splitlines()
    assert "{" not in (tmp_path / "logs" / "worker_1.log").read_text()


def test_ranks_that_do_not_divide_the_experts(save_run, tmp_path):
    config = str(save_run({}) / "config.yaml")
    done = subprocess.run(
        [
            "bash",
            str(SCRIPT),
            "--ranks-per-node",
            "3",
            "--generate",
            config,
            "--set",
            "train.global_batch_size=3",
            "--log-dir",
            str(tmp_path / "logs"),
            "--",
            "--prompt",
            "a",
            "--domain",
            "one",
        ],
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 2 and "(3) does not divide moe.num_experts (4)" in done.stderr, done.stdout + done.stderr
