"""The laptop example with certificates, tokens and a registry's secret from Secrets of the namespace."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.security.tokens import hash_of, new_token
from tests.authority import Authority
from tests.k8s.laptop import READY_S, laptop
from tests.k8s.rendering import NAMESPACE
from tests.k8s.stream import Stream

pytestmark = [pytest.mark.slow, pytest.mark.smollm2, pytest.mark.timeout(900)]

_PROTECTED = (
    "security.insecure=false", "security.tls.existingSecret=front", "security.tokensSecret=tokens",
    "security.testSecret=asker", "security.registrySecret=gate", "security.internalTls.existingSecret=inside",
)  # fmt: skip
_NAMES = tuple(f"{service}{rest}" for service in ("llm", "llm-headless") for rest in ("", f".{NAMESPACE}.svc"))


def _secret(name: str, **files: str) -> dict[str, Any]:
    data = {key.replace("_", "."): base64.b64encode(text.encode()).decode() for key, text in files.items()}
    return {"kind": "Secret", "metadata": {"name": name}, "data": data}


def _certificate(name: str, authority: Authority, *names: str) -> dict[str, Any]:
    certificate, key = authority.issue(name, names=names)
    return _secret(
        name, tls_crt=certificate.read_text(), tls_key=key.read_text(), ca_crt=authority.file.read_text()
    )  # fmt: skip


def test_protected_pods_serve_who_shows_a_token_and_uninstalling_leaves_nothing(tmp_path: Path) -> None:
    outside, inside = (Authority(tmp_path / name) for name in ("outside", "inside"))
    token = new_token()
    secrets = (
        _certificate("front", outside, *_NAMES),
        _certificate("inside", inside),
        _secret("tokens", tokens_yaml=yaml.safe_dump([{"tenant": "research", "sha256": hash_of(token)}])),
        _secret("asker", token=token),
        _secret("gate", secret="0123456789abcdef" * 4),
    )
    with laptop(tmp_path, *_PROTECTED, others=secrets) as (pods, client):
        pods.deploy("head", "head")
        pods.deploy("worker", "worker")
        driver, gateway = pods.deploy("driver", "driver"), pods.deploy("gateway", "gateway")
        pods.until(lambda: driver.ready and gateway.ready, READY_S)

        ask = pods.deploy("ask", "test")
        pods.until(lambda: ask.container.starts == 1 and ask.container.code is not None, 120)
        assert ask.container.code == 0, ask.output
        assert "Paris" in ask.output

        assert len(Stream(pods, client, tmp_path, 40, token, outside.file).rest()) == 40
        unknown = Stream(pods, client, tmp_path, 40, new_token(), outside.file)
        assert "the token is not one that this gateway knows" in unknown.error()

        pods.uninstall()
        pods.until(lambda: not pods.processes(), 30)
