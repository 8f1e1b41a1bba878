"""What a slice costs: bytes of memory, seconds of compute, seconds of communication.

Compute follows the roofline model (Williams, Waterman, Patterson, "Roofline", CACM 2009): a piece of work takes the
longer of its bytes over the memory bandwidth and its operations over the arithmetic peak, each at the fraction of the
data sheet's figure that real kernels reach, plus a fixed time per layer for starting kernels. Collectives follow
Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in MPICH" (2005): an all-reduce
of m bytes over n ranks takes 2·log2(n) latencies and 2·(n-1)/n · m / bandwidth.

The figures rank layouts; they are not a promise of speed.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2

from partitioning.model_spec import DTYPE_BYTES, CacheType, DType, ModelSpec, WeightType
from partitioning.screening import SCREENED_ROWS, ScreenShape, screen_shape
from partitioning.topology import DeviceKind, DeviceSpec, Link

# The share that good kernels reach: on GPUs of the data sheet's figures, on CPUs of what is measured there, which the
# native engine reads at 83 to 100 % and multiplies at 83 % of (docs/performance.md).
_BANDWIDTH_SHARE: dict[DeviceKind, float] = {"cuda": 0.7, "cpu": 0.9}
_FLOPS_SHARE: dict[DeviceKind, float] = {"cuda": 0.5, "cpu": 0.8}
# What a layer costs besides its work: starting a dozen kernels, or threads that meet at barriers.
_LAYER_START: dict[DeviceKind, float] = {"cuda": 10e-6, "cpu": 15e-6}
# What a process holds before the first weight: the CUDA context, NCCL and captured graphs; the interpreter and torch.
_PROCESS_BYTES: dict[DeviceKind, int] = {"cuda": 2 << 30, "cpu": 256 << 20}
_EIGHT_BITS = 8.5 / 8  # bytes of a parameter in groups of 32 with a scale of 16 bits


@dataclass(frozen=True)
class Slice:
    """The part of the model that one rank holds, apart from where it runs.

    `embeds` and `samples` say that the rank's stage holds the embedding, and the final norm with the LM head.
    """

    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int
    embeds: bool
    samples: bool

    @classmethod
    def whole(cls, model: ModelSpec) -> Slice:
        """All of it."""
        return cls(
            layers=model.num_layers,
            heads=model.num_heads,
            kv_heads=model.num_kv_heads,
            mlp=model.intermediate_size,
            vocab=model.vocab_size,
            embeds=True,
            samples=True,
        )


@dataclass(frozen=True)
class Load:
    """The work of one step: `tokens` computed, of which `sampled` get a next token, for `sequences` sequences that
    each hold `context` tokens."""

    tokens: int
    sampled: int
    sequences: int
    context: int


@dataclass(frozen=True)
class ParameterBytes:
    """Bytes of one parameter in memory: of the layers, of embedding and head, and of what is never quantised."""

    layer: float
    table: float
    vector: float


@dataclass(frozen=True)
class CacheBytes:
    """Bytes of KV cache in memory: of one element, and of what a head's key or value of one token has beside its
    elements."""

    element: int
    scale: int = 0

    def vector(self, head_dim: int) -> int:
        """Of one head's key, or its value, of one token."""
        return head_dim * self.element + self.scale


def parameter_bytes(dtype: DType, weights: WeightType, packed_bits: float = 0) -> ParameterBytes:
    """Quantised weights have 16 bits of scale (and, in 4 bits, 16 of offset) for every 32 codes. With "auto" the layers
    take what the file has them in, `packed_bits`; where that is 0, as of GGUF files, they are counted as if they were
    expanded: the most that they can take. Layers that are in eight bits stay as they are where eight bits are asked
    for."""
    size = DTYPE_BYTES[dtype]
    eight, four = _EIGHT_BITS, 5 / 8
    if weights == "auto" and packed_bits and dtype != "float32":
        return ParameterBytes(packed_bits / 8, size, size)
    if weights in ("auto", "dense"):
        return ParameterBytes(size, size, size)
    if weights == "int8" and packed_bits >= 8:
        return ParameterBytes(packed_bits / 8, eight, size)
    return ParameterBytes(eight if weights == "int8" else four, eight, size)


def cache_bytes(dtype: DType, kv_cache: CacheType) -> CacheBytes:
    """Eight bits come with a float32 scale for every head's key and value of a token."""
    return CacheBytes(1, 4) if kv_cache == "int8" else CacheBytes(DTYPE_BYTES[dtype])


def layer_parameters(model: ModelSpec, part: Slice) -> int:
    """Parameters of one layer of a slice; the norms are whole on every rank."""
    hidden, dim = model.hidden_size, model.head_dim
    attention = hidden * dim * (2 * part.heads + 2 * part.kv_heads)
    if model.qkv_bias:
        attention += dim * (part.heads + 2 * part.kv_heads)
    norms = 2 * hidden + (2 * dim if model.qk_norm else 0)
    return attention + 3 * hidden * part.mlp + norms


def weight_bytes(model: ModelSpec, stored: ParameterBytes, part: Slice) -> int:
    """Bytes of all weights of a slice; a tied embedding and head on the same rank count once."""
    size = part.layers * layer_parameters(model, part) * stored.layer
    tables = part.embeds + part.samples
    if part.embeds and part.samples and model.tied_head:
        tables = 1
    size += tables * part.vocab * model.hidden_size * stored.table
    if part.samples:
        size += model.hidden_size * stored.vector
    return round(size)


