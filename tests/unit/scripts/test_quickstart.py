"""`scripts/quickstart.sh`: what it answers before it installs anything, and its configuration."""

import subprocess
from pathlib import Path

import pytest

from pangu_sigma.config.load import load_config
from pangu_sigma.config.validate import validate

REPOSITORY = Path(__file__).parents[3]
RANKS = 2


@pytest.fixture
def run():
    """Runs the script; returns its exit status, stdout and the lines of stderr."""

    def _run(*arguments):
        command = ["bash", str(REPOSITORY / "scripts" / "quickstart.sh"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr.splitlines()

    return _run


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--stepz", "3"], "unknown argument --stepz"),
        (["more"], "unknown argument more"),
        (["--steps"], "--steps: found '', expected a number of at least 1"),
        (["--steps", "0"], "--steps: found '0'"),
        (["--steps=ten"], "--steps: found 'ten'"),
        (["--set"], "--set needs a value"),
    ],
)
def test_a_wrong_argument_ends_it_before_anything_is_installed(run, arguments, fragment):
    status, output, (line,) = run(*arguments)
    assert (status, output) == (2, "")
    assert line.startswith("quickstart.sh: error: ") and fragment in line


def test_help_names_every_option(run):
    status, output, errors = run("--help")
    assert (status, errors) == (0, [])
    assert all(option in output for option in ("--steps", "--set", "--fresh", "--help"))
    assert max(map(len, output.splitlines())) <= 79


@pytest.mark.parametrize("router", ["hash", "switch", "locmoe"])
def test_the_configuration_fits_two_workers_with_each_router(router):
    config = load_config(REPOSITORY / "configs" / "quickstart.yaml", [f"moe.router.type={router}"])
    validate(config, RANKS)
    # A node has a domain of its own, and all experts are open to it: nearness is the router's to learn.
    assert RANKS // config.parallel.ranks_per_node == len(config.data.prepare.sources) == 2
    assert (config.data.placement, config.moe.num_groups) == ("domain_by_node", 1)
    # Curves of validation are curves: several points before the last.
    assert config.train.eval_interval == 40 and config.train.steps // config.train.eval_interval >= 4
    assert config.train.global_batch_size % RANKS == 0
    # The turns in which routers are trained end where a checkpoint is.
    assert config.train.steps % (4 * config.checkpoint.interval) == 0


@pytest.mark.parametrize("overrides", [["data.prepare.sources={en: x, zh: y}"], ["data.placement=shuffled"]])
def test_the_configuration_fits_other_domains(overrides):
    """What the script sets where only some of the sample corpora can be had; one domain cannot be placed by domain."""
    validate(load_config(REPOSITORY / "configs" / "quickstart.yaml", overrides), RANKS)


@pytest.fixture
def script(tmp_path):
    """`script(words)`: runs a line of bash after the script's functions, in an empty folder; its output."""
    text = (REPOSITORY / "scripts" / "quickstart.sh").read_text(encoding="utf-8")
    functions = text[text.index("\nconfig=") : text.index('\nparse_arguments "$@"')]

    def _script(words):
        done = subprocess.run(
            ["bash", "-euc", f"{functions}\n{words}"], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout.splitlines()

    return _script


@pytest.mark.parametrize(
    ("fetched", "domains", "overridden"),
    [
        ("en zh code", "en code", 0),
        ("en zh", "en zh", 2),
        ("zh code", "code zh", 2),
        ("code", "code", 4),
    ],
)
def test_two_domains_of_those_that_could_be_fetched(script, fetched, domains, overridden):
    *said, found = script(
        f'mkdir -p $(printf "data/samples/%s " {fetched})\npython=true fetch_text\n'
        'echo "${domains[*]} ${#overrides[@]}"'
    )
    assert found == f"{domains} {overridden}"
    expected = [
        "continuing with: " + domains,
        "both nodes read the same domain: there is little for a router to keep near",
    ]
    assert said == expected[: 0 if not overridden else 2 if domains == "code" else 1]


@pytest.mark.parametrize(
    ("metrics", "step"),
    [
        (None, 0),
        ("", 0),
        ('{"progress/step": 1}\n{"progress/step": 50, "loss/task": 3.5}\n', 50),
        ('{"progress/step":150}\n', 150),
    ],
)
def test_how_far_a_router_is(script, tmp_path, metrics, step):
    folder = tmp_path / "runs/quickstart/hash"
    folder.mkdir(parents=True)
    if metrics is not None:
        (folder / "metrics.jsonl").write_text(metrics)
    assert script("reached hash") == [str(step)]


def test_an_interrupted_quickstart_trains_only_what_is_left(script, tmp_path):
    """A finished router, one that was in its second turn, and one that has not begun."""
    for router, name, text in (("hash", "summary.json", "{}"), ("switch", "metrics.jsonl", '{"progress/step": 120}')):
        (tmp_path / "runs/quickstart" / router).mkdir(parents=True)
        (tmp_path / "runs/quickstart" / router / name).write_text(text)
    lines = script(
        "pangu_sigma() { case $* in *train.steps) echo 200 ;; *) echo 50 ;; esac; }\n"
        'train() { echo "$@"; }\ntrain_by_turns'
    )
    trained = [line for line in lines if line and not line.startswith("==")]
    assert trained == ["locmoe 100", "locmoe 150", "switch 150", "switch 200", "locmoe 200"]
