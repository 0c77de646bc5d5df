"""CANN, driver, firmware, devices and HCCL's variables of an Ascend machine, and whether they fit each other.

Sources: which CANN MindSpore accepts stands in the installed MindSpore itself (run_check/_check_version.py); which
driver a CANN needs, in the release notes of CANN 8.5.0 and 9.1.1 and of MindIE 2.1.RC1 (for CANN 8.2), hiascend.com;
which firmware a driver needs, in the driver's version.info; HCCL's variables, in CANN's "Environment Variables",
hiascend.com.
"""

import ast
import importlib.util
import os
import re
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

from locmoe_ops.errors import InputError
from pangu_sigma.config.check_chip import with_chip
from pangu_sigma.config.chips import CHIPS, chip_of_model
from pangu_sigma.config.schema import Config
from pangu_sigma.doctor.findings import Finding, failure, not_applicable, ok, unknown, warning
from pangu_sigma.doctor.machine import Machine
from pangu_sigma.doctor.software import numbers
from pangu_sigma.runtime.environment import DRIVER_INFO, driver_version, find_cann
from pangu_sigma.runtime.nodes import is_own

FIRMWARE_INFO = "/usr/local/Ascend/firmware/version.info"
HELPERS = ("davinci_manager", "devmm_svm", "hisi_hdc")  # device files that every process on Ascend opens
OLDEST_DRIVERS: Dict[Tuple[int, ...], Tuple[int, ...]] = {
    (8, 2): (24, 1),
    (8, 5): (25, 0),
    (9, 0): (25, 0),
    (9, 1): (25, 2),
}
NO_DEVICE = "this machine has no Ascend device (/dev/davinci*)"


def check_ascend(machine: Machine, accepted: Optional[Tuple[str, ...]]) -> List[Finding]:
    """Findings on devices, driver, firmware and CANN of `machine`.

    Args:
        accepted: CANN versions that MindSpore accepts, as in 8.5; None if that could not be found out.
    """
    if not machine.devices:
        return [not_applicable(subject, "no Ascend device", NO_DEVICE) for subject in ("devices", "driver", "CANN")]
    home, cann = find_cann(machine.environ, machine.fields)
    return [_check_devices(machine), *_check_driver(machine, cann), _check_cann(machine, home, cann, accepted)]


def accepted_by_mindspore() -> Optional[Tuple[str, ...]]:
    """CANN versions in the installed MindSpore's own list, read without importing it."""
    spec = importlib.util.find_spec("mindspore")
    if spec is None or not spec.submodule_search_locations:
        return None
    try:
        tree = ast.parse(
            Path(spec.submodule_search_locations[0], "run_check", "_check_version.py").read_text(encoding="utf-8")
        )
    except (OSError, SyntaxError):
        return None
    checker = next(
        (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "AscendEnvChecker"), None
    )
    for node in ast.walk(checker) if checker else ():
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Attribute)
            and node.targets[0].attr == "version"
        ):
            return tuple(ast.literal_eval(node.value))
    return None


def _check_devices(machine: Machine) -> Finding:
    """Their files, the permission to open these, and their health."""
    devices = machine.devices
    files = [*(f"davinci{number}" for number in devices), *HELPERS]
    absent = [name for name in files if not machine.path(f"/dev/{name}").exists()]
    if absent:
        fix = f"load the driver whole, or give the container --device /dev/{absent[0]}"
        return failure("devices", f"{len(devices)} devices, but no /dev/{absent[0]}", fix)
    closed = [name for name in files if not os.access(machine.path(f"/dev/{name}"), os.R_OK | os.W_OK)]
    if closed:
        fix = "add this user to the group HwHiAiUser, or run as root"
        return failure("devices", f"no permission to open /dev/{closed[0]}", fix)
    ran = machine.run(["npu-smi", "info"])
    if ran.status != 0:
        reason = (ran.errors or ran.output).strip().splitlines() or ["no output"]
        found = f"{len(devices)}; npu-smi info failed: {reason[0]}"
        return warning("devices", found, "put the driver's npu-smi in PATH, see what it says")
    rows = _rows_of(ran.output)
    models, ill = sorted({model for model, _ in rows}), [health for _, health in rows if health != "OK"]
    if ill:
        found = f"{len(ill)} of {len(rows)} are not in health OK but {ill[0]}"
        return failure("devices", found, "npu-smi info tells which; reset it")
    found = f"{len(devices)} ({', '.join(map(str, devices))}){': ' + ', '.join(models) if models else ''}"
    chip = chip_of_model(models[0]) if models else None
    if chip is not None and CHIPS[chip].cluster.value is not None:
        found += "; HCCS joins devices 0-3 and 4-7"
    return ok("devices", found)


