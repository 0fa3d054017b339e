"""The rules of the house that a program can hold: who may import whom, no circles, no class name twice, sizes.

Every import in the package is read, lazy ones too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dp_adapter"
NAME = PACKAGE.name

# The table of layers: what a unit may import besides itself, ``errors``, ``text_files``, ``user_files``,
# ``whole_files``, ``naming``, ``hints`` and the version.
ALL_BUT_SHELLS = {
    "settings", "catalog", "download", "cache", "core", "weights", "identity", "hosts", "modes", "session",
    "sampling", "generation", "training", "small_base", "evaluation", "pickles",
}  # fmt: skip
MAY_IMPORT: Mapping[str, set[str]] = {
    "": set(),
    "errors": set(),
    "text_files": set(),
    "whole_files": set(),
    "user_files": set(),
    "naming": set(),
    "hints": set(),
    "settings": set(),
    "core": set(),
    "cache": set(),
    "download": set(),
    "catalog": {"download"},
    "pickles": set(),
    "weights": {"core", "catalog", "pickles"},
    "identity": {"catalog", "weights", "pickles"},
    "hosts": {"core", "pickles"},
    "modes": {"settings"},
    "session": {"core", "settings", "modes", "identity", "weights", "catalog", "cache"},
    "sampling": {"core", "modes", "identity", "session", "hosts"},
    "generation": {"core", "settings", "modes", "identity", "session", "hosts", "sampling"},
    "training": {"core", "settings", "weights", "identity", "hosts", "pickles"},
    "small_base": {"identity", "hosts"},
    "evaluation": {"identity", "settings", "small_base"},
    "webui": {"session", "settings", "hosts", "modes", "core"},
    "demo": ALL_BUT_SHELLS,
    "cli": ALL_BUT_SHELLS | {"demo"},
    "__main__": {"cli"},
}
# Third parties that only these modules may touch; a name covers what lies under it.
ONLY_IN: Mapping[str, tuple[str, ...]] = {
    "gradio": ("webui",),
    "fastapi": ("webui",),
    "modules": ("webui",),
    "ldm": ("hosts.attach.ldm",),
    "sgm": ("hosts.attach.ldm",),
    "backend": ("hosts.attach.forge", "webui.host"),
    "ldm_patched": ("hosts.attach.forge", "webui.host"),
    "diffusers": (
        "hosts.attach.diffusers", "hosts.pipelines", "training", "demo",
    ),
    "transformers": ("identity", "hosts.pipelines", "hosts.prompts.clip_tokenizer", "demo", "training.base_shapes"),
    "insightface": ("identity",),
    "onnxruntime": ("identity",),
}  # fmt: skip
HEAVY = {"torch", "numpy", "PIL", "cv2", "diffusers", "transformers", "safetensors", "onnxruntime"}
# not even inside functions
WITHOUT_HEAVY = {
    "", "errors", "text_files", "user_files", "whole_files", "naming", "hints", "settings", "modes", "catalog",
    "download", "cache",
}  # fmt: skip
LAZY_HEAVY = {"cli", "__main__"}  # inside functions only


@dataclass(frozen=True)
class Import:
    """One imported module.

    Attributes:
        module: the importing module, dotted, without the package's name; target: what it imports, dotted.
        eager: whether importing the module runs it.
    """

    module: str
    target: str
    line: int
    eager: bool

    @property
    def unit(self) -> str:
        return self.module.split(".")[0]

    def __str__(self) -> str:
        return f"{self.module or NAME} line {self.line} imports {self.target}"


def imports_of(source: str, module: str, is_package: bool = False) -> Iterator[Import]:
    """Every import statement and ``import_module("…")`` of a source, at any depth."""
    pending: list[tuple[ast.AST, bool]] = [(ast.parse(source), True)]
    while pending:
        node, eager = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Call):
            yield from (Import(module, target, node.lineno, eager) for target in _targets(node, module, is_package))
        inside = eager and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        inside = inside and not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        pending.extend((child, inside) for child in ast.iter_child_nodes(node))


def _targets(node: ast.Import | ast.ImportFrom | ast.Call, module: str, is_package: bool) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func).split(".")[-1]
        literal = node.args[0] if node.args else None
        known = called in {"import_module", "__import__"} and isinstance(literal, ast.Constant)
        return [str(literal.value)] if known and isinstance(literal, ast.Constant) else []
    base = node.module or ""
    if node.level:
        here = [NAME, *filter(None, module.split("."))]
        parents = here[: len(here) - node.level + is_package]
        base = ".".join([*parents, *filter(None, [base])])
    # ``from dp_adapter.core import twins`` names a module only through its alias.
    named = [f"{base}.{alias.name}" for alias in node.names]
    return [one if base == NAME or one in MODULES else base for one in named]


def modules() -> list[tuple[str, Path]]:
    found: list[tuple[str, Path]] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


MODULES = {f"{NAME}.{module}": path for module, path in modules() if module}


def wrong(one: Import) -> str | None:
    """Why an import is not allowed, or None."""
    top, _, rest = one.target.partition(".")
    if top == NAME:
        target = rest.split(".")[0]
        free = {one.unit, "errors", "text_files", "user_files", "whole_files", "naming", "hints", "__version__", ""}
        if target not in free | MAY_IMPORT[one.unit]:
            return f"{one}: '{one.unit or NAME}' may import {sorted(MAY_IMPORT[one.unit]) or 'nothing'}"
    elif top in ONLY_IN and not any(f"{one.module}.".startswith(f"{place}.") for place in ONLY_IN[top]):
        return f"{one}: only {', '.join(ONLY_IN[top])} may"
    elif top in HEAVY and one.unit in WITHOUT_HEAVY:
        return f"{one}: '{one.unit or NAME}' does without"
    elif top in HEAVY and one.unit in LAZY_HEAVY and one.eager:
        return f"{one}: only inside functions"
    return None


@pytest.mark.parametrize(("module", "path"), [pytest.param(m, p, id=m or NAME) for m, p in modules()])
def test_no_import_points_upwards(module: str, path: Path) -> None:
    unit = module.split(".", maxsplit=1)[0]
    assert unit in MAY_IMPORT, f"'{unit}' is not in the table of layers: say what it may import"
    found = imports_of(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
    assert not list(filter(None, map(wrong, found)))


def test_the_table_itself_has_no_circle() -> None:
    done: set[str] = set()
    while ready := {unit for unit, below in MAY_IMPORT.items() if unit not in done and below <= done}:
        done |= ready
    assert done == set(MAY_IMPORT)


def circles(imports: Mapping[str, set[str]]) -> list[set[str]]:
    """Sets of modules that reach one another by imports."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        pending = [start]
        while pending:
            for target in imports.get(pending.pop(), set()) - seen:
                seen.add(target)
                pending.append(target)
        return seen

    below = {module: reached(module) for module in imports}
    found = [
        {other for other in below[module] if module in below.get(other, ())}
        for module in imports
        if module in below[module]
    ]
    return [one for place, one in enumerate(found) if one not in found[:place]]


