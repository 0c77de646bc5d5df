"""What `ckpt inspect` and `verify` print, beside the arithmetic of a small checkpoint."""

import numpy as np
import pytest

from pangu_sigma.cli.main import main


@pytest.fixture
def source(workshop, tmp_path):
    model = workshop.random_model(
        workshop.config({"dense_layers": 0, "sparse_layers": 1}, {"router": {"type": "hash"}})
    )
    return workshop.save(model, tmp_path / "run" / "checkpoints", step=20)


def test_inspect_shows_the_newest_of_a_run(source, tmp_path, capsys):
    assert main(["ckpt", "inspect", str(tmp_path / "run"), "--tensors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(source)
    assert lines[1] == "step 20, training; format version 2"
    assert "0 dense + 1 sparse layers, 4 experts in 2 groups, router hash" in lines[2]
    assert "vocabulary 320, domains one, two" in lines[4]
    assert max(map(len, lines[1 : lines.index("")])) <= 79
    assert any(line.startswith("numbers: ") and "loss_scale.scale 1" in line for line in lines)
    experts = 4 * 4 * (2 * 16 * 20 + 20 + 16)  # bytes: experts x float32 x an expert's numbers
    words = [" ".join(line.split()) for line in lines]
    assert f"weights of experts 16 {experts / 1e6:,.1f} MB" in words
    assert "blocks.0.feed_forward.experts.w_in@3 F32 [16, 20] experts_0_0.safetensors" in words
    assert sum(line.startswith("adam_m.blocks.0.feed_forward.experts.w_in@") for line in lines) == 4


def test_verify_looks_at_every_checkpoint_and_fails_if_one_is_damaged(source, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert main(["ckpt", "verify", run]) == 0
    assert capsys.readouterr().out.startswith(f"{source}: whole, step 20, ")
    content = np.frombuffer((source / "dense_0.safetensors").read_bytes(), np.uint8).copy()
    content[len(content) // 2] ^= 4
    (source / "dense_0.safetensors").write_bytes(content.tobytes())
    assert main(["ckpt", "verify", run]) == 2
    shown = capsys.readouterr()
    assert shown.out.startswith(f"{source}: damaged: ")
    assert (
        shown.err.count("\n") == 1 and "1 of 1 checkpoints damaged" in shown.err and "dense_0.safetensors" in shown.err
    )
