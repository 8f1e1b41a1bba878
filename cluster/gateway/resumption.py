"""Outputs that a client began at another gateway: checked, and brought to exactly where the client has them.

The client says which tokens and how many bytes of text it received. The detokenizer is fed those tokens again, so that
it holds back what it held back there (half a character, what may become a stop string) and what it gives out next
continues at the right byte. docs/protocol.md has the client's side.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from hashlib import blake2b

from google.protobuf.message import DecodeError

from cluster.gateway.model import ServedModel
from cluster.gateway.requests import MAX_OUTPUTS, Begun, InvalidRequest, Job, check_ids
from cluster.text import Detokenizer
from phalanx.v1 import inference_pb2

MAX_TOKEN_BYTES = 256


def resume_token(job: Job, index: int, cached_tokens: int, ttft: float) -> bytes:
    """What another gateway needs to go on with output `index` of a job."""
    return inference_pb2.ResumeToken(
        seed=job.samplings[index].seed,
        prompt_digest=_digest(job.prompt),
        cached_tokens=cached_tokens,
        ttft_seconds=ttft,
        chat_time=job.chat_time,
    ).SerializeToString()


def chat_time(resume: inference_pb2.Resume) -> datetime:
    """The time that the chat template is to be told: the one it was told first, or now."""
    if len(resume.outputs) > MAX_OUTPUTS:
        raise InvalidRequest(f"resume.outputs has {len(resume.outputs)} entries, and may have up to {MAX_OUTPUTS}")
    for place, received in enumerate(resume.outputs):
        if not received.finished:
            token = _token(f"resume.outputs[{place}]", received)
            try:
                return datetime.fromisoformat(token.chat_time)
            except ValueError:
                raise _foreign(f"resume.outputs[{place}]") from None
    return datetime.now().replace(microsecond=0)


def taken_up(job: Job, resume: inference_pb2.Resume, model: ServedModel) -> Job:
    """`job`, to go on behind what was received of it. Takes milliseconds for each thousand tokens received.

    Raises:
        InvalidRequest: naming the first field that cannot be true of this job.
    """
    if not 0 <= resume.elapsed_seconds < math.inf:
        raise InvalidRequest(f"resume.elapsed_seconds is {resume.elapsed_seconds:g}, and may be 0 or more")
    samplings, begun, places = list(job.samplings), [], dict[int, int]()
    for place, received in enumerate(resume.outputs):
        field, index = f"resume.outputs[{place}]", received.index
        if index >= len(samplings):
            raise InvalidRequest(f"{field}.index is {index}, and the request has outputs 0 to {len(samplings) - 1}")
        if index in places:
            raise InvalidRequest(f"{field}.index is {index}, as in resume.outputs[{places[index]}]: name each once")
        places[index] = place
        if received.finished:
            continue
        token = _token(field, received)
        if token.prompt_digest != _digest(job.prompt):
            raise _foreign(field)
        samplings[index] = inference_pb2.Sampling()
        samplings[index].CopyFrom(job.samplings[index])
        samplings[index].seed = token.seed
        begun.append(_replayed(field, received, token, job, model))
    return replace(
        job,
        samplings=tuple(samplings),
        begun=tuple(begun),
        finished=frozenset(received.index for received in resume.outputs if received.finished),
    )


def _replayed(
    field: str,
    received: inference_pb2.ReceivedOutput,
    token: inference_pb2.ResumeToken,
    job: Job,
    model: ServedModel,
) -> Begun:
    sampling, tokens = job.samplings[received.index], received.token_ids[: model.max_model_len + 1]
    most = min(sampling.max_tokens, model.max_model_len - len(job.prompt))
    if len(tokens) > most:
        raise InvalidRequest(f"{field}.token_ids has {len(received.token_ids)} ids, and this output ends after {most}")
    check_ids(tokens, model.limits, f"{field}.token_ids")
    ends = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else model.eos_token_ids)}
    if any(token in ends for token in tokens[:-1]):
        raise InvalidRequest(f"{field}.token_ids goes on behind a token that ends the output")
    stopped = bool(tokens) and tokens[-1] in ends
    detokenizer = None if model.tokenizer is None else Detokenizer(model.tokenizer, job.stop)
    text = ""
    if detokenizer is not None:
        text = detokenizer.push(tokens[:-1] if stopped else tokens)
        if (end := detokenizer.stop_token_count) is not None:
            if end < len(tokens):
                raise InvalidRequest(f"{field}.token_ids goes on behind a stop string, which {end} tokens complete")
            stopped = True
    reason = inference_pb2.FINISH_REASON_UNSPECIFIED
    if stopped:
        reason = inference_pb2.FINISH_REASON_STOP
    elif len(tokens) == most:
        reason = inference_pb2.FINISH_REASON_LENGTH
    if detokenizer is not None and reason and not detokenizer.stopped:
        text += detokenizer.finish()
    return Begun(
        index=received.index,
        tokens=tuple(tokens),
        detokenizer=detokenizer,
        unsent=_behind(field, text, received.text_bytes),
        finish_reason=reason,
        cached_tokens=token.cached_tokens,
        ttft=token.ttft_seconds,
    )


def _behind(field: str, text: str, received: int) -> str:
    """What is left of `text` behind the bytes received."""
    data = text.encode()
    if received > len(data):
        raise InvalidRequest(
            f"{field}.text_bytes is {received}, and the tokens received have {len(data)} bytes of text"
        )
    try:
        return data[received:].decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"{field}.text_bytes is {received}, which is within a character") from None


def _token(field: str, received: inference_pb2.ReceivedOutput) -> inference_pb2.ResumeToken:
    if 0 < len(received.resume_token) <= MAX_TOKEN_BYTES:
        try:
            return inference_pb2.ResumeToken.FromString(received.resume_token)
        except DecodeError:
            pass
    raise InvalidRequest(
        f"{field}.resume_token is none ({len(received.resume_token)} bytes): send the last that came for this output"
    )


def _foreign(field: str) -> InvalidRequest:
    return InvalidRequest(
        f"{field}.resume_token belongs to another prompt: all but resume has to be as it was when the token came, and "
        "the model the same"
    )


def _digest(prompt: Sequence[int]) -> int:
    return int.from_bytes(blake2b(struct.pack(f"<{len(prompt)}I", *prompt), digest_size=8).digest(), "little")
