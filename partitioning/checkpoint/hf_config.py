"""Hugging Face's config.json (and generation_config.json) read into a ModelSpec."""

from __future__ import annotations

from pathlib import Path
from reprlib import repr as shortened
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from partitioning.checkpoint.base import CheckpointError
from partitioning.checkpoint.files import read_json_object
from partitioning.checkpoint.rope import linear_factors, llama3_factors
from partitioning.model_spec import MOST, MOST_HEAD_DIM, MOST_LAYERS, DType, Family, ModelSpec, RopeSpec

_Size = Annotated[int, Field(gt=0, le=MOST)]
_TokenId = Annotated[int, Field(ge=0, le=MOST)]
# One id or a list of them, always kept as a list.
_TokenIds = Annotated[list[_TokenId], BeforeValidator(lambda value: [value] if isinstance(value, int) else value)]
_Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Rope(BaseModel):
    """`rope_parameters` of transformers 5; `rope_scaling` of older versions has the same keys without the theta."""

    model_config = ConfigDict(strict=True)
    rope_theta: _Factor | None = None
    rope_type: str | None = None
    type: str | None = None
    factor: _Factor | None = None
    low_freq_factor: _Factor | None = None
    high_freq_factor: _Factor | None = None
    original_max_position_embeddings: _Size | None = None
    partial_rotary_factor: float = 1.0


class _Config(BaseModel):
    """The keys of config.json that decide what the model computes. Defaults are those of transformers."""

    model_config = ConfigDict(strict=True, protected_namespaces=())
    model_type: Family
    vocab_size: _Size
    hidden_size: _Size
    intermediate_size: _Size
    num_hidden_layers: Annotated[int, Field(gt=0, le=MOST_LAYERS)]
    num_attention_heads: _Size
    num_key_value_heads: _Size | None = None
    head_dim: _Size | None = None
    max_position_embeddings: _Size
    rms_norm_eps: _Factor = 1e-6
    hidden_act: Literal["silu"] = "silu"
    rope_theta: _Factor = 10000.0
    rope_scaling: _Rope | None = None
    rope_parameters: _Rope | None = None
    partial_rotary_factor: float = 1.0
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: Annotated[int, Field(ge=0, le=MOST)] | None = 4096
    use_sliding_window: bool = False
    max_window_layers: Annotated[int, Field(ge=0)] = 28
    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = None
    dtype: DType | None = None
    torch_dtype: DType | None = None
    bos_token_id: _TokenId | None = None
    eos_token_id: _TokenIds | None = None


class _GenerationConfig(BaseModel):
    model_config = ConfigDict(strict=True)
    bos_token_id: _TokenId | None = None
    eos_token_id: _TokenIds | None = None


def read_hf_config(folder: Path, *, has_own_head: bool, stored_dtype: DType) -> ModelSpec:
    """The ModelSpec of a Hugging Face folder.

    `has_own_head` says that the weights hold `lm_head.weight`: it then counts even where the configuration calls the
    head tied, as in transformers. `stored_dtype` is the type of the weights, for configurations that name none.
    Raises CheckpointError, naming file and key, for what is missing, malformed or not supported.
    """
    path = folder / "config.json"
    fields = read_json_object(path)
    if fields.get("model_type") not in get_args(Family):
        raise CheckpointError(
            f"{path}: model_type {shortened(fields.get('model_type'))} is not supported; Phalanx runs "
            f"{', '.join(get_args(Family))}"
        )
    config = _validated(_Config, fields, path)
    _refuse_unsupported(config, path)

    head_dim = _head_dim(config, path)
    kv_heads = config.num_key_value_heads or config.num_attention_heads
    if config.num_attention_heads % kv_heads:
        raise CheckpointError(
            f"{path}: num_attention_heads {config.num_attention_heads} is not a multiple of num_key_value_heads "
            f"{kv_heads}"
        )
    generation_path = folder / "generation_config.json"
    generation = _GenerationConfig()
    if generation_path.exists():
        generation = _validated(_GenerationConfig, read_json_object(generation_path), generation_path)
    eos = config.eos_token_id if generation.eos_token_id is None else generation.eos_token_id
    return ModelSpec(
        name=folder.resolve().name,
        family=config.model_type,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=config.vocab_size,
        norm_eps=config.rms_norm_eps,
        rope=_rope(config, head_dim, path),
        max_position=config.max_position_embeddings,
        layer_windows=_layer_windows(config, path),
        tied_head=config.tie_word_embeddings and not has_own_head,
        qkv_bias=config.model_type == "qwen2",
        qk_norm=config.model_type == "qwen3",
        dtype=config.dtype or config.torch_dtype or stored_dtype,
        bos_token_id=config.bos_token_id if generation.bos_token_id is None else generation.bos_token_id,
        eos_token_ids=tuple(eos or ()),
    )


