"""What importing the package brings along, each in a Python of its own."""

import subprocess
import sys

import pytest

HEAVY = ("lightning", "diffusers", "transformers", "peft", "gradio")


def run(code: str) -> str:
    """What the code prints in a fresh Python."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_top_names_are_the_objects_whatever_was_imported_before() -> None:
    """`sliders.runtime.attach` is a function and a file's name; the file must not take the function's place."""
    out = run(
        "import sys\n"
        "import sliders.runtime.attach\n"
        "import sliders\n"
        "from sliders import attach, Concept, Slider, SliderError\n"
        "from sliders.runtime.attach import attach as same, Adapter\n"
        "assert attach is same and sliders.runtime.attach is same\n"
        "assert isinstance(Concept, type) and isinstance(Slider, type) and issubclass(SliderError, Exception)\n"
        "assert set(sliders.__all__) <= set(dir(sliders)) and '__version__' in dir(sliders)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert "peft" in out  # control: what the test of the algebra below looks for can be seen


def test_an_unknown_name_is_an_attribute_error() -> None:
    import sliders

    with pytest.raises(AttributeError, match="no attribute 'Slyder'"):
        sliders.Slyder  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("top", ["sliders", "sliders.algebra.slider, sliders.algebra.edit, sliders.algebra.lowrank"])
def test_the_algebra_needs_torch_alone(top: str) -> None:
    out = run(f"import sys\nimport {top}\nprint([name for name in {HEAVY!r} if name in sys.modules])")
    assert out == "[]"
