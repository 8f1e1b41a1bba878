"""`make run`: the real model on two ranks of this machine, and a first question."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from cluster.commands import say
from cluster.spec import DeploymentSpec
from workers.observation.log import set_up

QUESTION = "What is the capital of France?"


def demo(
    listen: Annotated[str, typer.Option(help="Where the gateway listens, as HOST:PORT.")] = "127.0.0.1:50051",
    once: Annotated[bool, typer.Option("--once", help="Stop after the answer.")] = False,
) -> None:
    """Serve SmolLM2 on two ranks, ask it a question, stream the answer, and go on serving until Ctrl-C."""
    # In 8-bit arithmetic this small model's two likeliest first words, which are as good as equal, change places.
    spec = DeploymentSpec(model="smollm2", tp=2, weights="dense", listen=listen, log_level="warning")
    set_up(spec.log, "gateway")
    asyncio.run(_demo(spec, once))


async def _demo(spec: DeploymentSpec, once: bool) -> None:
    from cluster.lifecycle.serving import Interrupted, checked, deployment
    from phalanx import AsyncClient

    try:
        async with deployment(checked(spec), say) as (address, until_over):
            typer.echo(f"\n> {QUESTION}")
            async with AsyncClient(address) as client:
                async for chunk in client.chat_stream([{"role": "user", "content": QUESTION}]):
                    typer.echo(chunk.text, nl=False)
                    usage = chunk.usage
            assert usage is not None
            rate = (usage.completion_tokens - 1) / (usage.duration_seconds - usage.ttft_seconds)
            first = f"the first after {usage.ttft_seconds:.2f} s"
            typer.echo(f"\n\n({usage.completion_tokens} tokens, {first}, {rate:.0f} a second)")
            if not once:
                typer.echo(_NEXT.format(address=address))
                await until_over()
    except Interrupted as interrupted:
        say(str(interrupted))
        raise typer.Exit(130) from None
    say("stopped")


_NEXT = """
It goes on serving at {address}. In another terminal, from this folder:
  .venv/bin/phalanx ask "Why is the sky blue?"      ask another question
  .venv/bin/phalanx chat                            talk to it
  .venv/bin/phalanx status                          plan, replicas and load
From Python:
  from phalanx import Client
  print(Client("{address}").generate("The capital of France is", max_tokens=16).text)
From any other language: gRPC, service phalanx.v1.Inference (proto/phalanx/v1/inference.proto; reflection is on).
Ctrl-C stops it."""
