"""`phalanx …`: one file of `cluster/commands/` for each command."""

from __future__ import annotations

import logging
import sys

import typer

from cluster.commands import (
    ask,
    chat,
    compress,
    demo,
    distil,
    doctor,
    gateway,
    generate,
    models,
    plan,
    roll,
    scale,
    secret,
    serve,
    status,
    token,
    top,
)
from workers.observation.log import writes_json

log = logging.getLogger("cluster.cli")  # also when it runs as __main__

_OURS = ("cluster", "partitioning", "workers", "phalanx")

app = typer.Typer(
    name="phalanx",
    help="Serve one large language model over many machines.",
    epilog="Start here: phalanx models pull smollm2, then phalanx serve smollm2 --tp 2",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("doctor")(doctor.doctor)
app.command("serve")(serve.serve)
app.command("gateway")(gateway.gateway)
app.command("status")(status.status)
app.command("top")(top.top)
app.command("scale")(scale.scale)
app.command("roll")(roll.roll)
app.command("drain")(scale.drain)
app.command("stop")(roll.stop)
app.command("secret")(secret.secret)
app.command("ask")(ask.ask)
app.command("chat")(chat.chat)
app.command("generate")(generate.generate)
app.command("plan")(plan.plan)
app.command("compress")(compress.compress)
app.command("distil")(distil.distil)
app.add_typer(models.app, name="models")
app.add_typer(token.app, name="token")
app.command("demo", hidden=True)(demo.demo)


def main() -> None:
    """Runs the command line. An error of ours is one sentence on standard error and exit status 1."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _OURS:
            raise
        if writes_json():
            log.error("ended by an error", extra={"error": str(error)})
        else:
            typer.echo(f"Error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
