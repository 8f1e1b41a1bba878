"""A command line, taken apart by its own parser and not carried out."""

from __future__ import annotations

from typing import Any


def understood(command: Any, words: list[str], parent: Any = None) -> dict[str, Any]:
    """The values of all parameters of `words`, the first of which names the program. Raises its UsageError."""
    context = command.make_context(words[0], words[1:], parent=parent)
    if not hasattr(command, "resolve_command"):
        return dict(context.params)
    rest = [*context._protected_args, *context.args]
    name, inner, arguments = command.resolve_command(context, rest)
    return understood(inner, [name, *arguments], context)
