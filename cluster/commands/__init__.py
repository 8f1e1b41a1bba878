"""The subcommands of `phalanx`, one module each."""
