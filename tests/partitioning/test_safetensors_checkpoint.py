import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from partitioning.checkpoint import CheckpointError, open_checkpoint
from partitioning.checkpoint.tensors import model_tensors
from partitioning.plan import Span
from tests.tiny_models import FAMILIES, make_tiny


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return make_tiny(tmp_path / "llama", "llama")


def rewrite(folder: Path, change) -> None:
    """Let `change` edit the tensors of a one-file checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_slice_equals_the_slice_of_the_whole_tensor(tmp_path, family):
    folder = make_tiny(tmp_path, family)
    stored = load_file(folder / "model.safetensors")
    with open_checkpoint(folder) as checkpoint:
        assert model_tensors(checkpoint.spec).keys() == stored.keys()
        for name, whole in stored.items():
            assert torch.equal(checkpoint.read(name), whole)
            rows = Span(len(whole) // 3, len(whole) - 1)
            assert torch.equal(checkpoint.read(name, rows=rows), whole[rows.start : rows.stop])
            assert checkpoint.read(name, rows=Span(2, 2)).shape == (0, *whole.shape[1:])
            if whole.ndim == 2:
                cols = Span(5, whole.shape[1] - 7)
                part = checkpoint.read(name, rows=rows, cols=cols)
                assert torch.equal(part, whole[rows.start : rows.stop, cols.start : cols.stop])
                assert part.is_contiguous()
                assert part.untyped_storage().nbytes() == part.nbytes


def test_shards_read_like_one_file(tmp_path):
    whole = make_tiny(tmp_path / "whole", "llama")
    sharded = make_tiny(tmp_path / "sharded", "llama", max_shard_size="60KB")
    assert len(list(sharded.glob("*.safetensors"))) > 3
    with open_checkpoint(whole) as one, open_checkpoint(sharded) as many:
        for name in model_tensors(one.spec):
            assert torch.equal(one.read(name, rows=Span(1, 9)), many.read(name, rows=Span(1, 9)))


def test_the_ranks_of_an_uneven_split_read_each_byte_once(llama):
    name = "model.layers.0.mlp.down_proj.weight"
    whole = 72 * 88 * 4
    with open_checkpoint(llama) as first, open_checkpoint(llama) as second:
        first.read(name, cols=Span(0, 37))
        second.read(name, cols=Span(37, 88))
        assert first.bytes_read == 72 * 37 * 4
        assert first.bytes_read + second.bytes_read == whole


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tensors_keep_the_type_of_the_file(llama, dtype):
    rewrite(llama, lambda tensors: tensors.update({n: t.to(dtype) for n, t in tensors.items()}))
    with open_checkpoint(llama) as checkpoint:
        assert checkpoint.read("model.norm.weight").dtype == dtype
        assert checkpoint.read("lm_head.weight", rows=Span(0, 10)).dtype == dtype
        assert checkpoint.bytes_read == (72 + 10 * 72) * 2


def test_a_head_of_its_own_counts_even_when_the_configuration_ties_it(tmp_path):
    folder = make_tiny(tmp_path, "llama3")
    assert open_checkpoint(folder).spec.tied_head
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": torch.ones(307, 72)}))
    assert not open_checkpoint(folder).spec.tied_head


def test_saved_rotary_buffers_are_ignored(llama):
    rewrite(llama, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    assert open_checkpoint(llama).spec.num_layers == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.2.mlp.up_proj.weight"), r"layers\.2\.mlp\.up_proj\.weight is missing"),
        (lambda t: t.pop("lm_head.weight"), r"lm_head\.weight is missing"),
        (lambda t: t.update({"model.norm.weight": torch.ones(71)}), r"norm\.weight has shape \[71\].* asks for \[72\]"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(72, dtype=torch.float8_e4m3fn)}),
            r"norm\.weight has type F8_E4M3, which is not supported; convert it to one of BF16, F16, F32",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(144)}),
            r"q_proj\.bias has no place in a llama model",
        ),
        (
            lambda t: t.update({"model.layers.3.input_layernorm.weight": torch.ones(72)}),
            r"layers\.3\.input_layernorm\.weight has no place in a llama model of 3 layers",
        ),
    ],
)
def test_weights_that_are_not_the_configured_model_are_refused(llama, change, message):
    rewrite(llama, change)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(llama)


@pytest.mark.parametrize("keep", [4, 100, -1])
def test_a_truncated_file_is_refused_by_name(llama, keep):
    path = llama / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated"):
        open_checkpoint(llama)


def test_a_damaged_header_is_refused(llama):
    path = llama / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[8] = ord("[")
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="header is damaged"):
        open_checkpoint(llama)


def test_an_index_that_names_a_missing_shard_is_refused(tmp_path):
    folder = make_tiny(tmp_path, "llama", max_shard_size="60KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"{shard.name} is missing, though model\.safetensors\.index\.json"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds a JSON list"),
        ('{"weight_map": {"a": 1}}', "weight_map must map"),
        ('{"weight_map": {"a": "../secret.safetensors"}}', "is no file of this folder"),
    ],
)
def test_a_damaged_index_is_refused(llama, index, message):
    (llama / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(llama)


def test_pickles_are_refused_with_the_remedy(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    pickle = tmp_path / "pytorch_model.bin"
    pickle.write_bytes(b"anything")
    for path in (tmp_path, pickle):
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle.* convert it to safetensors"):
            open_checkpoint(path)


def test_places_without_a_checkpoint_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors nor"):
        open_checkpoint(tmp_path)


def test_weights_without_a_configuration_are_refused(llama):
    (llama / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        open_checkpoint(llama)
    with pytest.raises(CheckpointError, match="name its folder"):
        open_checkpoint(llama / "model.safetensors")


def test_reads_outside_the_model_are_refused(llama):
    with open_checkpoint(llama) as checkpoint:
        with pytest.raises(CheckpointError, match="has no tensor model"):
            checkpoint.read("model.absent")
        with pytest.raises(CheckpointError, match="reaches outside lm_head"):
            checkpoint.read("lm_head.weight", rows=Span(300, 308))
        with pytest.raises(CheckpointError, match="has no columns"):
            checkpoint.read("model.norm.weight", cols=Span(0, 3))


def test_a_size_that_contradicts_the_shape_is_refused(llama):
    path = llama / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["model.norm.weight"]["data_offsets"][1] += 4
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + content[8 + length :])
    with pytest.raises(CheckpointError, match=r"size of tensor model\.norm\.weight contradicts its shape"):
        open_checkpoint(llama)
