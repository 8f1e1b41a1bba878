"""Mistakes in values are refused by name, before anything is installed."""

from __future__ import annotations

import pytest

from tests.k8s.rendering import CHART, template

_LAPTOP = CHART / "examples/laptop.yaml"


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("spec.tpp=2", "at '/spec': additional properties 'tpp' not allowed"),
        ("spec.tp=two", "at '/spec/tp': got string, want integer"),
        ("spec.weights=int3", "at '/spec/weights': value must be one of 'auto', 'dense', 'int8', 'int4'"),
        ("spec.model=", "at '/spec/model': minLength"),
        ("spec.listen=0.0.0.0:50051", "additional properties 'listen' not allowed"),
        ("replicas=3", "additional properties 'replicas' not allowed"),
        ("gateway.replica=3", "at '/gateway': additional properties 'replica' not allowed"),
        ("gateway.replicas=0", "at '/gateway/replicas': minimum: got 0, want 1"),
        ("gateway.podDisruptionBudget.maxUnavailable=few", "at '/gateway/podDisruptionBudget/maxUnavailable'"),
        ("gateway.autoscaling.minReplicas=30", "gateway.autoscaling: minReplicas is above maxReplicas"),
        ("image.variant=rocm", "at '/image/variant': value must be one of 'cpu', 'cuda'"),
        ("service.port=70000", "at '/service/port': maximum: got 70,000, want 65,535"),
        ("podSecurity.runAsUser=0", "at '/podSecurity/runAsUser': minimum: got 0, want 1"),
        ("model.mountPath=models", "at '/model/mountPath': 'models' does not match pattern"),
        ("model.fetch.command=[]", "model.volume: name a volume that holds the model, or have model.fetch.command"),
        ("ray.workerGroups[1].name=gpu", "at '/ray/workerGroups/1': missing properties"),
        ("ray.workerGroups=null", "at '/ray': missing property 'workerGroups'"),
        ("ray.address=head:6379", "at '/ray/address': 'head:6379' does not match pattern"),
        ("ray.address=http://head:8265", "ray.registryHost: with ray.address, name a headless service over all pods"),
        ("ray.upgradeStrategy=Rolling", "at '/ray/upgradeStrategy': value must be one of 'Recreate', 'None'"),
        ("security.insecure=false", "security: give the gateways TLS (security.tls) and tokens"),
        ("security.tls.verifyClients=true", "security.tls.verifyClients: clients show certificates where the gateways"),
        ("security.tls.certManager.enabled=true", "security.tls.certManager.issuerRef: name the issuer"),
        (
            "security.internalTls.certManager.enabled=true",
            "security.internalTls.certManager.issuerRef: name the issuer",
        ),
        ("spec.internal_tls.ca=x", "additional properties 'internal_tls' not allowed"),
        ("fullnameOverride=Phalanx", "at '/fullnameOverride'"),
    ],
)
def test_a_mistake_is_named(mistake: str, words: str) -> None:
    done = template(_LAPTOP, mistake)
    assert done.returncode != 0
    assert words in done.stderr


@pytest.mark.parametrize(
    "half", ["security.tls.existingSecret=tls", "security.tokensSecret=tokens"], ids=["only TLS", "only tokens"]
)
def test_half_a_protection_is_none(half: str) -> None:
    done = template(_LAPTOP, "security.insecure=false", half)
    assert done.returncode != 0
    assert "security: give the gateways TLS" in done.stderr


def test_a_volume_has_one_source() -> None:
    done = template(_LAPTOP, "model.volume.emptyDir.medium=Memory", "model.volume.persistentVolumeClaim.claimName=x")
    assert done.returncode != 0
    assert "at '/model/volume': maxProperties: got 2, want 1" in done.stderr


def test_the_token_of_a_cluster_that_is_there_has_to_be_named() -> None:
    done = template(_LAPTOP, "ray.address=http://head:8265", "ray.registryHost=nodes")
    assert done.returncode != 0
    assert "ray.auth.existingSecret: with ray.address, name the Secret" in done.stderr


def test_without_a_model_nothing_is_rendered() -> None:
    done = template(None)
    assert done.returncode != 0
    assert "at '/spec/model'" in done.stderr
