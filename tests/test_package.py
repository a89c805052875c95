"""What importing the package brings along, each in a Python of its own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("lightning", "diffusers", "transformers", "peft", "gradio")


def run(code: str) -> str:
    """What the code prints in a fresh Python."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_top_names_are_the_objects_whatever_was_imported_before() -> None:
    """Some are a file's name too, which must not take the object's place."""
    out = run(
        "import sys\n"
        "import sliders.runtime.attach, sliders.algebra.compose\n"
        "import sliders\n"
        "from sliders import *\n"
        "from sliders.runtime.attach import attach as same\n"
        "assert attach is same and sliders.attach is same\n"
        "assert isinstance(Concept, type) and isinstance(Slider, type) and issubclass(SliderError, Exception)\n"
        "assert set(sliders.__all__) == set(sliders._HOMES)\n"
        "assert {*sliders.__all__, '__version__'} <= set(dir(sliders))\n"
        "assert all(callable(getattr(sliders, n)) and getattr(sliders, n).__doc__ for n in sliders.__all__)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert "peft" in out  # control: what the test of the algebra below looks for can be seen


def test_a_checker_of_types_is_told_of_the_same_names() -> None:
    """Those that are imported when they are asked for, in one place, and those that a checker sees, in another."""
    import sliders

    tree = ast.parse(Path(sliders.__file__).read_text())
    (seen,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in seen.body if isinstance(node, ast.ImportFrom)]
    told = {a.asname or a.name: f"{node.module}:{a.name}" for node in imports for a in node.names}
    assert told == sliders._HOMES
    assert (Path(sliders.__file__).parent / "py.typed").is_file()


def test_an_unknown_name_is_an_attribute_error() -> None:
    import sliders

    with pytest.raises(AttributeError, match="no attribute 'Slyder'"):
        sliders.Slyder  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("top", ["sliders", "sliders.algebra.slider, sliders.algebra.edit, sliders.algebra.lowrank"])
def test_the_algebra_needs_torch_alone(top: str) -> None:
    out = run(f"import sys\nimport {top}\nprint([name for name in {HEAVY!r} if name in sys.modules])")
    assert out == "[]"
