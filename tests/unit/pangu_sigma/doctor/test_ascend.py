"""The doctor on an Ascend machine made of files: versions as the real ones are written, and what does not fit
together.
"""

import os

import pytest

from pangu_sigma.config.load import config_from_dict
from pangu_sigma.doctor import ascend as doctor_ascend
from pangu_sigma.doctor.findings import FAILURE, OK, UNKNOWN, WARNING
from pangu_sigma.doctor.machine import Machine, Ran

HOME = "/usr/local/Ascend/ascend-toolkit/latest"
ENVIRONMENT = {
    "ASCEND_HOME_PATH": HOME,
    "ASCEND_OPP_PATH": f"{HOME}/opp",
    "LD_LIBRARY_PATH": f"{HOME}/lib64:/usr/lib",
    "PYTHONPATH": f"{HOME}/opp/built-in/op_impl/ai_core/tbe",
}
# Lines of the real files.
DRIVER = """Version=25.3.rc1
ascendhal_version=7.35.23
compatible_version=[V100R001C19],[V100R001C20],[V100R001C23]
compatible_version_fw=[7.0.0,8.9.9]
package_version=25.3.rc1
"""
FIRMWARE = "Version=7.8.0.1.231\nfirmware_version=1.0\n"
CANN = "Version=8.5.0.2.220\nversion_dir=8.5.0\ntimestamp=20251117_000024591\n"
NPU_SMI = """+------------------------------------------------------------------------------------------------+
| npu-smi 25.3.rc1                 Version: 25.3.rc1                                             |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B3               | OK            | 94.3        38                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3390 / 65536         |
+===========================+===============+====================================================+
| 1     910B3               | OK            | 93.1        37                0    / 0             |
| 0                         | 0000:01:00.0  | 0           0    / 0          3389 / 65536         |
+===========================+===============+====================================================+
"""
ACCEPTED = ("8.2", "8.3", "8.5", "9.0", "9.1")
HEALTHY = Ran(0, NPU_SMI)
ILL = Ran(0, NPU_SMI.replace("1     910B3               | OK     ", "1     910B3               | Warning"))
TOOLKIT, KERNELS = f"{HOME[1:]}/compiler/version.info", f"{HOME[1:]}/opp/version.info"


@pytest.fixture
def ascend(tmp_path):
    """A machine with two devices on which everything is right, but for files (by path) and variables given
    otherwise.
    """

    def _make(npu_smi=HEALTHY, environ=None, **files):
        content = {
            "dev/davinci0": "",
            "dev/davinci1": "",
            "dev/davinci_manager": "",
            "dev/devmm_svm": "",
            "dev/hisi_hdc": "",
            doctor_ascend.DRIVER_INFO[1:]: DRIVER,
            doctor_ascend.FIRMWARE_INFO[1:]: FIRMWARE,
            TOOLKIT: CANN,
            KERNELS: CANN,
        }
        for name, text in {**content, **files}.items():
            if text is not None:
                path = tmp_path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        return Machine(
            root=tmp_path, environ=ENVIRONMENT if environ is None else environ, run=lambda command, seconds=0: npu_smi
        )

    return _make


def found(machine, accepted=ACCEPTED):
    return {finding.subject: finding for finding in doctor_ascend.check_ascend(machine, accepted)}


def levels(findings):
    return {subject: finding.level for subject, finding in findings.items()}


def test_a_machine_without_devices_says_so(tmp_path):
    assert levels(found(Machine(root=tmp_path, environ={}))) == {"devices": UNKNOWN, "driver": UNKNOWN, "CANN": UNKNOWN}


def test_a_good_machine(ascend):
    findings = found(ascend())
    assert levels(findings) == {"devices": OK, "driver": OK, "firmware": OK, "CANN": OK}
    assert findings["devices"].found == "2 (0, 1): 910B3"
    assert findings["driver"].found == "25.3.rc1" and findings["CANN"].found.startswith("8.5.0.2.220, ")


def test_the_groups_of_a_910a(ascend):
    assert (
        "HCCS joins devices 0-3 and 4-7"
        in found(ascend(npu_smi=Ran(0, NPU_SMI.replace("910B3", "910A "))))["devices"].found
    )


@pytest.mark.parametrize(
    ("changed", "subject", "level", "fragment"),
    [
        ({"dev/hisi_hdc": None}, "devices", FAILURE, "no /dev/hisi_hdc"),
        ({"npu_smi": ILL}, "devices", FAILURE, "1 of 2 are not in health OK but Warning"),
        ({"npu_smi": Ran(1, "", "dcmi module initialize failed. ret is -8005")}, "devices", WARNING, "-8005"),
        ({"npu_smi": Ran(None, "", "No such file or directory")}, "devices", WARNING, "No such file"),
        ({doctor_ascend.DRIVER_INFO[1:]: None}, "driver", FAILURE, "no version in"),
        (
            {doctor_ascend.DRIVER_INFO[1:]: DRIVER.replace("25.3.rc1", "24.1.rc2")},
            "driver",
            FAILURE,
            "24.1.rc2, which is too old for CANN 8.5",
        ),
        (
            {TOOLKIT: "Version=8.3.0.1\n", KERNELS: "Version=8.3.0.1\n"},
            "driver, CANN",
            UNKNOWN,
            "no table of drivers for CANN 8.3",
        ),
        (
            {doctor_ascend.FIRMWARE_INFO[1:]: "Version=6.4.0.1\n"},
            "firmware",
            FAILURE,
            "6.4.0.1; the driver needs 7.0.0 to 8.9.9",
        ),
        ({doctor_ascend.FIRMWARE_INFO[1:]: None}, "firmware", UNKNOWN, "no version in"),
        ({TOOLKIT: None}, "CANN", FAILURE, "no version in"),
        ({KERNELS: "Version=8.3.0.1\n"}, "CANN", FAILURE, "toolkit 8.5.0.2.220, kernels 8.3.0.1"),
        (
            {TOOLKIT: "Version=7.6.0.1\n", KERNELS: "Version=7.6.0.1\n"},
            "CANN",
            FAILURE,
            "the installed MindSpore accepts 8.2",
        ),
        ({"environ": {}}, "CANN", FAILURE, "its environment is not set (ASCEND_HOME_PATH)"),
        ({"environ": {**ENVIRONMENT, "PYTHONPATH": "/x"}}, "CANN", FAILURE, "(PYTHONPATH)"),
    ],
)
def test_what_does_not_fit_is_named_with_its_fix(ascend, changed, subject, level, fragment):
    finding = found(ascend(**changed))[subject]
    assert finding.level == level and fragment in finding.found
    assert finding.fix or level == UNKNOWN


