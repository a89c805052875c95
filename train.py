"""Train a concept slider: `python train.py --config smile [--model.rank 8 ...]`, which is `sliders train`.

Every argument of the model, the data and the trainer is a flag and a key of the config; `--help` lists them.
"""

from sliders.training.cli import main

if __name__ == "__main__":
    main()
