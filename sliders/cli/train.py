"""`sliders train`: a slider from a config, by Lightning's command line."""

import sys


def train_slider() -> None:
    """Train a slider; `sliders train --help` lists the flags, which are those of Lightning's command line."""
    from sliders.training import cli

    cli.main(sys.argv[2:])
