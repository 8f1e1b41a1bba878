"""Batch files: one prompt a line in, one result a line out, and on with the rest after an interruption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.json_format import ParseDict, ParseError

from cluster.gateway.requests import Job
from phalanx.v1 import inference_pb2


class BatchError(ValueError):
    """A batch file that cannot be used. The message names the line and the remedy."""


@dataclass(frozen=True)
class Line:
    """Line `number` (from 0) of the input. `digest` recognises its content in the output."""

    number: int
    digest: str
    job: Job


def read_jobs(
    file: Path, sampling: inference_pb2.Sampling, make_job: Callable[[dict[str, Any], inference_pb2.Sampling], Job]
) -> Iterator[Line]:
    """The jobs of a JSONL file, each line an object with "prompt", "token_ids" or "messages", and whatever of the
    sampling differs from `sampling` ("max_tokens", "temperature", ...).

    Raises:
        BatchError: a line that is no such object, with its number.
    """
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BatchError(f"cannot read {file}: {error}") from error
    for number, text in enumerate(content.split("\n")):
        if not text.strip():
            continue
        try:
            fields = json.loads(text)
            if not isinstance(fields, dict):
                raise BatchError("is not a JSON object")
            prompt = {key: fields.pop(key) for key in ("prompt", "token_ids", "messages") if key in fields}
            if len(prompt) != 1:
                raise BatchError('needs exactly one of "prompt", "token_ids" and "messages"')
            own = inference_pb2.Sampling()
            own.CopyFrom(sampling)
            for name in ("stop", "stop_token_ids"):
                if name in fields:
                    own.ClearField(name)
            ParseDict(fields, own)
            job = make_job(prompt, own)
        except (ValueError, ParseError) as error:
            raise BatchError(f"{file}, line {number + 1}: {error}") from error
        yield Line(number, hashlib.sha256(text.encode()).hexdigest()[:16], job)


def finished_lines(output: Path) -> dict[int, str]:
    """The digests of the lines an earlier run has finished. A last line that was cut short is removed.

    Raises:
        BatchError: the file is no output of a batch.
    """
    if not output.exists():
        return {}
    content = output.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        output.write_bytes(whole)
    try:
        results = [json.loads(text) for text in whole.splitlines()]
        return {result["line"]: result["input_digest"] for result in results}
    except (ValueError, TypeError, KeyError) as error:
        raise BatchError(f"{output} is not the output of a batch: choose another --output, or remove it") from error
