"""Text and token ids: tokenizers, chat templates, and text that grows token by token."""

from cluster.text.chat_template import ChatTemplate, ChatTemplateError
from cluster.text.detokenizer import Detokenizer
from cluster.text.load import load_tokenizer
from cluster.text.tokenizer import ChatTemplateMissing, Tokenizer, TokenizerError, TokenizerMissing

__all__ = [
    "ChatTemplate",
    "ChatTemplateError",
    "ChatTemplateMissing",
    "Detokenizer",
    "Tokenizer",
    "TokenizerError",
    "TokenizerMissing",
    "load_tokenizer",
]
