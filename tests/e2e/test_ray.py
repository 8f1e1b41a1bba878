"""The command line on real Ray clusters, through real gRPC channels: every process is one that a user would have."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import aclosing
from pathlib import Path

import grpc
import pytest

from cluster.text import load_tokenizer
from phalanx import AsyncClient, Client, DeadlineExceeded, InvalidRequest, Overloaded, PhalanxError
from tests.collector import Span, collector
from tests.e2e.clusters import with_our_python
from tests.e2e.processes import COMMAND, ROOT, START_S, free_port, gone, running
from tests.oracle.references import Reference


def _serve(model: Path, listen: str, *more: str) -> list[str]:
    sizes = ["--dtype", "float32", "--max-model-len", "512", "--kv-cache-tokens", "4096"]
    return ["serve", str(model), "--listen", listen, *sizes, *more]


@pytest.mark.smollm2
def test_the_demo_answers(smollm2: Path, tmp_path: Path) -> None:
    with running(["demo", "--once", "--listen", f"127.0.0.1:{free_port()}"], tmp_path) as demo:
        demo.wait_for("> What is the capital of France?")
        family = demo.family()
        assert demo.process.wait(60) == 0, demo.output
        assert "The capital of France is Paris." in demo.output
        assert family
        assert gone(family)


@pytest.mark.slow  # the short storm kills ranks too
def test_a_stream_survives_the_death_of_a_rank(model: Path, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    options = {"max_tokens": 300, "temperature": 0.8, "seed": 3, "ignore_eos": True}

    async def stream(kill: bool) -> list[int]:
        tokens: list[int] = []
        async with AsyncClient(address, timeout=100) as client:
            async for chunk in client.stream("once upon a time", **options):  # type: ignore[arg-type]
                tokens += chunk.token_ids
                if kill and len(tokens) > 30:
                    kill = False
                    ranks = (await client.cluster()).replicas[0].replica.ranks
                    assert len(ranks) == 4
                    os.kill(ranks[3].pid, signal.SIGKILL)
        return tokens

    with (
        collector() as collected,
        running(_serve(model, address, "--tp", "2", "--pp", "2", "--traces", collected.endpoint), tmp_path) as serve,
    ):
        serve.wait_for("is ready at")
        undisturbed = asyncio.run(stream(False))
        assert asyncio.run(stream(True)) == undisturbed
        assert len(undisturbed) == 300
        status = subprocess.run(
            [*COMMAND, "status", "--json", "--address", address], cwd=ROOT, capture_output=True, check=True
        )
        (replica,) = json.loads(status.stdout)["replicas"]
        assert replica["epoch"] == 2
        assert [event["kind"] for event in json.loads(status.stdout)["events"]][-3:] == [
            "epoch_ended",
            "epoch_started",
            "epoch_ready",
        ]
        assert all(rank["memory_bytes"] > 1e6 and rank["heard_s"] < 20 for rank in replica["ranks"])
        assert re.search(r"epoch 1 ended: rank 3 on \S+: its process died", serve.output), serve.output
        (second,) = (span for span in collected.wait(_has_moved) if _is_second(span))
        assert second.service == "phalanx-replica"
        family = serve.family()
        assert serve.end(signal.SIGTERM) == 0, serve.output
        assert gone(family)


def _has_moved(spans: list[Span]) -> bool:
    return any(span.attributes.get("phalanx.moves") == 1 for span in spans) and any(map(_is_second, spans))


def _is_second(span: Span) -> bool:
    """Whether it is of the rest of the stream, which another epoch generated."""
    of = span.attributes
    return span.name == "decode" and of["phalanx.finish_reason"] == "length" and of["phalanx.generated_tokens"] < 300


def test_what_clients_do_to_a_deployment(model: Path, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        f"model: {model}\ntp: 2\nreplicas: 2\ndtype: float32\nmax_model_len: 512\nkv_cache_tokens: 8192\n"
        f"max_sequences: 64\nlisten: {address}\nlog_format: json\n"
    )
    with running(["serve", str(spec)], tmp_path) as serve:
        serve.wait_for("is ready at")
        asyncio.run(_clients(address, model))
        assert serve.end(signal.SIGTERM) == 0, serve.output
    lines = [json.loads(line) for line in serve.output.splitlines()]
    events = {(line["process"], line["event"]) for line in lines}
    assert {("coordinator", "epoch ready"), ("rank", "weights loaded"), ("gateway", "request finished")} <= events


async def _clients(address: str, model: Path) -> None:
    tokenizer, reference = load_tokenizer(model), Reference(model)
    async with AsyncClient(address, timeout=100) as client, AsyncClient(address, timeout=0.03) as hasty:

        async def idle() -> None:
            async with asyncio.timeout(20):
                while any(
                    r.load.running or r.load.waiting or r.load.free_blocks < r.load.total_blocks
                    for r in (await client.cluster()).replicas
                ):
                    await asyncio.sleep(0.1)

        prompts = [f"client {number} says" for number in range(64)]
        outputs = await asyncio.gather(*(client.generate(p, max_tokens=10, ignore_eos=True) for p in prompts))
        for prompt, output in list(zip(prompts, outputs, strict=True))[::9]:
            assert output.token_ids == reference.greedy(tokenizer.encode(prompt), 10)
        assert all(r.load.generated_tokens > 100 for r in (await client.cluster()).replicas)

        async with aclosing(client.stream("cancelled", max_tokens=480, ignore_eos=True)) as stream:  # type: ignore[type-var]
            await anext(stream)  # type: ignore[arg-type]
        await idle()
        with pytest.raises(DeadlineExceeded):
            await hasty.generate_n("late", 16, max_tokens=480, ignore_eos=True)  # hundreds of milliseconds of work
        await idle()

        with pytest.raises(InvalidRequest, match="sequences of up to 512"):
            await client.generate("x y " * 400)
        with pytest.raises(InvalidRequest, match=r"token_ids\[0\] is 307"):
            await client.generate([307])
        with pytest.raises(InvalidRequest, match="top_p is 2"):
            await client.generate("x", top_p=2.0)
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError, match="UTF-8"):
                await channel.unary_unary("/phalanx.v1.Inference/Tokenize")(b"\x0a\x02\xff\xfe")

        busy = [asyncio.ensure_future(client.generate("busy", max_tokens=300, ignore_eos=True)) for _ in range(64)]
        while (await client.cluster()).active_requests < 64:
            await asyncio.sleep(0.05)
        with pytest.raises(Overloaded, match="takes up to 64") as caught:
            await client.generate("one too many")
        assert caught.value.retry_after_s > 0
        assert len({tuple(output.token_ids) for output in await asyncio.gather(*busy)}) == 1
        await idle()


def test_ctrl_c_lets_a_stream_finish_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    with running(_serve(model, address, "--replicas", "2"), tmp_path) as serve, Client(address, timeout=60) as client:
        serve.wait_for("is ready at")
        stream = client.stream("abc", max_tokens=400, ignore_eos=True)
        tokens = list(next(stream).token_ids)
        family = serve.family()
        os.killpg(serve.process.pid, signal.SIGINT)
        tokens += [token for chunk in stream for token in chunk.token_ids]
        assert len(tokens) == 400
        assert serve.process.wait(60) == 0, serve.output
        assert gone(family)


@pytest.mark.parametrize(
    "after",
    [
        pytest.param("starting a Ray cluster", marks=pytest.mark.slow),
        pytest.param("placing", marks=pytest.mark.slow),
        "loading the weights",
    ],
)
def test_an_interrupted_start_leaves_nothing(model: Path, tmp_path: Path, after: str) -> None:
    with running(_serve(model, "127.0.0.1:0", "--tp", "2"), tmp_path) as serve:
        serve.wait_for(after)
        family = serve.family()
        code = serve.end(signal.SIGINT)
        # It may have become ready at the last moment, and is then stopped as usual.
        assert code == 130 or (code == 0 and "is ready at" in serve.output), serve.output
        assert "Traceback" not in serve.output
        assert gone(family)


def _ray(cluster: dict[str, str], *arguments: str) -> str:
    command = [str(Path(sys.executable).parent / "ray"), *arguments]
    env = {**with_our_python(), **cluster}
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=100, check=True).stdout


def _left_behind(cluster: dict[str, str]) -> list[object]:
    """Actors and placement groups that live."""
    left: list[object] = []
    for kind, state in (("actors", "ALIVE"), ("placement-groups", "CREATED")):
        where = ["--address", cluster["DASHBOARD"], "--format", "json"]
        text = _ray(cluster, "list", kind, "--filter", f"state={state}", *where)
        left += json.loads(text) if text.lstrip().startswith("[") else []
        assert text.lstrip().startswith("[") or "No resource" in text, text
    return left


def test_on_a_cluster_nothing_is_left_and_a_name_is_taken_once(
    model: Path, tmp_path: Path, ray_cluster: dict[str, str]
) -> None:
    address = f"127.0.0.1:{free_port()}"
    command = _serve(model, address, "--tp", "2")
    with running(command, tmp_path, **ray_cluster) as serve:
        serve.wait_for("is ready at")
        with running(_serve(model, "127.0.0.1:0"), tmp_path, **ray_cluster) as second:
            assert second.process.wait(60) == 1
            assert "a deployment named phalanx is running on this cluster already" in second.output
        with Client(address, timeout=60) as client:
            assert len(client.generate("a", max_tokens=9, ignore_eos=True).token_ids) == 9
        assert len(_left_behind(ray_cluster)) == 4  # coordinator, two ranks, placement group
        assert serve.end(signal.SIGTERM) == 0, serve.output
    assert _left_behind(ray_cluster) == []


def test_even_a_killed_server_leaves_nothing_on_the_cluster(
    model: Path, tmp_path: Path, ray_cluster: dict[str, str]
) -> None:
    with running(_serve(model, "127.0.0.1:0", "--name", "killed"), tmp_path, **ray_cluster) as serve:
        serve.wait_for("is ready at")
        serve.end(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while _left_behind(ray_cluster):
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tp", "3", "--pp", "2"], "needs 6 devices, the cluster has 4 (1 node with 4 × CPU): 2 are missing"),
        (["--devices", "cuda"], "no node of the cluster has a free GPU"),
        pytest.param(["--pp", "4"], "pp=4 stages need as many layers", marks=pytest.mark.slow),
        pytest.param(["--kv-cache-tokens", "2000000000"], "does not fit", marks=pytest.mark.slow),
    ],
)
def test_a_plan_that_does_not_fit_fails_at_once(
    model: Path, tmp_path: Path, ray_cluster: dict[str, str], options: list[str], message: str
) -> None:
    with running(_serve(model, "127.0.0.1:0", *options), tmp_path, **ray_cluster) as serve:
        assert serve.process.wait(30) == 1
        assert message in serve.output
        assert "Traceback" not in serve.output
    assert _left_behind(ray_cluster) == []


@pytest.mark.slow
def test_a_cluster_that_wants_a_token_says_how_to_give_it(
    model: Path, tmp_path: Path, ray_cluster: dict[str, str]
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("f" * 64)
    env = {**ray_cluster, "RAY_AUTH_TOKEN_PATH": str(wrong)}
    with running(_serve(model, "127.0.0.1:0"), tmp_path, **env) as serve:
        assert serve.process.wait(60) == 1
        assert "RAY_AUTH_TOKEN_PATH" in serve.output


def test_as_a_job_and_with_a_second_gateway(model: Path, tmp_path: Path, ray_cluster: dict[str, str]) -> None:
    address, second = (f"127.0.0.1:{free_port()}" for _ in range(2))
    submission = f"serve-{free_port()}"
    dashboard = ["--address", ray_cluster["DASHBOARD"]]
    job = ["python", "-m", "cluster.cli", *_serve(model, address, "--pp", "2")]
    _ray(
        ray_cluster,
        "job",
        "submit",
        *dashboard,
        "--working-dir",
        ".",
        "--no-wait",
        "--submission-id",
        submission,
        "--",
        *job,
    )
    deadline = time.monotonic() + START_S
    while "is ready at" not in (log := _ray(ray_cluster, "job", "logs", *dashboard, submission)):
        assert time.monotonic() < deadline, log
        time.sleep(1)
    registry = log.split("--registry ")[1].split()[0]
    secret = subprocess.run(
        [*COMMAND, "secret"], env={**os.environ, **ray_cluster}, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    gateway_command = ["gateway", "--registry", registry, "--listen", second]
    with running(gateway_command, tmp_path, PHALANX_REGISTRY_SECRET=secret) as gateway:
        gateway.wait_for("listening at")
        with Client(address, timeout=60) as one, Client(second, timeout=60) as other:
            expected = one.generate("same", max_tokens=20, ignore_eos=True).token_ids
            while True:
                try:
                    assert other.generate("same", max_tokens=20, ignore_eos=True).token_ids == expected
                    break
                except PhalanxError:  # it has not heard of the replica yet
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
        assert gateway.end(signal.SIGINT) == 0, gateway.output
    _ray(ray_cluster, "job", "stop", *dashboard, submission)
    assert "stopped" in _ray(ray_cluster, "job", "logs", *dashboard, submission)
    assert _left_behind(ray_cluster) == []
