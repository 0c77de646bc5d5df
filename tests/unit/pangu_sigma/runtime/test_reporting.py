"""Whatever the encoding of the terminal and whatever is closed: what a command has to say never ends it."""

import json
import os
import subprocess
import sys

import pytest

ENCODINGS = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "gbk"},
    {"PYTHONIOENCODING": "latin-1:strict"},
    {"LC_ALL": "C"},
    {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "utf-8"},
]
WORDS = "天下 café 😀 \udce9"


def run(
    arguments, environment=None, cwd=None, program="from pangu_sigma.cli.main import main; sys.exit(main())", **options
):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    path = os.pathsep.join(sys.path[:1] + [str(root) for root in sys.path if root])
    command = [sys.executable, "-c", f"import sys; {program}", *map(os.fsencode, arguments)]
    return subprocess.run(
        command,
        env={**clean, "PYTHONPATH": path, **(environment or {})},
        cwd=cwd,
        capture_output=True,
        timeout=120,
        **options,
    )


@pytest.mark.parametrize("environment", ENCODINGS, ids=str)
def test_any_character_is_written(environment):
    program = (
        "from pangu_sigma.runtime.reporting import make_streams_lenient, print_json; make_streams_lenient(); "
        f"text = {WORDS!a} + chr(0xd83d); print(text); print(text, file=sys.stderr); "
        f"print_json({{'a': {'天下 😀 é'!a}}}); from tqdm import tqdm; "
        "tqdm.write(text, file=sys.stdout); list(tqdm([1], desc=text[:-1]))"
    )
    done = run([], environment, program=program)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    encoding = environment.get("PYTHONIOENCODING", "utf-8" if "PYTHONUTF8" not in environment else "ascii").partition(
        ":"
    )[0]
    assert json.loads(lines[1].decode(encoding)) == {"a": "天下 😀 é"}
    assert lines[0] == lines[2] == (WORDS + "\ud83d").encode(encoding, "backslashreplace")
    assert done.stderr.splitlines()[0] == lines[0]


@pytest.mark.parametrize("environment", ENCODINGS, ids=str)
def test_config_shows_keys_beyond_ascii(tmp_path, environment):
    (tmp_path / "配置.yaml").write_text("data: {path: 数据 😀}\ntrain: {output_dir: 运行}\n", encoding="utf-8")
    done = run(["config", "配置.yaml", "--key", "data.path"], environment, tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.strip() in {
        "数据 😀".encode(encoding, "backslashreplace") for encoding in ("utf-8", "gbk", "ascii")
    }


ERRORS = [
    (["config", "缺.yaml"], "cannot be read (no such file or directory)"),
    (["config", "caf\udce9.yaml"], "cannot be read (no such file or directory)"),
    (["config", "c.yaml", "--set", "data.path=caf\udce9"], "--set data.path=caf"),
    (["config", "c.yaml", "--set", "数.path=1"], "unknown key"),
    (["config", "c.yaml", "--set", "train.steps=天"], "expected an integer"),
    (["trian\udce9"], "invalid choice"),
]


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "gbk"}, {"LC_ALL": "C"}], ids=str
)
def test_an_error_is_one_line_in_any_encoding(tmp_path, environment):
    (tmp_path / "c.yaml").write_text("{}")
    program = (
        f"from pangu_sigma.cli.main import main; print([main(words) for words in {[words for words, _ in ERRORS]!a}])"
    )
    done = run([], environment, tmp_path, program)
    assert done.stdout.split() == str([2] * len(ERRORS)).encode().split()
    lines = done.stderr.decode("gbk" if "gbk" in environment.values() else "utf-8").splitlines()
    assert len(lines) == len(ERRORS)
    for line, (_, fragment) in zip(lines, ERRORS):
        assert line.startswith("pangu-sigma: error: ") and fragment in line


def test_a_path_that_the_system_cannot_spell_is_named(tmp_path):
    """A system that is told to take ASCII alone for file names."""
    (tmp_path / "c.yaml").write_text("data: {prepare: {sources: {en: .}, tokenizer: 数据}}", encoding="utf-8")
    done = run(["prepare", "c.yaml"], {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, tmp_path)
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1
    assert b"cannot be spelled in ascii, the encoding of file names here; expected PYTHONUTF8=1" in done.stderr


def test_a_path_in_another_encoding_is_as_good_as_any(tmp_path):
    """What a file system takes, commands take; only texts have to be Unicode."""
    (tmp_path / "caf\udce9.yaml").write_text("{}")
    assert run(["config", "caf\udce9.yaml", "--key", "train.steps"], {}, tmp_path).returncode == 0


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(tmp_path, closed):
    (tmp_path / "c.yaml").write_text("{}")
    for arguments, status in (("config c.yaml", 0), ("config none.yaml", 2)):
        command = f'"{sys.executable}" -m pangu_sigma {arguments} {closed}'
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, timeout=120)
        assert done.returncode == status
        assert (
            b"" if "2>" in closed or not status else b"none.yaml"
        ) in done.stderr and b"Traceback" not in done.stderr


def test_what_libraries_print_does_not_go_into_a_file_that_took_the_place_of_a_closed_stream(tmp_path):
    program = (
        "from pangu_sigma.runtime.reporting import make_streams_lenient; make_streams_lenient(); import os; "
        "file = open('kept', 'w'); os.write(1, b'noise'); os.write(2, b'noise'); file.close()"
    )
    subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "import sys; {program}" >&- 2>&-'], cwd=tmp_path, check=True, timeout=120
    )
    assert (tmp_path / "kept").read_text() == ""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_standard_output_is_one_line(tmp_path, unbuffered):
    (tmp_path / "c.yaml").write_text("{}")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pangu_sigma", "config", "c.yaml"],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=120,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 1
    assert done.stderr == (
        b"pangu-sigma: error: what the command writes cannot be written (no space left on device); expected more room\n"
    )
