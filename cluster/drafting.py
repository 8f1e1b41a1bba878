"""Whether a draft model, or an early exit, suits the model that it guesses for: checked before anything runs."""

from __future__ import annotations

from pathlib import Path

from cluster.models import resolve_model
from cluster.text import Tokenizer, TokenizerMissing, load_tokenizer
from partitioning.checkpoint import open_checkpoint
from partitioning.draft import Draft, first_layers
from partitioning.model_spec import ModelSpec
from workers.speculation.options import DraftError


def draft_of(model: ModelSpec, draft_model: str | None, draft_layers: int | None) -> Draft | None:
    """What rank 0 holds to guess with; None for neither of the two.

    Raises:
        DraftError: the vocabularies differ in size, or there are too many layers.
        CheckpointError: the draft model cannot be read.
    """
    if draft_layers is not None:
        if draft_layers >= model.num_layers:
            raise DraftError(
                f"draft_layers: {draft_layers} of the {model.num_layers} layers of {model.name} guess no sooner than "
                f"all of them; it has to be from 1 to {model.num_layers - 1}"
            )
        return Draft(first_layers(model, draft_layers), exits=True)
    if draft_model is None:
        return None
    with open_checkpoint(draft_model) as checkpoint:
        draft = checkpoint.spec
    if draft.vocab_size != model.vocab_size:
        raise DraftError(
            f"draft_model: {draft.name} has a vocabulary of {draft.vocab_size:,} tokens, {model.name} one of "
            f"{model.vocab_size:,}, so neither knows the other's tokens: use a draft model of the same family, or one "
            "distilled from the model"
        )
    return Draft(draft)


def resolve_draft(draft_model: str, target: str | Path) -> Path:
    """The path of the draft model, whose tokens mean what those of the model at `target` mean.

    Raises:
        ModelError, TokenizerError: it is not there, or its tokenizer cannot be read.
        DraftError: the two have different tokenizers.
    """
    path = resolve_model(draft_model).resolve()
    ours, theirs = _tokenizer(target), _tokenizer(path)
    if ours is None or theirs is None or ours.vocabulary == theirs.vocabulary:
        return path
    other = min(token for piece, token in ours.vocabulary.items() ^ theirs.vocabulary.items())
    raise DraftError(
        f"draft_model: the tokenizer of {path} is another than that of {target} (their first difference is at token "
        f"{other}): use a draft model that was trained with the same tokenizer"
    )


def _tokenizer(path: str | Path) -> Tokenizer | None:
    try:
        return load_tokenizer(path)
    except TokenizerMissing:  # it takes token ids
        return None