def _rows_of(table: str) -> List[Tuple[str, str]]:
    """Name and health of each device in what npu-smi info prints."""
    return re.findall(r"^\|\s*\d+\s+(\S+)\s*\|\s*(\w+)\s*\|", table, flags=re.MULTILINE)


def found_chip(machine: Machine) -> Optional[str]:
    """The chip of this `machine`'s devices by npu-smi, a name of `CHIPS`; None: no devices, or it does not say."""
    rows = _rows_of(machine.run(["npu-smi", "info"]).output) if machine.devices else []
    return chip_of_model(rows[0][0]) if rows else None


def check_named_chip(config: Config, chip: Optional[str]) -> Tuple[Config, List[Finding]]:
    """The configuration for the `chip` that was found, and a finding where `config` names another one."""
    try:
        return with_chip(config, chip, "what npu-smi shows"), []
    except InputError as error:
        return config, [failure("chip", str(error), "set runtime.chip to what this machine has, or to auto")]


def _check_driver(machine: Machine, cann: str) -> List[Finding]:
    found = driver_version(machine.fields)
    if not found:
        fix = "install the driver, or mount that file into the container"
        return [failure("driver", f"no version in {DRIVER_INFO}", fix)]
    findings = [ok("driver", found)]
    oldest = OLDEST_DRIVERS.get(numbers(cann)[:2])
    if cann and oldest is None:
        reason = f"no table of drivers for CANN {cann}"
        findings.append(unknown("driver, CANN", reason, "see the release notes of that CANN"))
    elif oldest and numbers(found)[:2] < oldest:
        text = f"{found}, which is too old for CANN {cann}"
        findings = [failure("driver", text, f"install driver {oldest[0]}.{oldest[1]} or newer")]
    return [*findings, _check_firmware(machine, machine.fields(DRIVER_INFO).get("compatible_version_fw", ""))]


def _check_firmware(machine: Machine, limits: str) -> Finding:
    """`limits`: as the driver gives them, [oldest,newest]."""
    found = machine.fields(FIRMWARE_INFO).get("Version")
    if found is None:
        return unknown("firmware", f"no version in {FIRMWARE_INFO}")
    between = re.fullmatch(r"\[([\d.]+),([\d.]+)\]", limits)
    if between is None:
        return unknown("firmware", "the driver does not say which it needs")
    low, high = numbers(between[1]), numbers(between[2])
    if not low <= numbers(found)[: len(high)] <= high:
        text = f"{found}; the driver needs {between[1]} to {between[2]}"
        return failure("firmware", text, "install that of the driver's release")
    return ok("firmware", found)


