"""`pangu-sigma doctor --self-test` on four ranks that play two nodes, started as a user would."""

import yaml

from helpers.launched import MODEL, ROOT, run_command


def test_four_ranks_try_their_groups_and_links(tmp_path):
    """Experts over the nodes, tensors inside them: every kind of group has a line or is one that has."""
    given = {"model": MODEL, "parallel": {"expert": 2, "tensor": 2, "ranks_per_node": 2}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(given))
    script = str(ROOT / "scripts" / "train_msrun.sh")
    done = run_command(
        tmp_path, "bash", script, "--ranks-per-node", "4", "--bench", "self-test", str(tmp_path / "config.yaml")
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    text = " ".join(done.stdout.split())
    assert "ok job 4 ranks on 2 nodes" in text and "expert parallel 2, tensor parallel 2" in text
    assert "rank numbers arrive in all kinds of groups: world, tp, ep" in text
    assert "GB/s a rank among 2 ranks, written in the hardware file 1 GB/s" in text  # inside a node
    assert "assumed in the hardware file 0.5 GB/s" in text  # between nodes, whose link two ranks share
    assert "0 failed, 1 not checked" in text  # the fused kernel
