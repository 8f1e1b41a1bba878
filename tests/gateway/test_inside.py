"""The ports inside a deployment: what registry and replicas ask for, and what they are told when it changes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import grpc
import psutil
import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.gateway.config import GatewayConfig
from cluster.gateway.server import Gateway
from cluster.lifecycle.registry import Registry
from cluster.security import SecurityError
from cluster.security.registry_secret import given_secrets
from cluster.spec import DeploymentSpec, SpecError
from phalanx import AsyncClient
from phalanx.v1 import registry_pb2, registry_pb2_grpc, replica_pb2, replica_pb2_grpc
from tests.authority import Authority
from tests.replicas import HOST, config_for, plan_for
from tests.served import SECRET, served
from workers.security.peers import PeerTls
from workers.security.secret import derived, new_secret, showing


async def _refusal(call: grpc.aio.Call) -> str:
    """Why a call is refused that would stream for ever."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.read()  # type: ignore[attr-defined]
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    return refused.value.details() or ""


async def test_the_registry_tells_strangers_nothing_and_does_nothing_for_them(model: Path) -> None:
    plan = plan_for(model)
    asked: list[int] = []

    async def scale(replicas: int) -> int:
        asked.append(replicas)
        return replicas

    async with (
        served(plan, config_for(plan)) as cluster,
        grpc.aio.insecure_channel(cluster.registry_address) as channel,
    ):
        cluster.registry._scale = scale
        stub = registry_pb2_grpc.RegistryStub(channel)
        for metadata, message in (
            ((), "no secret came with the call"),
            (showing(new_secret()), "phalanx secret test"),
            (showing(SECRET) + showing(SECRET), "not that of this deployment"),
        ):
            assert message in await _refusal(stub.Watch(registry_pb2.WatchRequest(), metadata=metadata))
            with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
                await stub.Scale(registry_pb2.ScaleRequest(replicas=3), metadata=metadata)
        assert asked == []
        known = showing(SECRET)
        assert (await stub.Watch(registry_pb2.WatchRequest(), metadata=known).read()).deployment == "test"
        assert (await stub.Scale(registry_pb2.ScaleRequest(replicas=3), metadata=known)).ready == 3


async def test_a_replica_serves_those_alone_who_learnt_its_secret_from_the_registry(model: Path) -> None:
    plan = plan_for(model)
    async with served(plan, config_for(plan), replicas=2) as cluster:
        async with grpc.aio.insecure_channel(cluster.replicas[0].address) as channel:
            attach = replica_pb2_grpc.ReplicaLinkStub(channel).Attach
            for metadata in ((), showing(SECRET), showing(cluster.link_secrets[1])):
                call = attach(metadata=metadata)
                submit = replica_pb2.Submit(key=1, token_ids=[1], prompt_len=1)
                with suppress(grpc.aio.AioRpcError):  # it may have been refused by now
                    await call.write(replica_pb2.AttachRequest(submit=submit))
                assert "secret" in await _refusal(call)
            assert (await attach(metadata=showing(cluster.link_secrets[0])).read()).load.total_blocks > 0
        assert cluster.engines[0].load().generated_tokens == 0
        async with AsyncClient(cluster.address) as client:
            await client.generate("x", max_tokens=4)
            # Administrators see replicas, but not how to reach them past the gateways.
            assert cluster.link_secrets[0] not in str(await client.cluster())


async def test_a_gateway_reads_a_rotated_secret_and_serves_on_while_it_is_refused(model: Path, tmp_path: Path) -> None:
    accepted = [new_secret()]
    file = tmp_path / "secret"
    file.write_text(f"{new_secret()}\n")
    plan = plan_for(model)
    async with served(plan, config_for(plan)) as cluster:
        registry = Registry("other", lambda: accepted)
        address = f"{HOST}:{await registry.start(HOST)}"
        news: asyncio.Queue[registry_pb2.WatchResponse] = asyncio.Queue()
        gateway = Gateway(GatewayConfig(f"{HOST}:0", address, file), news.put_nowait)
        try:
            async with asyncio.timeout(30):
                listening = f"{HOST}:{await gateway.start()}"
                registry.set_model(cluster.gateway._admin.news.plan_json, cluster.gateway._admin.news.engine_json)
                registry.set_replicas(cluster.replicas.values(), cluster.link_secrets)
                await asyncio.sleep(0.3)
                assert news.empty()  # refused
                file.write_text(f"{accepted[0]}\n")
                await news.get()
                await gateway.ready()
                await registry.stop()
                accepted[0] = new_secret()
                registry = Registry("other", lambda: accepted)
                await registry.start(HOST, int(address.rpartition(":")[2]))
                async with AsyncClient(listening) as client:  # from what it knows
                    await client.generate("x", max_tokens=4)
                while not news.empty():
                    news.get_nowait()
                file.write_text(f"{accepted[0]}\n")
                await news.get()
        finally:
            await gateway.stop()
            await registry.stop()


