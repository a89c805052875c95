"""Files of dials: `diffusers` for pictures, `peft` for language, `hinge` for two on one dial, `edit` for any edit."""

from sliders.formats.dial_files import all_of_language, load, load_dial, of_language, save_like

__all__ = ["all_of_language", "load", "load_dial", "of_language", "save_like"]