def imported_modules() -> dict[str, set[str]]:
    """Each module of the package with those that it imports, lazily or for types alone too."""
    return {
        module: {one.target for one in imports_of(path.read_text(encoding="utf-8"), module.removeprefix(f"{NAME}."))}
        & MODULES.keys()
        for module, path in MODULES.items()
        if path.name != "__init__.py"  # which names its own modules
    }


def test_no_modules_import_one_another() -> None:
    assert not circles(imported_modules())


def test_a_circle_would_be_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [{"a", "b", "c"}]


def classes() -> dict[str, list[str]]:
    """Where each public class of the package is defined, by name."""
    found: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(module)
    return found


def test_no_public_class_name_stands_twice() -> None:
    assert len(classes()) > 100
    assert {name: places for name, places in classes().items() if len(places) > 1} == {}


def test_no_module_and_no_function_is_too_long() -> None:
    long: list[str] = []
    for module, path in MODULES.items():
        source = path.read_text(encoding="utf-8")
        long += [module] if len(source.splitlines()) > 400 else []
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                long += [f"{module}.{node.name}"] if node.end_lineno - node.lineno >= 80 else []
    assert not long


def test_no_folder_has_too_many_modules() -> None:
    folders = [path.parent.relative_to(PACKAGE).as_posix() for path in MODULES.values()]
    assert {folder for folder in folders if folders.count(folder) > 18} == set()