async def test_within_the_cluster_both_ends_show_certificates_where_the_spec_says_so(
    model: Path, tmp_path: Path
) -> None:
    (tmp_path / "strangers").mkdir()
    authority, stranger = Authority(tmp_path), Authority(tmp_path / "strangers")
    tls = PeerTls(*authority.issue("node"), authority.file)
    plan = plan_for(model)
    async with served(plan, config_for(plan), internal_tls=tls) as cluster:
        async with AsyncClient(cluster.address) as client:
            assert len((await client.generate("x", max_tokens=4, ignore_eos=True)).token_ids) == 4
        certificate, key = stranger.issue("node")
        shown = grpc.ssl_channel_credentials(authority.file.read_bytes(), key.read_bytes(), certificate.read_bytes())
        for credentials in (None, shown, grpc.ssl_channel_credentials(authority.file.read_bytes())):
            for address in (cluster.registry_address, cluster.replicas[0].address):
                channel = (
                    grpc.aio.insecure_channel(address)
                    if credentials is None
                    else grpc.aio.secure_channel(address, credentials)
                )
                async with channel:
                    watch = registry_pb2_grpc.RegistryStub(channel).Watch(
                        registry_pb2.WatchRequest(), metadata=showing(SECRET), timeout=5
                    )
                    with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
                        await watch.read()


async def test_a_gateway_does_not_speak_to_a_registry_that_another_authority_vouches_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "strangers").mkdir()
    authority, stranger = Authority(tmp_path), Authority(tmp_path / "strangers")
    registry = Registry("test", lambda: [SECRET], tls=PeerTls(*stranger.issue("node"), stranger.file))
    address = f"{HOST}:{await registry.start(HOST)}"
    tls = PeerTls(*authority.issue("gateway"), authority.file)
    gateway = Gateway(GatewayConfig(f"{HOST}:0", address, SECRET, internal_tls=tls))
    try:
        await gateway.start()
        async with asyncio.timeout(10):
            while ("the coordinator does not answer", address) not in [
                (record.getMessage(), getattr(record, "registry", None)) for record in caplog.records
            ]:
                await asyncio.sleep(0.05)
        assert gateway._admin.news.deployment == ""
    finally:
        await gateway.stop()
        await registry.stop()


async def test_renewed_certificates_within_the_cluster_count_without_a_restart(model: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    old, new = Authority(tmp_path), Authority(tmp_path / "new")
    tls = PeerTls(*old.issue("node"), old.file)
    plan = plan_for(model)
    async with served(plan, config_for(plan), internal_tls=tls) as cluster:
        for source, target in zip((*new.issue("node"), new.file), (tls.certificate, tls.key, tls.ca), strict=True):
            target.write_bytes(source.read_bytes())
        later = Gateway(GatewayConfig(f"{HOST}:0", cluster.registry_address, SECRET, internal_tls=tls))
        try:
            async with asyncio.timeout(20), AsyncClient(f"{HOST}:{await later.start()}") as client:
                await later.ready()
                await client.generate("x", max_tokens=4)
        finally:
            await later.stop()


async def test_nothing_in_the_deployment_listens_beyond_the_stated_address(model: Path) -> None:
    plan = plan_for(model)
    before = _listening()
    async with served(plan, config_for(plan)) as cluster:
        opened = _listening() - before
        assert len(opened) == 4  # registry, gateway, the replica's link, its rendezvous store
        assert {int(cluster.address.rpartition(":")[2]), int(cluster.registry_address.rpartition(":")[2])} <= {
            port for _, port in opened
        }
        assert {host.removeprefix("::ffff:") for host, _ in opened} == {HOST}


def _listening() -> set[tuple[str, int]]:
    connections = psutil.Process().net_connections("tcp")
    return {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}


def test_parts_of_a_secret_tell_nothing_of_each_other() -> None:
    secret = new_secret()
    parts = {derived(secret, use) for use in ("link", "lifeline", "keys")}
    assert len(parts) == 3
    assert secret not in parts


def test_a_gateway_without_the_secret_is_told_where_to_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PHALANX_REGISTRY_SECRET", raising=False)
    run = CliRunner().invoke(app, ["gateway", "--registry", f"{HOST}:1"])
    assert isinstance(run.exception, SecurityError)
    for remedy in ("phalanx secret NAME --file FILE", "--registry-secret FILE", "PHALANX_REGISTRY_SECRET"):
        assert remedy in str(run.exception)


@pytest.mark.parametrize(
    ("content", "message"), [("", "is empty"), ("short", "at least 32"), ("\u00e4" * 40, "other than ASCII")]
)
def test_a_secret_that_could_be_guessed_or_not_sent_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "secret"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(SecurityError, match=message):
        given_secrets(file)


@pytest.mark.parametrize("everywhere", ["0.0.0.0:50052", "[::]:50052"])
def test_the_registry_never_listens_on_every_address(everywhere: str) -> None:
    with pytest.raises(SpecError, match="leave the host out, as in :50052"):
        DeploymentSpec.of({"model": "x", "registry_listen": everywhere})
    assert DeploymentSpec.of({"model": "x", "registry_listen": ":50052"}).registry_listen == ":50052"
