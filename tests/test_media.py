"""What differs between media is asked of the medium: nobody asks a model of which family it is."""

import ast
from pathlib import Path

from tests.commands import ROOT

FAMILIES = {"CausalLMBackbone", "DiffusionBackbone", "UNetBackbone", "SDXLBackbone"}


def asked(source: str) -> list[int]:
    """The lines in which something is asked whether it is an instance of a family, or of a class of one."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
            parts = [part for kind in node.args[1:] for part in ast.walk(kind)]
            names = {getattr(part, "id", getattr(part, "attr", "")) for part in parts}
            lines += [node.lineno] if names & FAMILIES else []
    return lines


def of_a_family(file: Path) -> bool:
    """Whether a file is one that a family is made in."""
    defined = (node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ClassDef))
    return not FAMILIES.isdisjoint(defined)


def test_nobody_asks_for_a_family_outside_its_file() -> None:
    files = [file for folder in ("sliders", "benchmarks", "demo") for file in (ROOT / folder).rglob("*.py")]
    assert sum(map(of_a_family, files)) >= 3
    found = {str(file.relative_to(ROOT)): asked(file.read_text()) for file in files if not of_a_family(file)}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_the_control() -> None:
    """What the test above would say of the ways in which it can be asked."""
    plain = "def f(x):\n    if isinstance(x, CausalLMBackbone):\n        pass\n"
    several = "import sliders\nassert isinstance(x, int | sliders.unet.UNetBackbone)\nissubclass(k, (A, SDXLBackbone))"
    assert asked(plain) == [2]
    assert asked(several) == [2, 3]
    assert asked("isinstance(x, AbstractBackbone)\nisinstance(x, self.of)\nof_class(x, UNetBackbone, '', '')") == []
