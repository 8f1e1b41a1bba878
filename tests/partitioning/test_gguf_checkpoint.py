from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from partitioning.checkpoint import CheckpointError, open_checkpoint
from partitioning.checkpoint.gguf_header import read_gguf_header
from partitioning.checkpoint.gguf_spec import hf_name
from partitioning.checkpoint.tensors import model_tensors
from partitioning.plan import Span
from tests.tiny_gguf import make_tiny_gguf
from tests.tiny_models import make_tiny

# Rows of whole 32-value blocks in every matrix but o_proj, whose 144 columns stay in float32.
BLOCKS_OF_32 = {"hidden_size": 288, "intermediate_size": 96}
BLOCKS_OF_256 = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A GGUF file of the tiny llama, in float32."""
    return make_tiny_gguf(tmp_path / "llama.gguf", make_tiny(tmp_path / "hf", "llama"))


def tiny(tmp_path: Path, **options) -> Path:
    return make_tiny_gguf(tmp_path / "tiny.gguf", make_tiny(tmp_path / "hf", "llama"), **options)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_gguf_file_holds_the_same_model_as_the_folder_it_was_made_from(tmp_path, family):
    folder = make_tiny(tmp_path / "hf", family)
    with open_checkpoint(folder) as original, open_checkpoint(make_tiny_gguf(tmp_path / "m.gguf", folder)) as converted:
        for name in model_tensors(original.spec):
            assert torch.equal(converted.read(name), original.read(name)), name
            rows = Span(3, len(original.read(name)) - 5)
            assert torch.equal(converted.read(name, rows=rows), original.read(name, rows=rows)), name


def test_the_description_matches_that_of_the_folder(tmp_path):
    folder = make_tiny(tmp_path / "tiny", "qwen3")
    described = open_checkpoint(make_tiny_gguf(tmp_path / "tiny.gguf", folder)).spec
    expected = open_checkpoint(folder).spec
    assert described.norm_eps == pytest.approx(expected.norm_eps)
    for field in set(expected.__dataclass_fields__) - {"norm_eps"}:
        assert getattr(described, field) == getattr(expected, field), field


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [(kind, BLOCKS_OF_32) for kind in ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")]
    + [(kind, BLOCKS_OF_256) for kind in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Random blocks hold scales that overflow.
def test_slices_of_quantised_tensors_equal_slices_of_the_whole(tmp_path, kind, sizes):
    path = make_tiny_gguf(tmp_path / "m.gguf", make_tiny(tmp_path / "hf", "qwen3", **sizes), kind=kind)
    with open_checkpoint(path) as checkpoint:
        for stored in gguf.GGUFReader(path).tensors:
            whole = torch.from_numpy(gguf.dequantize(stored.data, stored.tensor_type).copy())
            name = hf_name(stored.name)
            torch.testing.assert_close(checkpoint.read(name).float(), whole, rtol=0, atol=0, equal_nan=True)
            if whole.ndim == 2:
                for rows, cols in [(Span(7, 30), Span(0, 33)), (Span(5, 5), Span(9, 9)), (Span(1, 9), Span(37, 95))]:
                    part = checkpoint.read(name, rows=rows, cols=cols)
                    expected = whole[rows.start : rows.stop, cols.start : cols.stop]
                    torch.testing.assert_close(part.float(), expected, rtol=0, atol=0, equal_nan=True)
                    assert part.is_contiguous()


def test_llama_heads_come_back_in_hugging_face_order_from_quantised_rows(tmp_path):
    folder = make_tiny(tmp_path / "hf", "llama", **BLOCKS_OF_32)
    path = make_tiny_gguf(tmp_path / "m.gguf", folder, kind="Q8_0")
    name = "model.layers.1.self_attn.k_proj.weight"
    with open_checkpoint(folder) as original, open_checkpoint(path) as converted:
        heads = Span(16, 48)
        torch.testing.assert_close(converted.read(name, rows=heads), original.read(name, rows=heads), rtol=0, atol=4e-3)


def test_ranks_read_only_the_blocks_that_cover_their_slices(tmp_path):
    path = make_tiny_gguf(tmp_path / "m.gguf", make_tiny(tmp_path / "hf", "llama", **BLOCKS_OF_32), kind="Q4_1")
    down, query = "model.layers.0.mlp.down_proj.weight", "model.layers.0.self_attn.q_proj.weight"
    block_bytes = 20  # 32 values of 4 bits, a scale and a minimum
    with open_checkpoint(path) as checkpoint:
        checkpoint.read(down, cols=Span(0, 37))
        assert checkpoint.bytes_read == 288 * 2 * block_bytes
    with open_checkpoint(path) as checkpoint:
        checkpoint.read(query, rows=Span(16 * 5, 16 * 9))
        assert checkpoint.bytes_read == 16 * 4 * 9 * block_bytes


def test_the_types_of_float_tensors_are_kept_and_blocks_become_float32(tmp_path):
    folder = make_tiny(tmp_path / "hf", "llama", **BLOCKS_OF_32)
    expected = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "Q8_0": torch.float32}
    for kind, dtype in expected.items():
        with open_checkpoint(make_tiny_gguf(tmp_path / "m.gguf", folder, kind=kind)) as checkpoint:
            assert checkpoint.read("lm_head.weight", rows=Span(0, 2)).dtype == dtype


def test_the_head_is_tied_when_the_file_has_no_output_tensor(tmp_path):
    tied = make_tiny_gguf(tmp_path / "m.gguf", make_tiny(tmp_path / "hf", "qwen2"))
    assert open_checkpoint(tied).spec.tied_head
    assert not open_checkpoint(tiny(tmp_path)).spec.tied_head


def test_rotary_factors_are_the_tensor_times_the_linear_scale(tmp_path):
    factors = (1.0, 1.0, 1.5, 2.0, 4.0, 8.0, 8.0, 8.0)
    assert open_checkpoint(tiny(tmp_path, rope_factors=factors)).spec.rope.freq_factors == factors
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    assert open_checkpoint(tiny(tmp_path, metadata=linear)).spec.rope.freq_factors == (2.0,) * 8
    both = open_checkpoint(tiny(tmp_path, rope_factors=factors, metadata=linear)).spec.rope
    assert both.freq_factors == tuple(2 * factor for factor in factors)


def test_a_sliding_window_and_further_end_tokens_are_read(tmp_path):
    extra = {"llama.attention.sliding_window": 8, "tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 2}
    spec = open_checkpoint(tiny(tmp_path, metadata=extra)).spec
    assert spec.layer_windows == (8, 8, 8)
    assert spec.eos_token_ids == (2, 5)


def test_the_header_scan_finds_what_the_gguf_package_finds(tmp_path):
    extra = {"test.words": ["a", "déjà", ""], "test.numbers": [1, -2, 3], "test.real": 0.5}
    path = tiny(tmp_path, kind="Q8_0", metadata=extra)
    header, reader = read_gguf_header(path), gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert header.metadata == fields
    assert header.tensors.keys() == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        stored = header.tensors[tensor.name]
        assert (stored.type, stored.begin) == (tensor.tensor_type.name, tensor.data_offset)
        assert stored.end - stored.begin == tensor.n_bytes
        assert list(stored.shape) == tensor.shape.tolist()[::-1]


def test_a_folder_with_one_gguf_file_is_that_file(tmp_path, llama):
    (tmp_path / "folder").mkdir()
    llama.rename(tmp_path / "folder" / "a.gguf")
    assert open_checkpoint(tmp_path / "folder").spec.name == "a"
    (tmp_path / "folder" / "b.gguf").touch()
    with pytest.raises(CheckpointError, match=r"several GGUF files; name one: a\.gguf, b\.gguf"):
        open_checkpoint(tmp_path / "folder")


def test_a_truncated_file_is_refused_with_file_and_tensor(llama):
    content = llama.read_bytes()
    llama.write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(CheckpointError, match=r"llama\.gguf is truncated: tensor \S+ ends at byte"):
        open_checkpoint(llama)


@pytest.mark.parametrize("keep", [10, 30, 2000])
def test_a_header_cut_short_is_refused(llama, keep):
    llama.write_bytes(llama.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"llama\.gguf: the GGUF header is cut short or damaged"):
        open_checkpoint(llama)


def test_a_damaged_header_is_refused_or_harmless(llama):
    content = llama.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for at in generator.integers(4, 9000, size=300):
        damaged = bytearray(content)
        damaged[at] ^= int(generator.integers(1, 256))
        llama.write_bytes(damaged)
        try:
            open_checkpoint(llama).close()
        except CheckpointError:
            refused += 1
    assert refused > 100


def test_a_layer_count_beyond_the_tensors_is_refused_at_once(tmp_path):
    path = tiny(tmp_path)
    content = bytearray(path.read_bytes())
    key = b"llama.block_count"
    count_at = content.index(key) + len(key) + 4
    content[count_at : count_at + 4] = (1 << 31).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="describes 2147483648 layers with 30 tensors"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin with the GGUF magic"),
        (b"PK\x03\x04 a zip archive", "does not begin with the GGUF magic"),
        (b"GGUF\x01\x00\x00\x00" + bytes(64), "is GGUF version 1"),
        (b"GGUF\x00\x00\x00\x03" + bytes(64), "is GGUF version 50331648"),
    ],
)
def test_files_of_another_format_are_refused(tmp_path, content, message):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.rope.scaling.type": "yarn"}, r"rope\.scaling\.type 'yarn' is not supported"),
        ({"llama.rope.scaling.type": "linear"}, r"rope\.scaling\.factor is missing"),
        ({"llama.rope.scale_linear": 4.0}, r"rope\.scale_linear is set"),
        ({"llama.expert_count": 8}, r"llama\.expert_count is set"),
        ({"llama.attention.sliding_window_pattern": 2}, r"sliding_window_pattern is set"),
        ({"split.count": 2}, "one of several parts; join them"),
    ],
)
def test_options_that_cannot_be_run_are_refused_by_key(tmp_path, metadata, message):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tiny(tmp_path, metadata=metadata))


def test_sizes_that_differ_between_layers_are_refused_and_equal_ones_accepted(tmp_path):
    folder = make_tiny(tmp_path / "hf", "llama")

    def with_heads(heads: list[int]) -> Path:
        return make_tiny_gguf(tmp_path / "m.gguf", folder, metadata={"llama.attention.head_count_kv": heads})

    assert open_checkpoint(with_heads([3, 3, 3])).spec.num_kv_heads == 3
    with pytest.raises(CheckpointError, match=r"head_count_kv \[3, 3, 1\] is not supported"):
        open_checkpoint(with_heads([3, 3, 1]))
    with pytest.raises(CheckpointError, match="head_count_kv 0 is not positive"):
        open_checkpoint(with_heads([0, 0, 0]))


def test_unknown_architectures_are_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "falcon")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="'falcon' is not supported; Phalanx runs GGUF files of llama, qwen2"):
        open_checkpoint(tmp_path / "x.gguf")


def test_tensors_that_would_change_the_model_are_refused(tmp_path):
    bias = {"blk.0.attn_q.bias": np.ones(144, np.float32)}
    with pytest.raises(CheckpointError, match=r"self_attn\.q_proj\.bias has no place in a llama model"):
        open_checkpoint(tiny(tmp_path, extra_tensors=bias))


def test_rotary_factors_of_the_wrong_length_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight has 3 values for a head size of 16"):
        open_checkpoint(tiny(tmp_path, rope_factors=(1.0, 2.0, 3.0)))
