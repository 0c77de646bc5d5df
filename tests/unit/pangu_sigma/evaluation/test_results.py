import json

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.evaluation.intervals import Estimate
from pangu_sigma.evaluation.measurement import MeasuredFigure
from pangu_sigma.evaluation.results import Measured, RecordFile, as_json, table, write_results


def test_records_that_were_written_whole_survive_a_cut_off(tmp_path):
    path, header = tmp_path / "new" / "task.jsonl", {"checkpoint": "c", "sizes": (1, 2)}
    with RecordFile(path, header, fresh=False) as file:
        file.add([0, 1], [{"a": "中"}, {"a": 2}])
        file.add([4], [{"a": 3}])
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])  # cut off within the last line
    with RecordFile(path, header, fresh=False) as file:
        assert file.records == {0: {"a": "中"}, 1: {"a": 2}}
        file.add([4], [{"a": 3}])
    assert path.read_bytes() == whole
    with RecordFile(path, header, fresh=True) as file:
        assert file.records == {} and len(path.read_text().splitlines()) == 1


def test_names_of_another_encoding_are_kept(tmp_path):
    header = {"checkpoint": "caf\udce9"}
    with RecordFile(tmp_path / "task.jsonl", header, fresh=False) as file:
        file.add([0], [{"a": "\ud83d中"}])
    with RecordFile(tmp_path / "task.jsonl", header, fresh=False) as file:
        assert file.records == {0: {"a": "\ud83d中"}}
    path = write_results(tmp_path, {"results": {"task-caf\udce9": {}}, "notes": {}})
    assert json.loads(path.read_bytes()) == {"results": {"task-caf\udce9": {}}, "notes": {}}


@pytest.mark.parametrize("content", [b"", b'{"check', b'{"checkpoint": "c"'])
def test_a_file_without_a_whole_header_begins_anew(tmp_path, content):
    path = tmp_path / "task.jsonl"
    path.write_bytes(content)
    with RecordFile(path, {"checkpoint": "c"}, fresh=False) as file:
        assert file.records == {}


@pytest.mark.parametrize("content", [b"no json\n", b"[1]\n", b"\xff\xfe\n", b"years of work"])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_file_of_others_stays(tmp_path, content, fresh):
    path = tmp_path / "task.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match="task.jsonl: is there already, and pangu-sigma did not write it"):
        RecordFile(path, {"checkpoint": "c"}, fresh)
    assert path.read_bytes() == content


def test_records_of_something_else_are_not_gone_on_with(tmp_path):
    path = tmp_path / "task.jsonl"
    RecordFile(path, {"checkpoint": "one", "task": {"shots": 1}}, fresh=False).__exit__(None, None, None)
    with pytest.raises(
        InputError, match="task.jsonl: holds records of another task; expected another --output, or --fresh"
    ):
        RecordFile(path, {"checkpoint": "one", "task": {"shots": 2}}, fresh=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--output .*cannot be"):
        RecordFile(tmp_path / "file" / "task.jsonl", {}, fresh=False)


MEASURED = [
    Measured(
        "validation-no-local",
        [
            MeasuredFigure("en", "perplexity", 96, Estimate(9123.456, 8999.9, 12345.6)),
            MeasuredFigure("en", "bits_per_byte", 96, Estimate(2.5, 2.25, 2.75)),
        ],
        [],
    ),
    Measured(
        "task-a-long-name-of-a-task",
        [
            MeasuredFigure("a-long-domain", "accuracy_per_token", 123456, Estimate(0.5, 0.25, 0.75)),
            MeasuredFigure("b", "f1", 1, Estimate(1.0, None, None)),
        ],
        ["a note"],
    ),
]


def test_the_table_fits_a_terminal():
    lines = table(MEASURED).splitlines()
    assert max(map(len, lines)) <= 79
    words = [line.split() for line in lines[2:]]
    assert [row for row in words if len(row) > 3] == [  # what does not fit continues below
        ["validation-no-", "en", "perplexity", "9123.5", "8999.9", "to", "12346", "96"],
        ["en", "bits_per_byte", "2.500", "2.250", "to", "2.750", "96"],
        ["task-a-long-", "a-long-domain", "accuracy_per_token", "0.500", "0.250", "to", "0.750", "123456"],
        ["b", "f1", "1.000", "-", "1"],
    ]
    assert [row for row in words if len(row) <= 3] == [["local"], ["name-of-a-task"]]


@pytest.mark.parametrize("domain", ["en", "中文小说与诗歌", "x" * 60])
def test_names_of_domains_in_any_script_keep_the_columns(domain):
    """A Chinese character takes two columns of a terminal."""
    figures = [MeasuredFigure(name, "perplexity", 1, Estimate(2.5, 2.25, 2.75)) for name in (domain, "b")]
    lines = table([Measured("validation", figures, [])]).splitlines()
    assert all(len(line) + sum(character > "\u2fff" for character in line) <= 79 for line in lines)


def test_the_json_holds_every_figure():
    content = json.loads(json.dumps(as_json({"step": 3}, MEASURED)))
    assert content["step"] == 3 and content["confidence"] == 0.95
    assert content["notes"] == {"task-a-long-name-of-a-task": ["a note"]}
    assert content["results"]["validation-no-local"]["en"]["bits_per_byte"] == {
        "value": 2.5,
        "low": 2.25,
        "high": 2.75,
        "examples": 96,
    }
    assert content["results"]["task-a-long-name-of-a-task"]["b"]["f1"]["low"] is None


def test_one_call_leaves_the_results_of_another_of_the_same_checkpoint(tmp_path):
    def written(step, *measured):
        return json.loads(write_results(tmp_path, as_json({"checkpoint": "c", "step": step}, measured)).read_text())

    written(3, *MEASURED)
    again = MEASURED[0]._replace(figures=MEASURED[0].figures[:1])
    found = written(3, again)
    assert found["notes"] == as_json({}, MEASURED)["notes"]
    assert found["results"] == {**as_json({}, MEASURED)["results"], **as_json({}, [again])["results"]}
    assert set(written(4, again)["results"]) == {again.name}
    (tmp_path / "results.json").write_text("{")
    assert set(written(4, MEASURED[1])["results"]) == {MEASURED[1].name}
