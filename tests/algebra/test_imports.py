"""The algebra needs torch and nothing of this package but its exception, whichever of its files is imported."""

import subprocess
import sys
from pathlib import Path

import sliders.algebra

FILES = sorted(file.stem for file in Path(sliders.algebra.__path__[0]).glob("[a-z]*.py"))
HEAVY = ("lightning", "diffusers", "transformers", "peft", "gradio", "scipy", "matplotlib")


def test_no_file_of_the_algebra_brings_more_along() -> None:
    code = (
        "import sys\n"
        + "".join(f"import sliders.algebra.{name}\n" for name in FILES)
        + f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
        + "print(sorted(m for m in sys.modules if m.startswith('sliders.') and not m.startswith('sliders.algebra')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(FILES) >= 10
    assert done.stdout.splitlines() == ["[]", "['sliders.errors']"]
