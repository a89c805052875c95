"""How the page looks; all of it lies on this machine, nothing is fetched from elsewhere."""

import gradio as gr

_SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def theme() -> gr.themes.Base:
    """Ink on paper, with indigo for what can be turned."""
    return gr.themes.Base(
        primary_hue="indigo", secondary_hue="amber", neutral_hue="slate", radius_size="lg", font=_SANS, font_mono=_MONO
    ).set(
        body_background_fill="#f6f7fb",
        body_background_fill_dark="#0f1220",
        block_shadow="0 1px 2px rgba(16, 24, 40, .05)",
        body_text_color_subdued="#556070",
        body_text_color_subdued_dark="#a8b1c2",
        block_info_text_color="#556070",
        block_info_text_color_dark="#a8b1c2",
        block_border_width="1px",
        block_label_text_weight="600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="white",
        slider_color="*primary_500",
    )
