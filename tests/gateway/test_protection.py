"""Gateways that ask for tokens and encrypt: who gets in, and what becomes of files that change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from cluster.cli import app
from cluster.gateway.config import GatewayConfig
from cluster.gateway.server import Gateway
from cluster.security import SecurityError
from cluster.security.tokens import hash_of
from phalanx import AsyncClient, InvalidRequest, Overloaded, PhalanxError, Tls
from tests.authority import DAY, NOW, Authority
from tests.replicas import config_for, plan_for
from tests.served import SECRET, Served, served
from workers.security.tls import ServerTls


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def _write_tokens(path: Path, **tokens: dict[str, object]) -> Path:
    """A tokens file in which every tenant's token is its name, said twice."""
    entries = [{"tenant": tenant, "sha256": hash_of(2 * tenant), **more} for tenant, more in tokens.items()]
    path.write_text(yaml.safe_dump(entries))
    return path


@asynccontextmanager
async def _protected(model: Path, **options: object) -> AsyncIterator[Served]:
    plan = plan_for(model)
    async with served(plan, config_for(plan), **options) as running:  # type: ignore[arg-type]
        yield running


async def test_only_known_tokens_get_in(model: Path, tmp_path: Path) -> None:
    tokens = _write_tokens(tmp_path / "tokens.yaml", alice={}, root={"admin": True})
    async with _protected(model, tokens=tokens) as cluster:
        for token, message in ((None, "no token came"), ("mallory", "not one that this gateway knows")):
            async with AsyncClient(cluster.address, token=token) as client:
                with pytest.raises(PhalanxError, match=message) as refused:
                    await client.generate("x", max_tokens=4)
                assert refused.value.code is grpc.StatusCode.UNAUTHENTICATED
        async with AsyncClient(cluster.address, token="alicealice") as client:
            assert len((await client.generate("x", max_tokens=4, ignore_eos=True)).token_ids) == 4
            with pytest.raises(PhalanxError, match="admin: true") as refused:
                await client.cluster()
            assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED
        async with AsyncClient(cluster.address, token="rootroot") as client:
            assert len((await client.cluster()).replicas) == 1
        async with grpc.aio.insecure_channel(cluster.address) as channel:  # a probe
            health = health_pb2_grpc.HealthStub(channel)
            assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1


async def test_tokens_come_and_go_and_a_broken_file_changes_nothing(model: Path, tmp_path: Path) -> None:
    tokens = _write_tokens(tmp_path / "tokens.yaml", alice={})
    async with (
        _protected(model, tokens=tokens) as cluster,
        AsyncClient(cluster.address, token="alicealice") as alice,
        AsyncClient(cluster.address, token="bobbob") as bob,
    ):
        await alice.tokenize("x")
        tokens.write_text("nonsense: [")
        await alice.tokenize("x")
        _write_tokens(tokens, bob={})
        await bob.tokenize("x")
        with pytest.raises(PhalanxError, match="not one that this gateway knows"):
            await alice.tokenize("x")


async def test_a_token_has_limits_of_its_own(model: Path, tmp_path: Path) -> None:
    limits = {"limits": {"max_sequences": 2, "requests_per_minute": 3}}
    tokens = _write_tokens(tmp_path / "tokens.yaml", alice=limits, bob={})
    async with _protected(model, tokens=tokens) as cluster:
        async with AsyncClient(cluster.address, token="alicealice") as alice:
            with pytest.raises(InvalidRequest, match="may have 2 outputs at once"):
                await alice.generate_n("x", 3, max_tokens=4)
            for _ in range(3):
                await alice.generate("x", max_tokens=4)
            with pytest.raises(Overloaded, match="3 requests a minute") as refused:
                await alice.generate("x", max_tokens=4)
            assert 1 < refused.value.retry_after_s <= 20
        async with AsyncClient(cluster.address, token="bobbob") as bob:
            await asyncio.gather(*(bob.generate("x", max_tokens=4) for _ in range(8)))


async def test_clients_that_trust_the_authority_are_served_encrypted(model: Path, authority: Authority) -> None:
    certificate, key = authority.issue("gateway")
    async with _protected(model, tls=ServerTls(certificate, key)) as cluster:
        async with AsyncClient(cluster.address, tls=Tls(ca=authority.file)) as client:
            assert len((await client.generate("x", max_tokens=4, ignore_eos=True)).token_ids) == 4
        for tls in (None, Tls()):  # in the clear; with an authority that nobody here knows
            async with AsyncClient(cluster.address, tls=tls, timeout=5) as client:
                with pytest.raises(PhalanxError):
                    await client.generate("x", max_tokens=4)


