"""The calibration text: what the model itself writes about many subjects."""

from __future__ import annotations

from pathlib import Path

from cluster.text import load_tokenizer
from partitioning.checkpoint import open_checkpoint
from partitioning.planner import make_plan
from partitioning.settings import plan_settings
from partitioning.topology import local_topology
from workers.local import local_replica
from workers.request import EngineConfig, Request, SamplingParams

_LENGTH = 1024
_SUBJECTS = (
    "rivers", "the Roman Empire", "how vaccines work", "baking bread", "the planets", "jazz", "honey bees", "volcanoes",
    "learning a language", "the printing press", "football", "deserts", "how computers add numbers", "gardening",
    "a journey by train", "the human heart", "trade in the Middle Ages", "whales", "the price of goods", "photography",
    "a family dinner", "electricity", "the law of contracts", "mountaineering", "how birds fly", "alphabets",
    "city buses", "a day at the hospital", "probability", "old houses", "wine", "the ocean floor", "raising children",
    "the Cold War", "cooking with spices", "how plants eat light", "chess", "a quarrel between friends", "steel",
    "the Amazon forest", "saving money", "the theatre", "earthquakes", "horses", "sorting algorithms", "sleep",
    "the French Revolution", "repairing a bicycle",
)  # fmt: skip


def calibration_text(model: Path, tokens: int = 192) -> str:
    """One answer for each subject, of `tokens` tokens, drawn at temperature 0.8 with the subject's number as seed."""
    tokenizer = load_tokenizer(model)
    with open_checkpoint(model) as checkpoint:
        spec = checkpoint.spec
    settings = plan_settings(spec, dtype="bfloat16", max_model_len=_LENGTH, kv_cache_tokens=len(_SUBJECTS) * _LENGTH)
    # One thread, so that another number of cores draws the same text.
    host = local_topology(1, cores=1)
    plan = make_plan(spec, str(model), host, settings, tp=1, pp=1)
    requests = []
    for number, subject in enumerate(_SUBJECTS):
        asked = f"Write a long and detailed text about {subject}."
        prompt = tokenizer.encode(asked)
        if tokenizer.has_chat_template:
            prompt = tokenizer.chat_prompt([{"role": "user", "content": asked}])
        sampling = SamplingParams(max_tokens=tokens, temperature=0.8, seed=number, ignore_eos=True)
        requests.append(Request(number, prompt, len(prompt), sampling))
    answers: list[list[int]] = [[] for _ in requests]
    with local_replica(plan, EngineConfig(max_model_len=_LENGTH)) as replica:
        for output in replica.generate(requests):
            answers[output.key] += output.token_ids
    return "\n\n".join(tokenizer.decode(answer) for answer in answers)
