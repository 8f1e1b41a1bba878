"""The subcommands of `phalanx`, one module each."""

from __future__ import annotations

import logging

import typer

from workers.observation.log import writes_json

log = logging.getLogger(__name__)

WEIGHTS_HELP = "Matrices as the file has them (auto), in the float type (dense), or in 8 or 4 bits."
SPECULATION_HELP = (
    "Guess tokens, keep those the model draws too: from prompt and output (ngram), by a small model (draft) or the "
    "first layers (early-exit); or off."
)
DRAFT_MODEL_HELP = "With --speculation draft: a small model with the same tokenizer."
DRAFT_LAYERS_HELP = "With --speculation early-exit: after how many layers the model guesses."
KV_CACHE_HELP = "Keys and values in the float type (auto), or in 8 bits (int8): about twice as many tokens."


def say(text: str) -> None:
    """Tells the user what goes on, beside the output; where a program reads it, in the log."""
    if writes_json():
        log.info(text)
    else:
        typer.echo(text, err=True)
