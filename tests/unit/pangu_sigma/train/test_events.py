"""TensorBoard's event files, read back: the records by hand (length, checksums, content), the content by its protocol
buffer.
"""

import struct

import pytest

from pangu_sigma.config.load import config_from_dict
from pangu_sigma.train.events import FOLDER, EventLog, tag
from pangu_sigma.train.metrics import MetricsLog


def crc32c(data):
    """Castagnoli's polynomial, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(folder):
    """Those of all files of a run, file by file as they were begun."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((folder / FOLDER).iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content, place = path.read_bytes(), 0
        while place < len(content):
            length, check = struct.unpack_from("<QI", content, place)
            body = content[place + 12 : place + 12 + length]
            assert check == masked(content[place : place + 8])
            assert struct.unpack_from("<I", content, place + 12 + length)[0] == masked(body)
            found.append(Event.FromString(body))
            place += 16 + length
    return found


def scalars(folder):
    return [
        (event.step, value.tag, value.simple_value)
        for event in events(folder)
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


def histograms(folder):
    return {
        (event.step, value.tag): value.histo
        for event in events(folder)
        for value in event.summary.value
        if value.HasField("histo")
    }


@pytest.fixture
def config(tmp_path):
    return config_from_dict({"train": {"steps": 5, "log_interval": 2, "output_dir": str(tmp_path)}})


def record(step):
    return {
        "progress/step": step,
        "time/step(s)": 0.5 * step,
        "optim/grad_norm": None,
        "moe/tokens_per_expert": [[1, 3], [4, 0]],
    }


def test_a_run_and_its_cosines(config, tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0, [EventLog(config, 0)])
    for step in range(1, 6):
        log.write(record(step))
    log.close({"layer": 1, "token_gate": {"edges": [-1.0, 0.0, 1.0], "counts": [2, 6]}, "delta": {"maximum": [0.1]}})
    assert scalars(tmp_path) == [
        pair for step in range(1, 6) for pair in ((step, "progress/step", step), (step, "time/step_s", step / 2))
    ]
    found = histograms(tmp_path)
    layers = [f"moe/tokens_per_expert/layer_{layer}" for layer in range(2)]
    assert set(found) == {(step, layer) for step in (2, 4, 5) for layer in layers} | {(5, "cosines/token_gate")}
    load, cosines = found[4, layers[0]], found[5, "cosines/token_gate"]
    assert (list(load.bucket_limit), list(load.bucket), load.num, load.min, load.max) == ([1, 2], [1, 3], 4, 0, 2)
    assert (load.sum, load.sum_squares) == (1 * 0.5 + 3 * 1.5, 1 * 0.25 + 3 * 2.25)
    assert (list(cosines.bucket_limit), list(cosines.bucket), cosines.min) == ([0.0, 1.0], [2, 6], -1.0)


def test_a_resumed_run_hides_the_steps_that_it_makes_again(config, tmp_path):
    for start in (0, 3):
        log = MetricsLog(tmp_path / "metrics.jsonl", start, [EventLog(config, start)])
        log.write(record(start + 1))
        log.close()
    begun = [
        event.step for event in events(tmp_path) if event.HasField("session_log") and event.session_log.status == 1
    ]  # START
    assert begun == [1, 4]


def test_tags():
    assert (
        tag("time/all_to_all/overlapped(s)") == "time/all_to_all/overlapped_s"
        and tag("comm/inter_node(B)") == "comm/inter_node_B"
    )
