"""What the demo may know of: its session nothing of gradio, and all of it nothing of training."""

import ast
import subprocess
import sys
from pathlib import Path

from sliders import page

FOLDER = Path(page.__path__[0])
PAGE = {"sliders.page.app", "sliders.page.api", "sliders.page.theme", "sliders.page.widgets"}
"""Layout, with `sliders.page.tabs`; all other files are tested without it."""


def imported(file: Path) -> set[str]:
    """The modules that a file imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_the_demo_imports_no_training() -> None:
    files = sorted(FOLDER.rglob("*.py"))
    assert len(files) >= 15
    for file in files:
        names = imported(file)
        assert not [name for name in names if name.startswith(("sliders.training", "lightning"))], file
        assert "sliders.cli.main" not in names, file


def test_the_session_brings_neither_gradio_nor_training_along() -> None:
    code = (
        "import sys, sliders.page.opening\n"
        "seen = ('gradio', 'lightning', 'sliders.training.module', 'sliders.training.data', 'sliders.page.app')\n"
        "print([m for m in seen if m in sys.modules])\n"
        "print('sliders.page.session' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "True"]


def test_gradio_is_in_the_layout_alone() -> None:
    for file in FOLDER.rglob("*.py"):
        name = ".".join(file.relative_to(FOLDER.parents[1]).with_suffix("").parts)
        if any(module.partition(".")[0] == "gradio" for module in imported(file)):
            assert name in PAGE or name.startswith("sliders.page.tabs."), file


def test_without_gradio_the_command_says_what_to_install() -> None:
    code = (
        "import sys\nsys.modules['gradio'] = None\nsys.argv = ['sliders', 'demo']\n"
        "import sliders.cli.main\nsliders.cli.main.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'concept-sliders[demo]'" in done.stderr
