"""What an installed MindSpore registers for Ascend, asked of its own plug-ins, on a machine without a device or CANN.

The plug-ins (`lib/plugin`) are loaded with libraries of empty functions in the place of CANN's, which a C compiler
makes. Loading them fills the registries that kernel selection reads; these are then asked by name. Nothing else of the
plug-ins is run.

usage: python ascend_plugin.py PACKAGE   (by `ask`; names of primitives, one a line, on the standard input)
"""

import ast
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Sequence, Set, Tuple

OPERATORS = "plugin/libmindspore_ops_ascend.so"  # kernels, one by one
GRAPHS = "plugin/ascend/libmindspore_graph_ir.so"  # adapters to GE's operators
RESOURCES = "plugin/ascend/libmindspore_ascend_res_manager.so"
PASSES = "libmindspore_backend_common.so"
# Exported C++ functions that look into the registries.
IS_ACLNN = "_ZN9mindspore6kernel19IsRegisteredAclnnOpERKSs"
IS_VIEW = "_ZN9mindspore6kernel8IsViewOpERKSs"
FIND_ADAPTER = "_ZN9mindspore6device6ascend11FindAdapterERKSsb"
# Collectives are registered where nobody outside can ask: the class of their kernel tells.
COLLECTIVES = {
    "AllGather": "HcomAllGatherKernel",
    "AllReduce": "HcomAllReduceKernel",
    "AlltoAll": "HcomAllToAllKernel",
    "AlltoAllV": "HcomAlltoAllVKernel",
    "AlltoAllVC": "HcomAlltoAllVCKernel",
    "Broadcast": "HcomAllBroadCastKernel",
    "ReduceScatter": "HcomAllReduceScatterKernel",
}
# A pass of the backend puts other operators in the place of these before kernels are selected (MindSpore's sources,
# backend/common/pass/mindir): of AdamWeightDecay AdamApplyOneWithDecayAssign and two differences of scalars.
REWRITTEN = {"AdamWeightDecay": "AdamWeightDecayUnifyMindIR"}


class Registered(NamedTuple):
    """What there is for a primitive.

    Attributes:
        kernel: kernel by kernel (O0, O1): `aclnn`, `aclop`, `hccl`, `view`,
            `rewritten`, or "".
        graph: whether GE (O2) has an operator for it.
    """

    kernel: str
    graph: bool


def ask(package: Path, names: Sequence[str]) -> Dict[str, Registered]:
    """What the wheel has for each primitive.

    Args:
        package: folder of an installed MindSpore.
        names: of primitives.

    Raises:
        FileNotFoundError: no C compiler, or no plug-in. subprocess.CalledProcessError: it does not load.
    """
    with tempfile.TemporaryDirectory(prefix="ascend_plugin_") as folder:
        write_stand_ins(package / "lib", Path(folder))
        library = package / "lib"
        search = [folder, library, library / "plugin", library / "plugin" / "ascend"]
        done = subprocess.run(
            [sys.executable, __file__, str(package), folder],
            input="\n".join(names),
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(map(str, search)), "GLOG_v": "3"},
        )
    return {name: Registered(*found) for name, found in json.loads(done.stdout.splitlines()[-1]).items()}


# ---- libraries in the place of CANN's


