"""`scripts/quickstart.sh`: what it answers before it installs anything, and its configuration."""

import subprocess
from pathlib import Path

import pytest

from pangu_sigma.config.load import load_config
from pangu_sigma.config.validate import validate

REPOSITORY = Path(__file__).parents[3]
DOMAINS, RANKS = 3, 4


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
    assert max(map(len, output.splitlines())) <= 128


@pytest.mark.parametrize("router", ["hash", "switch", "locmoe"])
def test_the_configuration_fits_four_workers_with_each_router(router):
    config = load_config(REPOSITORY / "configs" / "quickstart.yaml", [f"moe.router.type={router}"])
    validate(config, RANKS)
    assert config.moe.num_groups == len(config.data.prepare.sources) == DOMAINS
    # Curves of validation are curves: several points before the last.
    assert config.train.eval_interval == 50 and config.train.steps // config.train.eval_interval >= 4
    # Each worker's rows are of each domain equally often.
    assert config.train.global_batch_size % (RANKS * DOMAINS) == 0


@pytest.mark.parametrize("domains", [1, 2])
def test_the_configuration_fits_fewer_domains(domains):
    """What the script sets where only some of the sample corpora can be had: as many groups, of four experts."""
    overrides = [f"moe.num_groups={domains}", f"moe.num_experts={4 * domains}"]
    validate(load_config(REPOSITORY / "configs" / "quickstart.yaml", overrides), RANKS)