def kv_token_bytes(model: ModelSpec, cached: CacheBytes, part: Slice) -> int:
    """Bytes of KV cache that one token takes on a rank."""
    return 2 * part.layers * part.kv_heads * cached.vector(model.head_dim)


def screen_bytes(model: ModelSpec, stored: ParameterBytes, part: Slice, kind: DeviceKind) -> int:
    """Bytes of the copy that the head's best outputs are found with."""
    screen = _screen(model, stored, part, kind)
    return 0 if screen is None else screen.bytes


def _screen(model: ModelSpec, stored: ParameterBytes, part: Slice, kind: DeviceKind) -> ScreenShape | None:
    return screen_shape(part.vocab, model.hidden_size, stored.table) if kind == "cpu" and part.samples else None


def reserve_bytes(
    model: ModelSpec, dtype: DType, stored: ParameterBytes, part: Slice, kind: DeviceKind, max_batch_tokens: int
) -> int:
    """Bytes kept for what is neither weight nor KV cache.

    The process itself, the head's copy in few bits, and for every token of the largest batch: the residual stream and
    its normed copy, the projections of one layer, the MLP's three intermediate tensors, and float32 logits of the
    vocabulary shard.
    """
    activations = 4 * model.hidden_size + 2 * (part.heads + part.kv_heads) * model.head_dim + 3 * part.mlp
    logits = 4 * part.vocab if part.samples else 0
    batch = max_batch_tokens * (activations * DTYPE_BYTES[dtype] + logits)
    return _PROCESS_BYTES[kind] + screen_bytes(model, stored, part, kind) + batch


def compute_seconds(
    model: ModelSpec, cached: CacheBytes, stored: ParameterBytes, part: Slice, device: DeviceSpec, load: Load
) -> float:
    """Seconds one rank computes in a step, communication apart."""
    layers = part.layers * layer_seconds(model, cached, stored, part, device, load)
    return layers + ends_seconds(model, stored, part, device, load)


def layer_seconds(
    model: ModelSpec, cached: CacheBytes, stored: ParameterBytes, part: Slice, device: DeviceSpec, load: Load
) -> float:
    """Seconds of one layer. Its bytes are the weights and the KV cache of all sequences, read once; its operations
    two for every weight and token, and four for every query head's element and attended token (two products)."""
    size = stored.layer
    parameters = layer_parameters(model, part)
    kv_bytes = 2 * part.kv_heads * cached.vector(model.head_dim) * load.sequences * load.context
    attention = 4 * part.heads * model.head_dim * load.context * load.tokens
    seconds = _roofline(device, size, parameters * size + kv_bytes, 2 * parameters * load.tokens + attention)
    return seconds + _LAYER_START[device.kind]


def ends_seconds(model: ModelSpec, stored: ParameterBytes, part: Slice, device: DeviceSpec, load: Load) -> float:
    """Seconds of what a stage does besides its layers: looking up embeddings, and the LM head."""
    size = stored.table
    seconds = 0.0
    if part.embeds:
        seconds += _roofline(device, size, load.tokens * model.hidden_size * size, 0)
    if part.samples and load.sampled:
        head = part.vocab * model.hidden_size
        screen = _screen(model, stored, part, device.kind) if load.sampled <= SCREENED_ROWS else None
        read = head * size if screen is None else screen.bytes_read(size)
        seconds += _roofline(device, size, read, 2 * head * load.sampled)
    return seconds


def _roofline(device: DeviceSpec, size: float, bytes_read: float, operations: float) -> float:
    # The peak is that of 16-bit floats; float32 halves it. 8 bits, which 4 become for arithmetic, double it on CPUs; on
    # GPUs they become floats, but for those of W8A8, which their size does not tell from others.
    peak = device.flops * _FLOPS_SHARE[device.kind] * 2 / max(size, 1 if device.kind == "cpu" else 2)
    return max(bytes_read / (device.memory_bandwidth * _BANDWIDTH_SHARE[device.kind]), operations / peak)


def all_reduce_seconds(ranks: int, size_bytes: float, link: Link) -> float:
    if ranks == 1:
        return 0.0
    return 2 * ceil(log2(ranks)) * link.latency + 2 * (ranks - 1) / ranks * size_bytes / link.bandwidth


def stage_communication_seconds(
    model: ModelSpec, dtype: DType, layers: int, ranks: int, link: Link, load: Load, *, embeds: bool, samples: bool
) -> float:
    """Seconds a stage's ranks spend in collectives in one step: two all-reduces a layer (after attention and MLP), one
    for the sharded embedding, and an all-gather of candidates for sampling, too small for its bytes to count."""
    if ranks == 1:
        return 0.0
    hidden = load.tokens * model.hidden_size * DTYPE_BYTES[dtype]
    seconds = (2 * layers + embeds) * all_reduce_seconds(ranks, hidden, link)
    if samples and load.sampled:
        seconds += ceil(log2(ranks)) * link.latency
    return seconds


def handover_seconds(model: ModelSpec, dtype: DType, link: Link, load: Load) -> float:
    """Seconds for the hidden states of a step to reach the next stage."""
    return link.latency + load.tokens * model.hidden_size * DTYPE_BYTES[dtype] / link.bandwidth