async def test_clients_show_certificates_where_these_are_asked_for(model: Path, authority: Authority) -> None:
    certificate, key = authority.issue("gateway")
    own, own_key = authority.issue("client")
    async with _protected(model, tls=ServerTls(certificate, key, authority.file)) as cluster:
        async with AsyncClient(cluster.address, tls=Tls(authority.file, own, own_key)) as client:
            await client.tokenize("x")
        async with AsyncClient(cluster.address, tls=Tls(authority.file), timeout=5) as client:
            with pytest.raises(PhalanxError):
                await client.tokenize("x")


async def test_a_renewed_certificate_is_shown_to_those_who_come_then(model: Path, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    certificate, key = old.issue("gateway")
    async with (
        _protected(model, tls=ServerTls(certificate, key)) as cluster,
        AsyncClient(cluster.address, tls=Tls(ca=old.file)) as before,
    ):
        stream = before.stream("x", max_tokens=300, ignore_eos=True)
        tokens = list((await anext(stream)).token_ids)  # type: ignore[arg-type]
        for source, target in zip(new.issue("gateway"), (certificate, key), strict=True):
            target.write_bytes(source.read_bytes())
        async with AsyncClient(cluster.address, tls=Tls(ca=new.file)) as after:
            await after.tokenize("x")
        async for chunk in stream:
            tokens += chunk.token_ids
        assert len(tokens) == 300


def _swap(authority: Authority) -> tuple[Path, Path]:
    return authority.issue("one")[0], authority.issue("other")[1]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (lambda authority: (authority.file.parent / "none.pem", authority.issue("x")[1]), "there is no file"),
        (_swap, "is not the key of"),
        (lambda authority: authority.issue("x", NOW - DAY), "expired at"),
        (lambda authority: authority.issue("x")[::-1], "holds no certificate"),
    ],
)
def test_certificates_that_cannot_be_used_are_refused_at_the_start(
    authority: Authority, files: Callable[[Authority], tuple[Path, Path]], message: str
) -> None:
    with pytest.raises(SecurityError, match=message):
        Gateway(GatewayConfig("127.0.0.1:0", "127.0.0.1:1", SECRET, tls=ServerTls(*files(authority))))


def test_beyond_this_machine_it_listens_only_encrypted_and_with_tokens(authority: Authority, tmp_path: Path) -> None:
    tls = ServerTls(*authority.issue("gateway"))
    tokens = _write_tokens(tmp_path / "tokens.yaml", alice={})
    for options in ({}, {"tls": tls}, {"tokens": tokens}):
        with pytest.raises(SecurityError, match="say --insecure"):
            Gateway(GatewayConfig("0.0.0.0:0", "127.0.0.1:1", SECRET, **options))  # type: ignore[arg-type]


async def test_with_both_or_when_told_so_it_listens_beyond_this_machine(authority: Authority, tmp_path: Path) -> None:
    tls = ServerTls(*authority.issue("gateway"))
    tokens = _write_tokens(tmp_path / "tokens.yaml", alice={})
    for options in ({"tls": tls, "tokens": tokens}, {"insecure": True}):
        Gateway(GatewayConfig("0.0.0.0:0", "127.0.0.1:1", SECRET, **options))  # type: ignore[arg-type]


def test_a_new_token_is_shown_once_and_its_hash_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "tokens.yaml"
    run = CliRunner().invoke(app, ["token", "new", "--tenant", "alice", "--file", str(file), "--admin"])
    assert run.exit_code == 0, run.output
    made = run.stdout.split()[-1]
    assert made.startswith("phx_")
    assert yaml.safe_load(file.read_text())[0] == {
        "tenant": "alice",
        "sha256": hash_of(made),
        "weight": 1.0,
        "admin": True,
    }
    assert file.stat().st_mode & 0o077 == 0
    before = file.read_text()
    assert CliRunner().invoke(app, ["token", "new", "--tenant", "no such name", "--file", str(file)]).exit_code
    assert file.read_text() == before
