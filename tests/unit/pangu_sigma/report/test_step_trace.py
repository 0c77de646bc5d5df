"""Step traces in the format that MindSpore's profiler writes, good and broken; and what `profile` prints of them."""

import json

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.cli.main import main
from pangu_sigma.report.collect import traced_values
from pangu_sigma.report.step_trace import COLUMNS, TRACE, TimeSplit, read_profile, read_step_trace

HEADER = (
    "Step,Computing,Communication(Not Overlapped),Overlapped,Communication,Free,Stage,Bubble,"
    "Communication(Not Overlapped and Exclude Receive),Preparing"
)
# Of each step: 6 ms of computing, 3 ms of communication of which 1 ms beside it, 0.5 ms idle; then 7, 4, 4 and 0.
ROWS = [
    "1,7000.000,0.000,4000.000,4000.000,0.000,7000.000,0.000,0.000,10.000",
    "0,6000.250,2000.000,1000.000,3000.000,500.500,8500.750,0.000,2000.000,120.375",
]


def write(folder, name="rank_0_4711_20261126120000000_ascend_ms", rows=ROWS, header=HEADER):
    path = folder / name / TRACE
    path.parent.mkdir(parents=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_the_columns_are_those_of_the_installed_mindspore():
    from mindspore.profiler.analysis.viewer.ascend_step_trace_time_viewer import AscendStepTraceTimeViewer

    assert AscendStepTraceTimeViewer.STEP_TRACE_TIME_HEADERS == HEADER.split(",")
    assert set(COLUMNS) <= set(HEADER.split(","))


def test_microseconds_become_seconds_in_the_order_of_steps(tmp_path):
    first, second = read_step_trace(write(tmp_path))
    assert first == pytest.approx((0.00600025, 0.003, 0.001, 0.0005005))
    assert second == pytest.approx((0.007, 0.004, 0.004, 0.0))
    assert first.step == pytest.approx(0.00850075) and second.step == pytest.approx(0.007)


@pytest.mark.parametrize(
    ("rows", "header", "fragment"),
    [
        ([], HEADER, "no step in it"),
        ([], "", "no step in it"),
        (["0,1,1"], "Step,Computing,Free", "no column Communication, expected Step, Computing,"),
        (["0,6000,2000,1000"], HEADER, "Communication: found None, expected a number"),
        (["0,fast,2000,1000,3000,0,0,0,0,0"], HEADER, "Computing: found 'fast', expected a number of at least 0"),
        (["0,-1,2000,1000,3000,0,0,0,0,0"], HEADER, "Computing: found '-1'"),
        (["0,nan,2000,1000,3000,0,0,0,0,0"], HEADER, "Computing: found 'nan'"),
        (["0,6000,2000,1000,9000,0,0,0,0,0"], HEADER, "step 0: Communication 9000.0, Overlapped 1000.0"),
        (["0,500,0,1000,1000,0,0,0,0,0"], HEADER, "and Computing 500.0 do not fit together"),
    ],
)
def test_broken_traces_are_refused_in_one_line(tmp_path, rows, header, fragment):
    path = write(tmp_path, rows=rows, header=header)
    with pytest.raises(InputError) as caught:
        read_step_trace(path)
    assert fragment in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_newest_trace_of_each_rank_counts(tmp_path):
    write(tmp_path, "rank_1_99_20261126120000000_ascend_ms", rows=["0,1,0,0,0,0,0,0,0,0"])
    write(tmp_path, "rank_1_11_20261126130000000_ascend_ms")
    write(tmp_path, "rank_0_12_20261126130000000_ascend_ms", rows=["0,5000,0,0,0,1000,0,0,0,0"])
    write(tmp_path, "host_12_20261126130000000_ascend_ms")  # of another program
    found = read_profile(tmp_path)
    assert found.traced and list(found.ranks) == [0, 1] and len(found.ranks[1]) == 2
    assert found.mean() == pytest.approx(((0.005 + 0.00600025 + 0.007) / 3, 0.007 / 3, 0.005 / 3, 0.0015005 / 3))


def test_compare_takes_the_split_from_traces_alone(tmp_path):
    assert traced_values(tmp_path / "absent") == {}
    (tmp_path / "rank_0.json").write_text(
        json.dumps(
            {
                "steps": [
                    {"step": 3, "compute(s)": 1.0, "communication(s)": 0.5, "overlapped(s)": 0.25, "idle(s)": 0.125}
                ]
            }
        )
    )
    assert traced_values(tmp_path) == {}  # the run's own metrics have it, for all steps
    assert read_profile(tmp_path).ranks == {0: [TimeSplit(1.0, 0.5, 0.25, 0.125)]}
    write(tmp_path)
    assert traced_values(tmp_path) == pytest.approx(
        {
            "time/compute(s)": 0.006500125,
            "time/communication(s)": 0.0035,
            "time/overlapped(s)": 0.0025,
            "time/idle(s)": 0.00025025,
            "time/overlapped_share": 0.0025 / 0.0035,
        }
    )


def test_the_table_by_rank(tmp_path, capsys):
    write(tmp_path / "profile")
    write(tmp_path / "profile", "rank_1_5_20261126120000000_ascend_ms", rows=["0,5000,0,0,0,1000,0,0,0,0"])
    assert main(["profile", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 79 for line in lines)
    assert lines[0] == "2 steps of 2 ranks, by MindSpore's profiler; milliseconds a step"
    assert lines[4].split() == ["0", "7.750", "6.500", "3.500", "2.500", "0.250", "12.9%"]
    assert lines[5].split() == ["1", "6.000", "5.000", "0.000", "0.000", "1.000", "0.0%"]


@pytest.mark.parametrize(
    ("text", "fragment"), [(None, "no profile in it"), ("{", "not a rank's timers"), ('{"steps": [{}]}', "a rank's")]
)
def test_without_a_profile_there_is_one_line(tmp_path, capsys, text, fragment):
    if text is not None:
        (tmp_path / "rank_0.json").write_text(text)
    assert main(["profile", str(tmp_path)]) == 2
    assert fragment in capsys.readouterr().err
