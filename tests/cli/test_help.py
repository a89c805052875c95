"""What a help imports: what the flags are, and no library that a model needs."""

import subprocess
import sys

import pytest

from sliders.cli.main import COMMANDS
from tests.commands import ROOT

HEAVY = (
    "torch", "transformers", "diffusers", "lightning", "safetensors.torch", "gradio", "matplotlib", "scipy", "numpy",
    "PIL", "huggingface_hub", "sklearn", "pandas",
)  # fmt: skip
LIGHT = {
    "sliders", "sliders.console", "sliders.errors", "sliders.files", "sliders.resources", "sliders.resources.fetch",
    "sliders.resources.package_index", "sliders.resources.paths", "sliders.resources.shipped", "sliders.backbones",
    "sliders.backbones.precision", "sliders.evaluation", "sliders.evaluation.pictures",
    "sliders.evaluation.pictures.settings", "sliders.evaluation.texts", "sliders.evaluation.texts.settings",
    "sliders.editors",
}  # fmt: skip
"""Modules of this package, beside those of the commands, that a help may import."""
_CODE = """
import sys
sys.argv = ["sliders", *sys.argv[1:]]
import sliders.cli.main
try:
    sliders.cli.main.main()
except SystemExit as end:
    code = end.code
print("\\n".join(sorted(sys.modules)), file=sys.stderr)
sys.exit(code)
"""


def modules(*arguments: str) -> tuple[str, set[str]]:
    """What a help prints, and all that is imported when it has."""
    command = [sys.executable, "-c", _CODE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout, set(done.stderr.split())


@pytest.mark.parametrize("command", ["", *(name for name in COMMANDS if name != "train")])
def test_help_imports_what_flags_are_made_of(command: str) -> None:
    told, found = modules(*([command] if command else []), "--help")
    assert "usage: " in told
    assert [name for name in HEAVY if name in found] == []
    own = {name for name in found if name.partition(".")[0] == "sliders" and not name.startswith("sliders.cli")}
    assert own - LIGHT == set()
    wanted = "sliders.cli." + command.replace("-", "_") if command else "sliders.cli.demo"
    assert wanted in found
    if command:
        others = {f"sliders.cli.{name.replace('-', '_')}" for name in COMMANDS} - {wanted}
        assert not others & found, "a command imports itself alone"


def test_the_control() -> None:
    """A method's flags are its editor's fields, which are of its libraries."""
    told, found = modules("edit", "uce", "--help")
    assert "--editor" in told
    assert {"torch", "sliders.editors.uce"} <= found


def test_the_list_names_every_command_in_a_line() -> None:
    told, _ = modules("--help")
    assert all(f"\n    {name} " in told for name in COMMANDS)
