"""What a deployment says of its draft."""

from __future__ import annotations

from workers.request import SpeculationType


class DraftError(ValueError):
    """A draft that cannot be used. The message names the option and the remedy."""


def check_options(speculation: SpeculationType, draft_model: str | None, draft_layers: int | None) -> None:
    """Raises DraftError: options that belong to another kind of speculation, or one that lacks its own."""
    if (draft_model is None) == (speculation == "draft"):
        raise DraftError(
            "speculation: draft needs draft_model, a folder, a GGUF file or a known name"
            if speculation == "draft"
            else f"draft_model goes with speculation: draft, not with {speculation}: leave one of them out"
        )
    if (draft_layers is None) == (speculation == "early-exit"):
        raise DraftError(
            "speculation: early-exit needs draft_layers, after how many layers the model guesses"
            if speculation == "early-exit"
            else f"draft_layers goes with speculation: early-exit, not with {speculation}: leave one of them out"
        )
