"""Every field of a request is checked, and the message names it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cluster.gateway.requests import InvalidRequest, Limits, check_job, check_messages, check_request_id
from phalanx.v1 import inference_pb2

_LIMITS = Limits(vocab_size=100, max_model_len=32)


def _check(prompt: tuple[int, ...] = (1, 2), n: int = 1, priority: int = 0, **sampling: Any) -> Any:
    return check_job(prompt, inference_pb2.Sampling(**sampling), n, priority, _LIMITS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": ()}, "the prompt is empty"),
        ({"prompt": (5, 100)}, r"token_ids\[1\] is 100, and the model's token ids are below 100"),
        ({"prompt": (1,) * 32}, "has 32 tokens.*sequences of up to 32"),
        ({"n": 17}, "n is 17, and may be up to 16"),
        ({"priority": -101}, "priority is -101"),
        ({"temperature": -0.1}, "sampling.temperature is -0.1, and may be from 0 to 10"),
        ({"temperature": math.nan}, "sampling.temperature is nan"),
        ({"temperature": math.inf}, "sampling.temperature is inf"),
        ({"top_p": 0.0}, "sampling.top_p is 0, and may be above 0, up to 1"),
        ({"top_p": 1.5}, "sampling.top_p"),
        ({"min_p": 1.0}, "sampling.min_p"),
        ({"presence_penalty": 2.5}, "sampling.presence_penalty"),
        ({"frequency_penalty": -3.0}, "sampling.frequency_penalty"),
        ({"repetition_penalty": 0.0}, "sampling.repetition_penalty"),
        ({"logprobs": 21}, "sampling.logprobs is 21, and may be up to 20"),
        ({"stop": ["x"] * 17}, "sampling.stop has 17 strings"),
        ({"stop": ["x", ""]}, r"sampling.stop\[1\] has 0 bytes"),
        ({"stop": ["é" * 129]}, r"sampling.stop\[0\] has 258 bytes"),
        ({"stop_token_ids": [0] * 65}, "sampling.stop_token_ids has 65 ids"),
        ({"stop_token_ids": [7, 100]}, r"sampling.stop_token_ids\[1\] is 100"),
    ],
)
def test_a_wrong_field_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        _check(**arguments)


def test_what_is_left_out_is_filled_in() -> None:
    job = _check()
    sampling = job.samplings[0]
    assert sampling.max_tokens == 32  # the default of 128 is more than a sequence may have
    assert (sampling.temperature, sampling.top_p, sampling.min_p, sampling.repetition_penalty) == (0.0, 1.0, 0.0, 1.0)
    assert not sampling.HasField("logprobs")
    assert _check(n=0).samplings[0].max_tokens == 32


def test_outputs_have_seeds_of_their_own_that_the_request_decides() -> None:
    first, second = _check(n=3, seed=7), _check(n=3, seed=7)
    seeds = [sampling.seed for sampling in first.samplings]
    assert len(set(seeds)) == 3
    assert seeds == [sampling.seed for sampling in second.samplings]
    assert seeds != [sampling.seed for sampling in _check(n=3, seed=8).samplings]
    assert _check().samplings[0].seed != _check().samplings[0].seed


def test_stop_strings_stay_with_the_gateway() -> None:
    job = _check(stop=["a", "b"])
    assert job.stop == ("a", "b")
    assert not job.samplings[0].stop


def test_conversations_and_ids_of_requests() -> None:
    with pytest.raises(InvalidRequest, match="messages is empty"):
        check_messages([])
    with pytest.raises(InvalidRequest, match=r"messages\[0\].role is empty"):
        check_messages([inference_pb2.Message(content="x")])
    with pytest.raises(InvalidRequest, match="request_id has 129 characters"):
        check_request_id("x" * 129)
