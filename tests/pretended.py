"""Run every command of a family on a pretended accelerator, in a process of its own: `python -m tests.pretended`.

Torch is told of the device before it has computed anything, and cannot forget it.
"""

import json
import sys
import traceback
from pathlib import Path

from tests import pretend
from tests.machines import CASES, Where, World, run_case


def main(family: str, folder: Path, out: Path) -> None:
    """Write how each case ended, an empty text for well."""
    pretend.register()
    ended: dict[str, str] = {}
    world = World(folder / "world", family)
    world.sliders()
    for case in CASES:
        if case.family == family and (len(sys.argv) < 5 or case.command in sys.argv[4:]):
            try:
                with pretend.accelerator():
                    run_case(
                        case, world, folder / case.command.replace(" ", "_"), Where("auto", "auto", pretend.TRAINER)
                    )
                ended[case.command] = ""
            except Exception:
                ended[case.command] = traceback.format_exc()
    out.write_text(json.dumps(ended))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
