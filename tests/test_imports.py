"""One direction of imports: each package knows those below it, and no circle of packages or files."""

import ast
from collections.abc import Collection
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "sliders"
GROUND = ("errors", "peers", "files", "batch", "concept", "console", "formula")
FLOORS = (
    GROUND,
    ("algebra",),
    ("runtime",),
    ("formats",),
    ("resources",),
    ("backbones",),
    ("teacher", "losses", "language", "report"),
    ("evaluation", "editors"),
    ("media",),
    ("training",),
    ("studies",),
    ("page",),
    ("cli",),
)
"""From the ground up; a package imports from floors below its own."""


def imported(source: str, modules: Collection[str]) -> set[str]:
    """Which of the modules a source imports, anywhere in it; of a package's face only what is not a module itself."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else str(node.module) for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(modules)


def graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Each module with those that it imports."""
    files = {".".join(["sliders", *f.relative_to(root).with_suffix("").parts]): f for f in root.rglob("*.py")}
    files = {name.removesuffix(".__init__"): file for name, file in files.items() if "share" not in file.parts}
    return {name: imported(file.read_text(), files) - {name} for name, file in files.items()}


def upward(modules: dict[str, set[str]]) -> list[str]:
    """Imports that do not go to a lower floor."""
    floor = {package: height for height, packages in enumerate(FLOORS) for package in packages}
    wrong = []
    for module, others in modules.items():
        for other in others:
            here, there = (name.split(".")[1] if "." in name else "" for name in (module, other))
            between = here and there and here != there and floor[here] <= floor[there]
            if between and not (here in GROUND and there in GROUND):
                wrong.append(f"{module} imports {other}")
    return sorted(wrong)


def test_imports_go_downward() -> None:
    modules = graph()
    assert {name.split(".")[1] for name in modules if "." in name} == {name for floor in FLOORS for name in floor}
    assert upward(modules) == []


def test_no_circle_of_files() -> None:
    TopologicalSorter(graph()).prepare()


def test_the_control() -> None:
    """What the tests above would say of an import that runs back up, and of a circle."""
    modules = {"sliders.algebra.edit": {"sliders.runtime.dials"}, "sliders.runtime.dials": {"sliders.algebra.edit"}}
    assert upward(modules) == ["sliders.algebra.edit imports sliders.runtime.dials"]
    with pytest.raises(CycleError):
        TopologicalSorter(modules).prepare()
    late = "def f():\n    from sliders.page import app, VERSION\n"
    assert imported(late, {"sliders.page", "sliders.page.app"}) == {"sliders.page", "sliders.page.app"}