def write_stand_ins(library: Path, folder: Path) -> None:
    """Writes into `folder` what the plug-ins of `library` need and is not installed: libraries by name, with every
    function that is missing, each of which returns the address of an empty std::map.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise FileNotFoundError("cc: a C compiler is needed to stand in for CANN's libraries")
    libraries, missing = needed(library)
    source = folder / "stand_in.c"
    source.write_text("".join(map(_function, range(len(missing)), sorted(missing))))
    for name in sorted(libraries):
        command = [compiler, "-shared", "-fPIC", "-nostdlib", f"-Wl,-soname,{name}", "-o", str(folder / name)]
        subprocess.run([*command, str(source)], check=True)


def _function(number: int, name: str) -> str:
    """C of a function of that symbol."""
    zeros, place = "{0, 0, 0}", f"&map{number}.head[1]"
    return (
        f"static struct {{ long head[3]; void *left, *right; long rest[400]; }} map{number} = "
        f"{{ {zeros}, {place}, {place}, {{0}} }};\n"
        f'void *f{number}(void) __asm__("{name}");\nvoid *f{number}(void) {{ return &map{number}; }}\n'
    )


def needed(library: Path) -> Tuple[Set[str], Set[str]]:
    """Names of libraries that the plug-ins need and nobody has, and the symbols that nobody defines."""
    folders = (library, library / "plugin", library / "plugin" / "ascend")
    here = {file.name: file for folder in folders for file in folder.iterdir() if ".so" in file.name}
    waiting, seen, absent = [library / OPERATORS, library / GRAPHS], set(), set()
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        for name in re.findall(r"NEEDED.*\[(.*)\]", _output("readelf", "-d", str(file))):
            if name in here:
                waiting.append(here[name])
            elif _system(name) is None:
                absent.add(name)
    wanted: Set[str] = set()
    defined: Set[str] = set()
    system = [file for name in _SYSTEM for file in [_system(name)] if file is not None]
    for file in [*seen, *system]:
        for kind, symbol in _symbols(file):
            if kind == "U" and file in seen:
                wanted.add(symbol)
            elif kind not in "Uwv":
                defined.add(symbol)
    return absent, {one for one in wanted - defined if not one.startswith(("Py", "_Py"))}


_SYSTEM = ("libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libgomp.so.1", "libpthread.so.0", "libdl.so.2")
_SYSTEM += ("librt.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1")


def _system(name: str) -> "Path | None":
    folders = ("/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64", "/usr/lib64", "/lib")
    return next((Path(folder) / name for folder in folders if (Path(folder) / name).exists()), None)


def _symbols(file: Path) -> Iterator[Tuple[str, str]]:
    """Kind and name of each dynamic symbol."""
    for line in _output("nm", "-D", str(file)).splitlines():
        parts = line.split()
        if len(parts) > 1:
            yield parts[-2], parts[-1].partition("@")[0]


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# ---- in the process that loads the plug-ins


def registered(library: Path, stand_ins: Path, names: Sequence[str]) -> Dict[str, Registered]:
    """Loads the plug-ins of `library`, and asks for each of `names`; the search path must lead to `stand_ins`."""
    mode = os.RTLD_GLOBAL | os.RTLD_LAZY
    for file in sorted(stand_ins.glob("lib*.so")):  # before one that the wheel has of that name, in a folder of its own
        ctypes.CDLL(str(file), mode=mode)
    operators, _ = ctypes.CDLL(str(library / OPERATORS), mode=mode), ctypes.CDLL(str(library / GRAPHS), mode=mode)
    is_aclnn, is_view = getattr(operators, IS_ACLNN), getattr(operators, IS_VIEW)
    is_aclnn.restype = is_view.restype = ctypes.c_bool
    find = getattr(ctypes.CDLL(str(library / RESOURCES), mode=mode), FIND_ADAPTER)
    find.restype = None
    classes, passes = (library / OPERATORS).read_bytes(), (library / PASSES).read_bytes()
    found = {}
    for name in names:
        adapter = (ctypes.c_void_p * 2)()  # a std::shared_ptr, which the caller has room for
        find(ctypes.byref(adapter), CowString(name).reference, ctypes.c_bool(True))
        graph = adapter[0] is not None
        if name in COLLECTIVES and COLLECTIVES[name].encode() in classes:
            kernel = "hccl"
        elif is_aclnn(CowString(name).reference):  # the first that kernel selection asks
            kernel = "aclnn"
        elif graph:  # an operator of GE is launched alone, too
            kernel = "aclop"
        elif is_view(CowString(name).reference):
            kernel = "view"
        else:
            rewritten = name in REWRITTEN and REWRITTEN[name].encode() in passes
            kernel = "rewritten" if rewritten else ""
        found[name] = Registered(kernel, graph)
    return found


class CowString:
    """A C++ std::string as programs without the C++11 ABI have it: three words, then the letters.

    Args:
        text: of the string.
    """

    kept: List[object] = []  # callees may keep strings

    def __init__(self, text: str) -> None:
        letters = text.encode() + b"\0"
        head = (len(letters) - 1).to_bytes(8, sys.byteorder) * 2 + (1 << 20).to_bytes(8, sys.byteorder)
        self._memory = (ctypes.c_char * (len(head) + len(letters))).from_buffer_copy(head + letters)
        self._pointer = ctypes.c_void_p(ctypes.addressof(self._memory) + len(head))
        CowString.kept.append(self)

    @property
    def reference(self) -> object:
        """What a function takes for `std::string const &`."""
        return ctypes.byref(self._pointer)


# ---- what is deprecated


def deprecated(package: Path) -> Dict[str, str]:
    """Primitives that the wheel's Python sources mark as deprecated -> since which version: the class of the primitive,
    or the function that is named like it.
    """
    found = {}
    for file in sorted((package / "ops").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if "@deprecated(" in text:
            for name, version in _marked(ast.parse(text)):
                found[name] = min(version, found.get(name, version), key=_numbers)
    return found


def _numbers(version: str) -> List[int]:
    return [int(part) for part in version.split(".")]


def _marked(tree: ast.Module) -> Iterator[Tuple[str, str]]:
    """Names of primitives in a source file, and versions."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            name, marked = node.name, [node, *(item for item in node.body if isinstance(item, ast.FunctionDef))]
        elif isinstance(node, ast.FunctionDef):
            name, marked = node.name.title().replace("_", ""), [node]
        else:
            continue
        for mark in (mark for item in marked for mark in item.decorator_list):
            if isinstance(mark, ast.Call) and getattr(mark.func, "id", "") == "deprecated":
                yield name, str(ast.literal_eval(mark.args[0]))


if __name__ == "__main__":
    answer = registered(Path(sys.argv[1]) / "lib", Path(sys.argv[2]), sys.stdin.read().split())
    print(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)  # the plug-ins' own ends expect a device