def _check_cann(machine: Machine, home: str, cann: str, accepted: Optional[Tuple[str, ...]]) -> Finding:
    """Version `cann` in the folder `home`: its environment, its kernels, and whether MindSpore accepts it."""
    if not cann:
        fix = "install CANN's toolkit and kernels, source its set_env.sh"
        return failure("CANN", f"no version in {home}/compiler/version.info", fix)
    needed = {
        "ASCEND_HOME_PATH": "",
        "ASCEND_OPP_PATH": "/opp",
        "LD_LIBRARY_PATH": "/lib64",  # as MindSpore's own check has it
        "PYTHONPATH": "opp/built-in/op_impl/ai_core/tbe",
    }
    environ = machine.environ
    unset = [name for name, part in needed.items() if name not in environ or part not in environ[name]]
    if unset:
        fix = f"source {os.path.dirname(home)}/set_env.sh (launchers: --env-file)"
        return failure("CANN", f"{cann}, but its environment is not set ({unset[0]})", fix)
    kernels = machine.fields(f"{home}/opp/version.info").get("Version", cann)
    if numbers(kernels)[:2] != numbers(cann)[:2]:
        return failure("CANN", f"toolkit {cann}, kernels {kernels}", "install toolkit and kernels of one release")
    if accepted is None:
        reason = f"found {cann}, but not which versions MindSpore accepts"
        return unknown("CANN", reason, "see www.mindspore.cn/install")
    if ".".join(map(str, numbers(cann)[:2])) not in accepted:
        found = f"{cann}; the installed MindSpore accepts {', '.join(accepted)}"
        return failure("CANN", found, "install one of these, or another of both")
    return ok("CANN", f"{cann}, which the installed MindSpore accepts")


# ---- HCCL's variables


class _Rule(NamedTuple):
    holds: Callable[[str], bool]
    expected: str


def _within(low: int, high: int) -> _Rule:
    return _Rule(
        lambda text: text.isascii() and text.isdigit() and low <= int(text) <= high,
        f"a whole number from {low} to {high}",
    )


def _one_of(*values: str) -> _Rule:
    return _Rule(lambda text: text in values, " or ".join(values))


_RULES: Dict[str, _Rule] = {  # of any chip; see `_rules_of` for the others
    "HCCL_CONNECT_TIMEOUT": _within(120, 7200),
    "HCCL_BUFFSIZE": _within(1, 1048576),
    "HCCL_IF_BASE_PORT": _within(1024, 65520),
    "HCCL_IF_IP": _Rule(is_own, "an address of this machine"),
    "HCCL_DETERMINISTIC": _one_of("true", "false", "strict"),
    "HCCL_WHITELIST_DISABLE": _one_of("0", "1"),
    "HCCL_INTRA_PCIE_ENABLE": _one_of("0", "1"),
    "HCCL_INTRA_ROCE_ENABLE": _one_of("0", "1"),
    "HCCL_RDMA_RETRY_CNT": _within(1, 7),
}


def _rules_of(chip: Optional[str]) -> Dict[str, _Rule]:
    """Those of the chip too; where that is not known, what at least one chip takes."""
    chips = list(CHIPS.values()) if chip is None else [CHIPS[chip]]
    execution, retransmission = (
        [each.exec_timeout.value for each in chips],
        [each.rdma_timeout.value for each in chips],
    )
    return {
        **_RULES,
        **{
            name: _within(min(low for low, _ in found), max(high for _, high in found))
            for name, found in (("HCCL_EXEC_TIMEOUT", execution), ("HCCL_RDMA_TIMEOUT", retransmission))
        },
    }


def check_hccl(machine: Machine, chip: Optional[str] = None) -> List[Finding]:
    """Values that HCCL would refuse; the others are shown, since all nodes must have the same.

    Args:
        machine: the one whose environment it is.
        chip: that it has; None: not known.
    """
    rules = _rules_of(chip)
    found = {name: value for name, value in sorted(machine.environ.items()) if name.startswith("HCCL_")}
    findings = [
        failure("HCCL", f"{name} is '{value}'", f"set it to {rules[name].expected}, or unset it")
        for name, value in found.items()
        if name in rules and not rules[name].holds(value)
    ]
    if found.get("HCCL_INTRA_PCIE_ENABLE") == found.get("HCCL_INTRA_ROCE_ENABLE") == "1":
        findings.append(
            failure("HCCL", "HCCL_INTRA_PCIE_ENABLE and HCCL_INTRA_ROCE_ENABLE are both 1", "set one of them to 0")
        )
    if findings:
        return findings
    shown = ", ".join(f"{name[len('HCCL_') :]}={value}" for name, value in found.items())
    return [ok("HCCL", shown or "no HCCL_* variable is set: its defaults")]
