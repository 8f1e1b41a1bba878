"""Which format a folder's `quantization_config` speaks of."""

from __future__ import annotations

from pathlib import Path
from reprlib import repr as shortened

from partitioning.checkpoint.awq import read_awq
from partitioning.checkpoint.base import CheckpointError
from partitioning.checkpoint.compressed_tensors import read_compressed_tensors
from partitioning.checkpoint.files import read_json_object
from partitioning.checkpoint.gptq import read_gptq
from partitioning.checkpoint.packed import Quantisation

_METHODS = {"compressed-tensors": read_compressed_tensors, "gptq": read_gptq, "awq": read_awq}


def read_quantisation(config: Path) -> Quantisation | None:
    """What a config.json says of how weights are stored; None where they are plain. Raises CheckpointError."""
    fields = read_json_object(config)
    # Early checkpoints of llm-compressor have the older name.
    found = fields.get("quantization_config", fields.get("compression_config"))
    if found is None:
        return None
    if not isinstance(found, dict):
        raise CheckpointError(f"{config}: quantization_config is no object; fetch the file again")
    reader = _METHODS.get(str(found.get("quant_method")))
    if reader is None:
        raise CheckpointError(
            f"{config}: quantization_config (quant_method {shortened(found.get('quant_method'))}) is not supported, "
            f"{', '.join(_METHODS)} are; use one of these, the unquantised checkpoint or a GGUF file"
        )
    return reader(found, config)
