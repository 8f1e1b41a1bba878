"""The table of techniques: its questions, its intervals, and rows that really run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.techniques import questions
from benchmarks.techniques.__main__ import FILE, main
from benchmarks.techniques.choice import smallest_within
from benchmarks.techniques.energy import Meters
from benchmarks.techniques.intervals import mean_with_error, paired_difference, wilson
from benchmarks.techniques.quality import Quality
from benchmarks.techniques.report import report
from benchmarks.techniques.results import Results, Round
from benchmarks.techniques.rows import BASELINE, RECIPES, ROWS, Budget, Row
from benchmarks.techniques.speed import speed_of
from partitioning.checkpoint import open_checkpoint
from partitioning.compress.recipe import applied
from partitioning.compress.structure import smaller
from tests.tiny_models import make_tiny
from tests.tiny_tokenizer import add_tiny_tokenizer


def test_the_questions_have_one_right_answer_of_four_in_any_place() -> None:
    asked = questions.load()
    assert len(asked) == questions.COUNT >= 1000
    assert len({(question.definition, question.choices) for question in asked}) == len(asked)
    for question in asked:
        assert len(set(question.choices)) == 4
        assert not set(question.choices) & set(question.definition.split())
    places = Counter(question.answer for question in asked)
    assert all(abs(places[place] / len(asked) - 0.25) < 0.05 for place in range(4))


def wordnet(folder: Path, words: int) -> Path:
    """Its files, with `words` nouns of one subject, of which every third is a kind of the one before it."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    lines, counts = ["  1 a licence"], []
    for number in range(words):
        word = "q" + "".join(letters[number // 26**place % 26] for place in range(3))
        pointer = f"001 @ {number - 1:08} n 0000" if number % 3 == 2 else "000"
        lines.append(f"{number:08} 05 n 01 {word} 0 {pointer} | something that is called number {number}; {word}  ")
        counts.append(f"{word}%1:05:00:: 1 {number % 7}")
    (folder / "data.noun").write_text("\n".join(lines))
    (folder / "cntlist.rev").write_text("\n".join(counts))
    for part in ("verb", "adj"):
        (folder / f"data.{part}").write_text("")
    return folder


def test_the_same_wordnet_makes_the_same_questions(tmp_path: Path) -> None:
    source = wordnet(tmp_path, 1500)
    made = questions.make(source, 1000)
    assert len(made) == 1000
    assert made == questions.make(source, 1000)
    numbers = {word: number for number, word in enumerate(_words(source))}
    for question in made:
        right = int(question.definition.split()[-1])
        assert numbers[question.choices[question.answer]] == right
        others = {numbers[word] for word in question.choices} - {right}
        relatives = {right - 1} if right % 3 == 2 else {right + 1} if right % 3 == 1 else set()
        assert not others & relatives
    questions.write(made, tmp_path / "made.json")
    assert questions.load(tmp_path / "made.json") == made


def _words(folder: Path) -> list[str]:
    return [line.split()[4] for line in (folder / "data.noun").read_text().splitlines()[1:]]


def test_intervals_are_those_of_the_literature() -> None:
    # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3.
    for successes, trials, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson(successes, trials) == pytest.approx((low, high), abs=1e-4)
    own, base = [True] * 60 + [False] * 40, [True] * 50 + [False] * 10 + [True] * 4 + [False] * 36
    assert paired_difference(own, base) == pytest.approx((0.06, 0.0724), abs=1e-4)
    assert paired_difference(own, own) == (0.0, 0.0)
    assert mean_with_error([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1.1316), abs=1e-4)


def test_joules_are_what_the_counters_say_and_none_where_there_are_none(tmp_path: Path) -> None:
    assert Meters(tmp_path).joules() is None
    counters = {"intel-rapl:0": ("package-0", 990), "intel-rapl:0:0": ("core", 5), "intel-rapl:0:2": ("dram", 10)}
    for zone, (name, energy) in counters.items():
        (tmp_path / zone).mkdir()
        for file, value in (("name", name), ("energy_uj", energy * 10**6), ("max_energy_range_uj", 1000 * 10**6)):
            (tmp_path / zone / file).write_text(f"{value}\n")
    meters = Meters(tmp_path)
    meters.start()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("5000000\n")  # began anew after 1,000 joules
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("900000000\n")  # a part of the package
    (tmp_path / "intel-rapl:0:2" / "energy_uj").write_text("12000000\n")
    assert meters.joules() == pytest.approx(15 + 2)


def quality(change: float, right: int) -> Quality:
    return Quality(30 * (1 + change), change, 0.0, 0.0, 1.0, [True] * right + [False] * (1000 - right))


def test_the_budget_takes_the_smallest_weights_that_keep_it_and_the_cache_with_them() -> None:
    rows = [Row("bf16"), Row("int8", weights="int8"), Row("int4", weights="int4"), Row("cache", kv_cache="int8")]
    sizes = {"dense": 3, "int8": 2, "int4": 1}
    found = {("dense", "auto"): quality(0.0, 700), ("int8", "auto"): quality(0.004, 699)}
    found |= {("int4", "auto"): quality(0.3, 720), ("dense", "int8"): quality(0.001, 700)}

    def chosen(both: Quality) -> Row | None:
        kinds = found | {("int8", "int8"): both}
        return smallest_within(
            rows,
            Budget(points=0.1, perplexity=0.01),
            quality(0.0, 700),
            lambda row: kinds[row.weights, row.kv_cache],
            lambda row: sizes[row.weights],
        )

    together = chosen(quality(0.005, 699))
    assert together is not None
    assert (together.weights, together.kv_cache) == ("int8", "int8")
    apart = chosen(quality(0.005, 698))  # two answers fewer of 1,000 are more than 0.1 points
    assert apart is not None
    assert (apart.weights, apart.kv_cache) == ("int8", "auto")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny(tmp_path_factory.mktemp("tiny"), "llama", max_position_embeddings=2048)
    add_tiny_tokenizer(folder)
    return folder


def test_rows_run_and_end_in_tables_a_file_and_a_picture(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(str(tiny), tmp_path, only=["float32"], rounds=0, threads=1, count=24)
    results = Results.load(tmp_path / FILE, str(tiny.resolve()), 24)
    rows = [row for row in ROWS if row.name in (BASELINE, "float32")]
    peer, own = (results.qualities[row.way] for row in rows)
    assert own.perplexity == pytest.approx(peer.perplexity, rel=1e-4)
    assert own.right == peer.right
    assert own.divergence < 1e-4
    assert own.same_token > 0.99
    assert results.continued[rows[0].key] == results.continued[rows[1].key]
    results.rounds.append(Round({"read_gb_s": 1.0, "bf16_gflop_s": 1.0}))
    for row in rows:
        results.rounds[0].speeds[row.key] = speed_of(row, tiny, 1)
        results.rounds[0].others[row.key] = 0.0
    results.save(tmp_path / FILE)
    assert Results.load(tmp_path / FILE, str(tiny.resolve()), 24) == results
    with pytest.raises(ValueError, match="name another --out"):
        Results.load(tmp_path / FILE, "another", 24)
    report(results, rows, tmp_path, price_per_hour=3.6)
    text = (tmp_path / "techniques.md").read_text()
    batch = results.median(rows[1], "batch")
    assert batch is not None
    assert f"{1000 / batch:.3f} |" in text  # 3.6 an hour are 1,000 for a million seconds
    assert "float32" in capsys.readouterr().out
    picture = (tmp_path / "techniques.svg").read_text()
    assert picture.count("<circle") == 2


def test_every_row_is_of_a_checkpoint_that_can_be_made(tiny: Path) -> None:
    assert len({row.key for row in ROWS}) == len({row.name for row in ROWS}) == len(ROWS)
    assert {row.checkpoint for row in ROWS} - {"model"} == set(RECIPES)
    with open_checkpoint(tiny) as checkpoint:
        spec = checkpoint.spec
    recipe = RECIPES["fewer-layers"](spec)
    assert applied(recipe, spec, smaller(spec, recipe.structure)).shape.num_layers == 2
