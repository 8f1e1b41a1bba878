"""The subcommands of `phalanx`, one module each."""

WEIGHTS_HELP = "Matrices as the file has them (auto), in the float type (dense), or in 8 or 4 bits."
