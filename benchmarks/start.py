"""Processor time of every command's help, against that of an interpreter that does nothing.

python -m benchmarks.start
"""

import resource
import subprocess
import sys

from rich.table import Table

from sliders.cli.main import COMMANDS
from sliders.console import say


def seconds(*arguments: str, times: int = 3) -> float:
    """The least processor time, user and system, of a new interpreter."""
    found = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found)


def main() -> None:
    """Print the table that `docs/start.md` sums up."""
    bare = seconds("-c", "pass")
    table = Table("command", "seconds", "ratio to `python -c pass`")
    helps = [[], *([name] for name in COMMANDS), ["edit", "uce"]]
    for words in helps:
        took = seconds("-m", "sliders.cli.main", *words, "--help")
        table.add_row(" ".join(["sliders", *words, "--help"]), f"{took:.2f}", f"{took / bare:.0f}")
    say(table)


if __name__ == "__main__":
    main()
