"""TensorBoard's event files, read back: the records by hand (length, checksums, content), the content by its protocol
buffer.
"""

import json
import struct

import pytest
import yaml

from pangu_sigma.config.load import config_from_dict, to_dict
from pangu_sigma.metrics.definitions import DEFINITIONS
from pangu_sigma.train.events import FOLDER, EventLog, tag
from pangu_sigma.train.metrics import MetricsLog

LAUNCH = {"host": "node-7", "command": "pangu-sigma train größe.yaml"}


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


def texts(folder):
    """By tag and step; what TensorBoard's Text tab shows as code, without its indentation."""
    return {
        (event.step, value.tag): "".join(
            line[4:] + "\n" for line in value.tensor.string_val[0].decode("utf-8").splitlines()
        )
        for event in events(folder)
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "text"
    }


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
    log = MetricsLog(tmp_path / "metrics.jsonl", 0, [EventLog(config, 0, LAUNCH)])
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
        log = MetricsLog(tmp_path / "metrics.jsonl", start, [EventLog(config, start, LAUNCH)])
        log.write(record(start + 1))
        log.close()
    begun = [
        event.step for event in events(tmp_path) if event.HasField("session_log") and event.session_log.status == 1
    ]  # START
    assert begun == [1, 4]


def test_curves_are_described_once_a_file_and_have_the_times_of_their_steps(config, tmp_path):
    """TensorBoard takes a description from a curve's first point. `time/unix` is an axis there, no curve."""
    for start in (0, 2):
        log = MetricsLog(tmp_path / "metrics.jsonl", start, [EventLog(config, start, LAUNCH)])
        for step in (start + 1, start + 2):
            log.write({**record(step), "time/unix": 1e9 + step, "of/nobody": 1.0})
        log.close()
    points = [(event, value) for event in events(tmp_path) for value in event.summary.value if value.simple_value]
    assert {value.tag for _, value in points} == {"progress/step", "time/step_s", "of/nobody"}
    assert all(event.wall_time == 1e9 + event.step for event, _ in points)
    described = [
        (event.step, value.tag, value.metadata.summary_description)
        for event, value in points
        if value.metadata.summary_description
    ]
    meanings = {tag(name): DEFINITIONS[name].meaning for name in ("progress/step", "time/step(s)")}
    assert described == [(step, name, meaning) for step in (1, 3) for name, meaning in meanings.items()]


def test_configuration_and_environment_are_texts(config, tmp_path):
    EventLog(config, 3, LAUNCH).close()
    found = texts(tmp_path)
    assert set(found) == {(3, "configuration/text_summary"), (3, "environment/text_summary")}
    assert yaml.safe_load(found[3, "configuration/text_summary"]) == to_dict(config)
    assert json.loads(found[3, "environment/text_summary"]) == LAUNCH


def test_tags():
    assert (
        tag("time/all_to_all/overlapped(s)") == "time/all_to_all/overlapped_s"
        and tag("comm/inter_node(B)") == "comm/inter_node_B"
    )
