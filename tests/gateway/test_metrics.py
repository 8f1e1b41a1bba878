"""What a deployment that streams, refuses and loses tells Prometheus of it."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from cluster.gateway.server import Gateway, GatewayConfig, GatewayError
from cluster.metrics.tenants import TenantLabels
from phalanx import AsyncClient, InvalidRequest, Overloaded
from tests.replicas import HOST, config_for, plan_for
from tests.scraped import Scraped, scrape
from tests.served import SECRET, Served, served
from workers.objectives import Objectives

_ANYBODY = {"tenant": "anonymous"}


async def test_a_gateway_counts_what_its_clients_get(model: Path) -> None:
    plan = plan_for(model)
    config = config_for(plan, objectives=Objectives(ttft_s=60.0, tpot_s=1e-9))
    options = {"max_sequences": 2, "metrics_address": f"{HOST}:0"}
    async with (
        served(plan, config, replicas=2, step_s=0.02, **options) as cluster,
        AsyncClient(cluster.address, timeout=60) as client,
    ):
        before = await _look(cluster)
        assert before.value("phalanx_gateway_replicas") == 2
        assert before.value("phalanx_requests_refused_total", reason="gateway_full") == 0

        stream = client.stream(list(range(3, 43)), max_tokens=30, ignore_eos=True)
        tokens = list((await anext(stream)).token_ids)
        during = await _look(cluster)
        assert during.value("phalanx_streams") == 1
        assert during.value("phalanx_request_ttft_seconds_count", **_ANYBODY) == 1
        with pytest.raises(Overloaded):
            await client.generate_n([5], 2, max_tokens=2)
        with pytest.raises(InvalidRequest):
            await client.generate([1 << 20], max_tokens=2)
        await cluster.lose(next(link.replica.id for link in cluster.gateway._fleet.usable if link.burden.sequences))
        tokens += [token async for chunk in stream for token in chunk.token_ids]
        assert len(tokens) == 30

        left = client.stream([7, 8], max_tokens=200, ignore_eos=True)
        await anext(left)
        await left.aclose()
        async with asyncio.timeout(30):
            while (await _look(cluster)).value("phalanx_streams"):
                await asyncio.sleep(0.05)
        # A look is taken series by series while requests go on: what was counted before the gauge fell is in the next.
        after = await _look(cluster)

    assert after.value("phalanx_gateway_replicas") == 1
    assert after.value("phalanx_streams_resumed_total", cause="replica") == 1
    assert after.value("phalanx_requests_refused_total", reason="gateway_full") == 1
    assert after.value("phalanx_requests_refused_total", reason="invalid") == 1
    assert after.sum("phalanx_requests_refused_total") == 2
    assert after.value("phalanx_prompt_tokens_total", **_ANYBODY) == 42
    assert 30 < after.value("phalanx_completion_tokens_total", **_ANYBODY) < 230
    assert after.value("phalanx_request_ttft_seconds_count", **_ANYBODY) == 2
    assert after.value("phalanx_request_tpot_seconds_count", **_ANYBODY) == 1
    assert after.value("phalanx_request_duration_seconds_count", finish_reason="length", **_ANYBODY) == 1
    assert after.value("phalanx_request_duration_seconds_count", finish_reason="cancelled", **_ANYBODY) == 1
    assert after.value("phalanx_objective_requests_total", objective="ttft", kept="true") == 1
    assert after.value("phalanx_objective_requests_total", objective="tpot", kept="false") == 1
    assert after.sum("phalanx_objective_requests_total") == 2


def test_tenants_beyond_the_most_share_a_label() -> None:
    labels = TenantLabels(2)
    assert [labels.of(tenant) for tenant in ("a", "", "b", "a", "c")] == ["a", "anonymous", "other", "a", "other"]


async def test_a_taken_port_for_metrics_is_named() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        address = f"{HOST}:{taken.getsockname()[1]}"
        gateway = Gateway(GatewayConfig(f"{HOST}:0", f"{HOST}:1", SECRET, metrics_address=address))
        try:
            with pytest.raises(GatewayError, match=f"{address}.*choose another with --metrics-address"):
                await gateway.start()
        finally:
            await gateway.stop()


async def _look(cluster: Served) -> Scraped:
    return await scrape(f"{HOST}:{cluster.gateway.metrics_port}")
