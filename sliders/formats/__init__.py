"""Files of dials: `diffusers` for pictures, `peft` for language, `hinge` for two on one dial, `edit` for any edit."""

from sliders.formats.dial_files import load, load_dial, modality_of, save_like

__all__ = ["load", "load_dial", "modality_of", "save_like"]
