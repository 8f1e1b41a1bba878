import threading
from pathlib import Path

import pytest

from partitioning.plan import Plan
from tests.replicas import HOST, config_for, plan_for
from tests.tiny_gguf import make_tiny_gguf
from tests.tiny_models import make_tiny
from workers.rank import Rank
from workers.security.secret import new_secret


def bytes_read(plan: Plan) -> list[int]:
    """What each rank of the plan reads from the checkpoint when it loads."""
    ranks = [Rank(plan, number, config_for(plan)) for number in range(len(plan.ranks))]
    port, secret = ranks[0].open_store(HOST), new_secret()
    read = [0] * len(ranks)

    def load(number: int) -> None:
        ranks[number].join(HOST, port, secret)
        read[number] = ranks[number].load()

    threads = [threading.Thread(target=load, args=(number,), daemon=True) for number in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for rank in ranks:
        rank.close()
    return read


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (4, 1), (2, 2)])
def test_each_rank_reads_exactly_the_bytes_that_its_plan_gives_it(tmp_path: Path, family: str, tp: int, pp: int):
    plan = plan_for(make_tiny(tmp_path, family), tp, pp)
    assert bytes_read(plan) == [rank.weight_bytes for rank in plan.ranks]


def test_two_ranks_read_hardly_more_of_a_quantised_file_than_one(tmp_path: Path):
    folder = make_tiny(tmp_path / "hf", "llama", hidden_size=288, intermediate_size=224)
    model = make_tiny_gguf(tmp_path / "m.gguf", folder, kind="Q4_1")
    (alone,) = bytes_read(plan_for(model))
    pair = bytes_read(plan_for(model, tp=2))
    norms = 7 * 288 * 4
    straddling = 3 * 288 * 20  # One block of every row of down_proj, where the cut falls inside it.
    kv_head = 3 * 2 * 16 * 288 // 32 * 20  # Keys and values of the middle one, which both ranks hold.
    assert alone + norms + kv_head <= sum(pair) <= alone + norms + kv_head + straddling
    assert max(pair) < 0.7 * alone