_Model = TypeVar("_Model", bound=BaseModel)


def _validated(model: type[_Model], fields: dict[str, Any], path: Path) -> _Model:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        value = "" if problem["type"] == "missing" else f", got {shortened(problem['input'])}"
        raise CheckpointError(f"{path}: {key}: {problem['msg']}{value}") from error


def _refuse_unsupported(config: _Config, path: Path) -> None:
    if config.model_type in ("llama", "qwen3") and config.attention_bias:
        raise CheckpointError(f"{path}: attention_bias true is not supported for {config.model_type}")
    if config.model_type == "llama" and config.mlp_bias:
        raise CheckpointError(f"{path}: mlp_bias true is not supported")
    rotary_parts = [config.partial_rotary_factor]
    rotary_parts += [rope.partial_rotary_factor for rope in (config.rope_parameters, config.rope_scaling) if rope]
    for part in rotary_parts:
        if part != 1.0:
            raise CheckpointError(f"{path}: partial_rotary_factor {part} is not supported, only 1.0 is")


def _head_dim(config: _Config, path: Path) -> int:
    if config.head_dim is not None:
        head_dim = config.head_dim
    elif config.model_type == "qwen3":
        head_dim = 128
    elif config.hidden_size % config.num_attention_heads:
        raise CheckpointError(
            f"{path}: hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
            f"{config.num_attention_heads}, and head_dim is absent"
        )
    else:
        head_dim = config.hidden_size // config.num_attention_heads
    if head_dim > MOST_HEAD_DIM:
        raise CheckpointError(f"{path}: a head size of {head_dim} is not supported, only up to {MOST_HEAD_DIM}")
    if head_dim % 2:
        raise CheckpointError(f"{path}: head_dim {head_dim} is odd; rotary embedding works on pairs")
    return head_dim


def _rope(config: _Config, head_dim: int, path: Path) -> RopeSpec:
    rope = config.rope_parameters or config.rope_scaling or _Rope()
    theta = rope.rope_theta or config.rope_theta
    match rope.rope_type or rope.type or "default":
        case "default":
            return RopeSpec(theta)
        case "linear":
            return RopeSpec(theta, linear_factors(head_dim, _needed(rope.factor, "factor", path)))
        case "llama3":
            low = _needed(rope.low_freq_factor, "low_freq_factor", path)
            high = _needed(rope.high_freq_factor, "high_freq_factor", path)
            if low >= high:
                raise CheckpointError(f"{path}: low_freq_factor {low} must be below high_freq_factor {high}")
            factor = _needed(rope.factor, "factor", path)
            length = rope.original_max_position_embeddings or config.max_position_embeddings
            return RopeSpec(theta, llama3_factors(head_dim, theta, factor, low, high, length))
        case other:
            raise CheckpointError(
                f"{path}: rope type {shortened(other)} is not supported, default, linear and llama3 are"
            )


def _needed(value: float | None, key: str, path: Path) -> float:
    if value is None:
        raise CheckpointError(f"{path}: the rotary scaling lacks {key}")
    return value


def _layer_windows(config: _Config, path: Path) -> tuple[int, ...]:
    """Sliding windows as transformers applies them: Mistral to every layer, Qwen by `layer_types`, or else from layer
    `max_window_layers` on."""
    layers = config.num_hidden_layers
    window = config.sliding_window or 0
    if config.model_type == "llama":
        return (0,) * layers
    if config.model_type == "mistral":
        if config.layer_types is not None:
            raise CheckpointError(f"{path}: layer_types is not supported for mistral, whose layers are all alike")
        return (window,) * layers
    if not config.use_sliding_window:
        window = 0
    if config.layer_types is None:
        return tuple(window if layer >= config.max_window_layers else 0 for layer in range(layers))
    if len(config.layer_types) != layers:
        raise CheckpointError(f"{path}: layer_types has {len(config.layer_types)} entries for {layers} layers")
    if not window and "sliding_attention" in config.layer_types:
        raise CheckpointError(f"{path}: layer_types asks for sliding_attention, but no sliding_window is in use")
    return tuple(window if kind == "sliding_attention" else 0 for kind in config.layer_types)
