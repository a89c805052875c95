"""The page, for a host that runs a file of this name; at home, type `sliders demo`."""

import os

from sliders.cli.demo import demo
from sliders.console import hush_libraries

if __name__ == "__main__":
    hush_libraries()
    demo(
        host=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
    )
