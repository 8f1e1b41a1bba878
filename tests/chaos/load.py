"""Streams of every kind, again and again, each compared with its undisturbed self; and how long each had to pause."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

from phalanx import AsyncClient, Chunk, Overloaded, Unavailable

_PATIENCE_S = 240.0  # a stream that takes longer hangs
_REFUSED_S = 0.3


@dataclass(frozen=True, eq=False)
class Kind:
    """A request that always has the same answer. A stream of `leave_after` tokens is left then, if that is set."""

    name: str
    options: dict[str, Any]
    chat: bool = False
    n: int = 1
    leave_after: int = 0

    def open(self, client: AsyncClient) -> AsyncIterator[Chunk]:
        if self.chat:
            return client.chat_stream([{"role": "user", "content": "tell me"}], n=self.n, **self.options)
        return client.stream("once upon a time", n=self.n, **self.options)


_SAMPLED: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "ignore_eos": True}
KINDS = (
    Kind("greedy", {"max_tokens": 380, "ignore_eos": True}),
    Kind("seeded", {"max_tokens": 300, "seed": 5, **_SAMPLED}),
    Kind("chat", {"max_tokens": 250, "seed": 6, "presence_penalty": 0.5, **_SAMPLED}, chat=True),
    Kind("three outputs", {"max_tokens": 150, "seed": 7, **_SAMPLED}, n=3),
    Kind("with log-probabilities", {"max_tokens": 120, "seed": 8, "logprobs": 2, **_SAMPLED}),
    Kind("left early", {"max_tokens": 400, "ignore_eos": True}, leave_after=40),
)


@dataclass
class Pause:
    """Nothing came between two moments of `monotonic`."""

    start: float
    end: float


@dataclass
class Account:
    """What became of all streams; `wrong` describes those that were not what they should be."""

    streams: int = 0
    tokens: int = 0
    refused: int = 0
    spans: list[Pause] = field(default_factory=list)  # from the first word to the last of each stream
    pauses: list[Pause] = field(default_factory=list)  # of more than _NOTABLE_S
    wrong: list[str] = field(default_factory=list)


_NOTABLE_S = 0.2

Answer = list[tuple[list[int], str]]  # tokens and text of each output


async def undisturbed(client: AsyncClient) -> dict[Kind, Answer]:
    """What each kind answers when nothing happens and nobody leaves."""
    return {kind: await _answer(replace(kind, leave_after=0), client, Account()) for kind in KINDS}


async def go_on(client: AsyncClient, expected: dict[Kind, Answer], account: Account, dice: random.Random) -> None:
    """Streams until it is cancelled, at which the stream under way is finished first."""
    while True:
        kind = dice.choice(KINDS)
        stream = asyncio.create_task(_compared(kind, client, expected[kind], account))
        try:
            await asyncio.shield(stream)
        except asyncio.CancelledError:
            await stream
            raise


async def _compared(kind: Kind, client: AsyncClient, expected: Answer, account: Account) -> None:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            answer = await _answer(kind, client, account)
    except TimeoutError:
        account.wrong.append(f"{kind.name}: hung for {_PATIENCE_S:.0f} s")
        return
    except Exception as error:
        account.wrong.append(f"{kind.name}: {type(error).__name__}: {error}")
        return
    account.streams += 1
    account.tokens += sum(len(tokens) for tokens, _ in answer)
    for number, ((tokens, text), (wanted, wanted_text)) in enumerate(zip(answer, expected, strict=True)):
        if kind.leave_after:
            wanted, text, wanted_text = wanted[: len(tokens)], "", ""
        if tokens != wanted or text != wanted_text:
            same = next((i for i, (a, b) in enumerate(zip(tokens, wanted, strict=False)) if a != b), len(tokens))
            account.wrong.append(
                f"{kind.name}: output {number} has {len(tokens)} tokens of {len(wanted)}, the same up to {same}"
            )


async def _answer(kind: Kind, client: AsyncClient, account: Account) -> Answer:
    tokens: list[list[int]] = [[] for _ in range(kind.n)]
    texts = [""] * kind.n
    while True:  # until it is taken
        with suppress(Unavailable, Overloaded):
            async with aclosing(kind.open(client)) as stream:  # type: ignore[type-var]
                began = last = monotonic()
                async for chunk in stream:
                    now = monotonic()
                    if now - last > _NOTABLE_S:
                        account.pauses.append(Pause(last, now))
                    last = now
                    if chunk.first_token_index != len(tokens[chunk.index]) and chunk.token_ids:
                        account.wrong.append(
                            f"{kind.name}: token {chunk.first_token_index} came after {len(tokens[chunk.index])}"
                        )
                    tokens[chunk.index] += chunk.token_ids
                    texts[chunk.index] += chunk.text
                    if kind.leave_after and len(tokens[0]) >= kind.leave_after:
                        break
            account.spans.append(Pause(began, last))
            return list(zip(tokens, texts, strict=True))
        if any(tokens):
            raise RuntimeError(f"given up after {sum(map(len, tokens))} tokens")
        account.refused += 1
        await asyncio.sleep(_REFUSED_S)
