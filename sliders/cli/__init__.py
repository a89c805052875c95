"""The `sliders` command: one file a command."""
