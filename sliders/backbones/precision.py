"""The precisions that a model's weights can be read in, where their names alone are wanted."""

from typing import Literal

Precision = Literal["auto", "float32", "bfloat16", "float16"]
