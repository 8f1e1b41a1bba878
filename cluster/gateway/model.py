"""What a gateway knows of the model, from the plan and the checkpoint's tokenizer."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from cluster.gateway.requests import Limits
from cluster.text import Tokenizer, TokenizerMissing, load_tokenizer
from partitioning.plan import Plan
from phalanx.v1 import inference_pb2

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedModel:
    """The model, the longest sequence served, the tokens that end an output, its tokenizer if there is one, and of how
    many tokens sequences may be that one replica holds and queues."""

    plan: Plan
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    tokenizer: Tokenizer | None
    replica_tokens: int

    @property
    def limits(self) -> Limits:
        return Limits(self.plan.model.vocab_size, self.max_model_len)

    def describe(self) -> inference_pb2.GetModelResponse:
        model = self.plan.model
        return inference_pb2.GetModelResponse(
            name=model.name,
            family=model.family,
            vocab_size=model.vocab_size,
            max_model_len=self.max_model_len,
            dtype=self.plan.dtype,
            eos_token_ids=self.eos_token_ids,
            has_tokenizer=self.tokenizer is not None,
            has_chat_template=self.tokenizer is not None and self.tokenizer.has_chat_template,
        )


def tokenizer_of(path: str) -> Tokenizer | None:
    """The checkpoint's tokenizer; None, with a word in the log, when it has none: then token ids can still be served.

    Raises:
        ValueError: there is one, and it is damaged.
    """
    try:
        return load_tokenizer(path)
    except TokenizerMissing as error:
        log.warning("requests have to use token ids", extra={"error": str(error)})
        return None