def test_devices_that_this_user_may_not_open(ascend, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("davinci1"))
    assert "no permission to open /dev/davinci1" in found(ascend())["devices"].found


def test_without_mindspores_list_the_match_is_unknown(ascend):
    assert found(ascend(), accepted=None)["CANN"].level == UNKNOWN


def test_the_list_is_that_of_the_installed_mindspore():
    """Versus what MindSpore's own checker holds."""
    from mindspore.run_check._check_version import AscendEnvChecker

    assert doctor_ascend.accepted_by_mindspore() == tuple(AscendEnvChecker(None).version)


@pytest.mark.parametrize(
    ("variables", "level", "fragment"),
    [
        ({}, OK, "its defaults"),
        (
            {"HCCL_CONNECT_TIMEOUT": "600", "HCCL_BUFFSIZE": "400", "OTHER": "x"},
            OK,
            "BUFFSIZE=400, CONNECT_TIMEOUT=600",
        ),
        ({"HCCL_SOCKET_IFNAME": "=eth0"}, OK, "SOCKET_IFNAME==eth0"),
        ({"HCCL_CONNECT_TIMEOUT": "60"}, FAILURE, "HCCL_CONNECT_TIMEOUT is '60'"),
        ({"HCCL_CONNECT_TIMEOUT": "7201"}, FAILURE, "HCCL_CONNECT_TIMEOUT is '7201'"),
        ({"HCCL_EXEC_TIMEOUT": "ten"}, FAILURE, "HCCL_EXEC_TIMEOUT is 'ten'"),
        ({"HCCL_BUFFSIZE": "0"}, FAILURE, "HCCL_BUFFSIZE is '0'"),
        ({"HCCL_DETERMINISTIC": "yes"}, FAILURE, "HCCL_DETERMINISTIC is 'yes'"),
        ({"HCCL_IF_IP": "127.0.0.1"}, OK, "IF_IP=127.0.0.1"),
        ({"HCCL_IF_IP": "198.18.0.1"}, FAILURE, "HCCL_IF_IP is '198.18.0.1'"),
        ({"HCCL_INTRA_PCIE_ENABLE": "1", "HCCL_INTRA_ROCE_ENABLE": "1"}, FAILURE, "both 1"),
    ],
)
def test_hccl_variables(variables, level, fragment):
    (finding,) = doctor_ascend.check_hccl(Machine(environ=variables))
    assert finding.level == level and fragment in finding.found


@pytest.mark.parametrize(
    ("variable", "value", "levels_by_chip"),
    [
        ("HCCL_EXEC_TIMEOUT", "0", {"910a": FAILURE, "910b": OK, None: OK}),
        ("HCCL_EXEC_TIMEOUT", "17341", {"910a": FAILURE, "910b": OK}),
        ("HCCL_EXEC_TIMEOUT", "17340", {"910a": OK, "910b": OK}),
        ("HCCL_RDMA_TIMEOUT", "24", {"910a": OK, "910b": FAILURE, "910c": FAILURE, None: OK}),
    ],
)
def test_hccl_variables_by_chip(variable, value, levels_by_chip):
    machine = Machine(environ={variable: value})
    found = {chip: doctor_ascend.check_hccl(machine, chip)[0].level for chip in levels_by_chip}
    assert found == levels_by_chip


@pytest.mark.parametrize(("name", "chip"), [("910B3", "910b"), ("910A ", "910a"), ("910ProB", "910a"), ("310P ", None)])
def test_the_chip_by_npu_smi(ascend, name, chip):
    assert doctor_ascend.found_chip(ascend(npu_smi=Ran(0, NPU_SMI.replace("910B3", name)))) == chip


def test_a_chip_that_the_configuration_does_not_name():
    config = config_from_dict({"runtime": {"device": "ascend", "chip": "910a"}})
    _, (finding,) = doctor_ascend.check_named_chip(config, "910b")
    assert finding.level == FAILURE and "runtime.chip is 910a, but what npu-smi shows is 910b" in finding.found
    auto = config_from_dict({"runtime": {"device": "ascend"}})
    resolved, findings = doctor_ascend.check_named_chip(auto, "910a")
    assert resolved.runtime.chip == "910a" and not findings
