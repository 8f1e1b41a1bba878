"""`phalanx generate`: the engine for scripts and batch files, without gateway or server."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.commands import DRAFT_LAYERS_HELP, DRAFT_MODEL_HELP, KV_CACHE_HELP, SPECULATION_HELP, WEIGHTS_HELP
from partitioning.model_spec import CacheType, DType, WeightType
from workers.request import SpeculationType

if TYPE_CHECKING:
    from cluster.gateway.requests import Job, Limits
    from cluster.text import Tokenizer
    from phalanx.v1 import inference_pb2


def generate(
    model: Annotated[str, typer.Argument(help="A Hugging Face folder, a GGUF file or a known name.")],
    prompt: Annotated[str | None, typer.Option(help="Text to continue.")] = None,
    token_ids: Annotated[str | None, typer.Option(help="Token ids to continue, such as 1,2,3.")] = None,
    input: Annotated[
        Path | None,
        typer.Option(
            "--input", help='A JSONL file: {"prompt": …}, {"token_ids": […]} or {"messages": […]}, and sampling fields.'
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="With --input: the JSONL file to write; what it has already is not done again.")
    ] = None,
    tp: Annotated[int, typer.Option(min=1, help="Ranks that share each layer; any number.")] = 1,
    pp: Annotated[int, typer.Option(min=1, help="Stages the layers are divided into.")] = 1,
    dtype: Annotated[DType | None, typer.Option(help="Float type. Default: the checkpoint's.")] = None,
    weights: Annotated[WeightType, typer.Option(help=WEIGHTS_HELP)] = "auto",
    kv_cache: Annotated[CacheType, typer.Option(help=KV_CACHE_HELP)] = "auto",
    max_model_len: Annotated[int | None, typer.Option(help="Longest sequence in tokens.")] = None,
    kv_cache_tokens: Annotated[int | None, typer.Option(help="Size of the KV cache.")] = None,
    speculation: Annotated[SpeculationType, typer.Option(help=SPECULATION_HELP)] = "ngram",
    draft_model: Annotated[str | None, typer.Option(help=DRAFT_MODEL_HELP)] = None,
    draft_layers: Annotated[int | None, typer.Option(min=1, help=DRAFT_LAYERS_HELP)] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; higher is more random.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from the k likeliest tokens; 0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens of this probability together.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Draw from tokens at least this likely, relative to the first.")] = 0.0,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same tokens.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the output; may be given again.")] = None,
    stop_token_ids: Annotated[str | None, typer.Option(help="Tokens that end the output, such as 1,2.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on past the end-of-sequence token.")] = False,
    presence_penalty: Annotated[float, typer.Option(help="Lowers tokens generated before.")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(help="Lowers tokens for each time they came.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Divides the logits of tokens that came.")] = 1.0,
    logprobs: Annotated[
        int | None, typer.Option(min=0, help="Report log-probabilities, and of so many others.")
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="Outputs of the prompt.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of streaming text.")] = False,
) -> None:
    """Generate from MODEL on this machine, without a server.

    phalanx generate smollm2 --prompt "The capital of France is" --tp 2
    """
    if sum(given is not None for given in (prompt, token_ids, input)) != 1:
        raise typer.BadParameter("give exactly one of --prompt, --token-ids and --input")
    if (input is None) != (output is None):
        raise typer.BadParameter("--input and --output go together")

    # Heavy: these import torch.
    from cluster.drafting import draft_of, resolve_draft
    from cluster.gateway.requests import Limits
    from cluster.models import resolve_model
    from cluster.offline import run_jobs
    from cluster.text import TokenizerMissing, load_tokenizer
    from partitioning.checkpoint import open_checkpoint
    from partitioning.planner import make_plan
    from partitioning.settings import plan_settings
    from partitioning.topology import local_topology
    from phalanx.v1 import inference_pb2
    from workers.local import local_replica
    from workers.request import EngineConfig
    from workers.speculation.options import check_options

    sampling = inference_pb2.Sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stop=stop,
        stop_token_ids=_ids("--stop-token-ids", stop_token_ids),
        ignore_eos=ignore_eos,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        repetition_penalty=repetition_penalty,
        logprobs=logprobs,
    )
    check_options(speculation, draft_model, draft_layers)
    path = resolve_model(model)
    with open_checkpoint(path) as checkpoint:
        spec = checkpoint.spec
    draft = None if draft_model is None else str(resolve_draft(draft_model, path))
    settings = plan_settings(
        spec,
        dtype=dtype,
        weights=weights,
        kv_cache=kv_cache,
        max_model_len=max_model_len,
        kv_cache_tokens=kv_cache_tokens,
        draft=draft_of(spec, draft, draft_layers),
    )
    plan = make_plan(spec, str(path.resolve()), local_topology(tp * pp), settings, tp=tp, pp=pp)
    try:
        tokenizer = load_tokenizer(path)
    except TokenizerMissing:
        tokenizer = None
    limits = Limits(spec.vocab_size, settings.max_model_len)
    # Ranks may be done with loading at different times.
    config = EngineConfig(
        max_model_len=limits.max_model_len,
        eos_token_ids=spec.eos_token_ids,
        collective_timeout_s=120.0,
        speculation=speculation,
        draft_model=draft or "",
        draft_layers=draft_layers or 0,
    )

    if input is not None and output is not None:
        _batch(input, output, sampling, plan, config, tokenizer, limits)
        return
    given = {"prompt": prompt} if prompt is not None else {"token_ids": _ids("--token-ids", token_ids)}
    job = _job(given, sampling, n, tokenizer, limits)
    with local_replica(plan, config) as replica:
        streams = tokenizer is not None and n == 1 and not json
        for result in run_jobs(replica, [job], tokenizer, _write if streams else _ignore):
            if json:
                typer.echo(jsonlib.dumps(result.as_json()))
            elif streams:
                typer.echo()
            else:
                for one in result.outputs:
                    typer.echo(one["token_ids"] if tokenizer is None else one["text"])


def _batch(
    source: Path,
    target: Path,
    sampling: inference_pb2.Sampling,
    plan: Any,
    config: Any,
    tokenizer: Tokenizer | None,
    limits: Limits,
) -> None:
    from tqdm import tqdm

    from cluster.batch import BatchError, finished_lines, read_jobs
    from cluster.offline import run_jobs
    from workers.local import local_replica

    lines = list(read_jobs(source, sampling, lambda given, own: _job(given, own, 1, tokenizer, limits)))
    finished = finished_lines(target)
    for line in lines:
        if finished.get(line.number, line.digest) != line.digest:
            raise BatchError(
                f"{target} has a result for another line {line.number + 1} of {source}: it belongs to another input. "
                "Choose another --output"
            )
    left = [line for line in lines if line.number not in finished]
    if not left:
        typer.echo(f"{target} has all {len(lines)} results", err=True)
        return
    with (
        tqdm(total=len(lines), initial=len(lines) - len(left), unit="prompt") as bar,
        target.open("a", encoding="utf-8") as file,
        local_replica(plan, config) as replica,
    ):
        for result in run_jobs(replica, [line.job for line in left], tokenizer):
            line = left[result.job]
            row = {"line": line.number, "input_digest": line.digest, **result.as_json()}
            file.write(jsonlib.dumps(row) + "\n")
            file.flush()
            bar.update()


def _job(
    given: dict[str, Any], sampling: inference_pb2.Sampling, n: int, tokenizer: Tokenizer | None, limits: Limits
) -> Job:
    from google.protobuf.json_format import ParseDict, ParseError

    from cluster.gateway.requests import InvalidRequest, check_job, check_messages
    from phalanx.v1 import inference_pb2

    if "token_ids" in given:
        ids = given["token_ids"]
        if not isinstance(ids, list) or not all(type(token) is int and token >= 0 for token in ids):
            raise InvalidRequest("token_ids has to be a list of whole numbers from 0")
        return check_job(ids, sampling, n, 0, limits)
    if tokenizer is None:
        raise InvalidRequest("the model came without a tokenizer: use token ids")
    if "messages" in given:
        try:
            chat = ParseDict({"messages": given["messages"]}, inference_pb2.ChatRequest())
        except ParseError as error:
            raise InvalidRequest('messages has to be a list of objects with "role" and "content", both text') from error
        return check_job(tokenizer.chat_prompt(check_messages(chat.messages)), sampling, n, 0, limits)
    if not isinstance(given["prompt"], str):
        raise InvalidRequest("prompt has to be text")
    return check_job(tokenizer.encode(given["prompt"]), sampling, n, 0, limits)


def _ids(option: str, text: str | None) -> list[int]:
    try:
        ids = [] if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{option} {text} must be whole numbers with commas, such as 1,2,3") from None
    if any(not 0 <= token < 2**32 for token in ids):
        raise typer.BadParameter(f"{option} {text} must be from 0 up")
    return ids


def _write(text: str) -> None:
    typer.echo(text, nl=False)


def _ignore(text: str) -> None:
    """Text that is not streamed."""