BAD = {
    "core": "from dp_adapter.settings import Settings",
    "core.attention": "import dp_adapter.hosts.attach.diffusers",
    "hosts.attach.diffusers": "def f():\n    from dp_adapter.session import Session",
    "session.session": "from dp_adapter import hosts",
    "weights.files": "from ..identity import face",
    "settings.field_types": "def f():\n    import torch",
    "settings": "import dp_adapter.core as c",
    "catalog": "from numpy import array",
    "cli.models": "import torch",
    "cli": "class A:\n    from PIL import Image",
    "hosts.attach.sites": "import diffusers",
    "hosts.attach.diffusers_extra": "import diffusers",
    "core.regions.masks": "from transformers.models import clip",
    "webui.panel": "from ldm_patched.modules import model_management",
    "identity": "if True:\n    try:\n        import gradio\n    except ImportError:\n        pass",
    "identity.faces.face": "import importlib\nimportlib.import_module('dp_adapter.session')",
    "hosts": "if TYPE_CHECKING:\n    from dp_adapter.session import Session",
    "demo": "from dp_adapter.cli import main",
    "cli.generate": "async def f():\n    from dp_adapter import webui",
    "": "import numpy",
}
GOOD = {
    "core.attention": "import torch\nfrom dp_adapter.errors import HostError\nfrom . import regions",
    "cli.models": "def f():\n    import torch\nfrom dp_adapter import catalog, __version__",
    "cli.output": "if TYPE_CHECKING:\n    from PIL import Image",
    "hosts.attach.diffusers": "import diffusers.models\nfrom dp_adapter.core import twins\nfrom .sites import Base",
    "identity.faces.insightface_packs": "def f():\n    from insightface.app import FaceAnalysis",
    "webui.host.compat": "from modules import shared\nimport ldm_patched",
    "download": "from dp_adapter import __version__\nimport ssl",
}


@pytest.mark.parametrize("module", BAD)
def test_a_bad_import_is_found(module: str) -> None:
    assert any(map(wrong, imports_of(BAD[module], module))), BAD[module]


@pytest.mark.parametrize("module", GOOD)
def test_a_good_import_passes(module: str) -> None:
    found = list(imports_of(GOOD[module], module))
    assert found
    assert not any(map(wrong, found))


def test_relative_imports_are_resolved() -> None:
    source = "from . import a\nfrom .b import c\nfrom ..core import d"
    as_module = {one.target for one in imports_of(source, "hosts.lora")}
    as_package = {one.target for one in imports_of(source, "hosts.deep", is_package=True)}
    assert as_module == {"dp_adapter.hosts", "dp_adapter.hosts.b", "dp_adapter.core"}
    assert as_package == {"dp_adapter.hosts.deep", "dp_adapter.hosts.deep.b", "dp_adapter.hosts.core"}


CHEAP = [
    "dp_adapter",
    "dp_adapter.errors",
    "dp_adapter.settings",
    "dp_adapter.modes",
    "dp_adapter.catalog",
    "dp_adapter.cli",
]


@pytest.mark.parametrize("module", CHEAP)
def test_cheap_imports_are_cheap(module: str) -> None:
    """In a fresh interpreter: what they load is looked up, not read from the source."""
    if not list(PACKAGE.parent.glob(f"{module.replace('.', '/')}*")):
        pytest.skip(f"{module} is not written yet")
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.split() == []


def test_a_heavy_import_would_be_noticed() -> None:
    code = f"import sys, dp_adapter.core.types; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert "torch" in done.stdout
