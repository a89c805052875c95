"""Train a concept slider: `python train.py --config configs/avatars/smile.yaml [--model.rank 8 ...]`.

Every argument of the model, the data and the trainer is a flag and a key of the config; `--help` lists them.
"""

import sys

from sliders.console import hush_libraries
from sliders.errors import SliderError
from sliders.training.cli import SliderCLI


def main() -> None:
    hush_libraries()
    try:
        SliderCLI().fit()
    except SliderError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
