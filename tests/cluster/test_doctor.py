"""The checks of `phalanx doctor`, each on a machine where what it looks for is there, and where it is not."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.doctor import model as model_check
from cluster.doctor import versions
from cluster.doctor.credentials import gateway_credentials, node_credentials
from cluster.doctor.finding import Finding
from cluster.doctor.gpus import driver_cuda, gpus
from cluster.doctor.link import LinkError, LinkFigures, LinkListener, measure
from cluster.doctor.links import link_findings, rounds
from cluster.doctor.memory import memory
from cluster.doctor.open_files import open_files
from cluster.doctor.plan import this_node
from cluster.doctor.ports import port_finding
from cluster.doctor.ray_token import ray_token
from cluster.doctor.shared_memory import shared_memory
from cluster.spec import DeploymentSpec
from partitioning.topology import usable_memory
from tests.authority import DAY, NOW, Authority
from workers.security.peers import PeerTls

HOST = "127.0.0.1"


def _is_bad(finding: Finding, level: str, *words: str) -> None:
    assert finding.level == level, finding
    assert all(word in finding.text for word in words), finding
    assert finding.remedy


def test_a_port_that_is_taken_names_who_has_it() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        _is_bad(port_finding(HOST, port, "x", "another"), "failed", f"{HOST}:{port}", f"process {os.getpid()}")
    assert port_finding(HOST, port, "x", "another").level == "ok"
    _is_bad(port_finding("192.0.2.1", 0, "x", "another"), "failed", "192.0.2.1")


def test_certificates_that_expire_are_told_before_they_do(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    good, soon, over = (authority.issue(name, NOW + days * DAY) for name, days in (("a", 90), ("b", 3), ("c", -1)))
    good[1].chmod(0o644)

    def first(pair: tuple[Path, Path]) -> list[Finding]:
        return list(node_credentials(PeerTls(*pair, authority.file)))

    assert [finding.level for finding in first(good)] == ["ok", "warning", "warning"]
    _is_bad(first(good)[1], "warning", "every user", str(good[1]))
    _is_bad(first(soon)[0], "warning", "2 days")
    _is_bad(first(over)[0], "failed", "expired")
    _is_bad(first((good[0], soon[1]))[0], "failed", "not the key")


def test_secrets_and_tokens_have_to_be_usable(tmp_path: Path) -> None:
    short, tokens = tmp_path / "short", tmp_path / "tokens.yaml"
    short.write_text("x")
    short.chmod(0o600)
    tokens.write_text("[]")
    spec = DeploymentSpec(model="x", registry_secret=short, tokens=tokens)
    fine, weak, private = gateway_credentials(spec)
    assert (fine.level, private.level) == ("ok", "ok")
    _is_bad(weak, "failed", "at least 32")


def test_a_model_is_read_to_its_last_byte(model: Path, tmp_path: Path) -> None:
    assert model_check.model(str(model)).level == "ok"
    assert model_check.tokenizer(str(model)).level == "ok"
    assert model_check.differences(dict.fromkeys("ab", model_check.fingerprint(str(model))))[0].level == "ok"
    _is_bad(model_check.model(str(tmp_path / "none")), "failed", "none")

    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    prints = {"a": model_check.fingerprint(str(model)), "b": model_check.fingerprint(str(copy)), "c": None}
    _is_bad(model_check.differences(prints)[0], "failed", "on a", "on b")
    weights = copy / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 8)
    _is_bad(model_check.model(str(copy)), "failed", str(weights))
    (copy / "tokenizer.json").unlink()
    _is_bad(model_check.tokenizer(str(copy)), "warning", "no text")


def test_too_few_open_files_are_told() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert open_files(connections=0).level == ("ok" if soft >= 1024 else "failed")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
        _is_bad(open_files(connections=5000), "warning", "5,512")
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        _is_bad(open_files(), "failed", "512")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("check", [memory, shared_memory])
def test_room_is_compared_with_what_the_plan_takes(check: Callable[[int], Finding]) -> None:
    assert check(1 << 10).level == "ok"
    _is_bad(check(1 << 50), "failed", "needed")


def test_a_plan_that_does_not_fit_says_what_is_missing(model: Path) -> None:
    findings, shares = this_node(DeploymentSpec(model=str(model), devices="cpu", tp=2, kv_cache_tokens=4096))
    assert [finding.level for finding in findings] == ["ok"]
    (share,) = shares.values()
    assert share.ranks == 2
    assert 0 < share.memory_bytes < usable_memory()
    findings, shares = this_node(DeploymentSpec(model=str(model), devices="cpu", kv_cache_tokens=1 << 30))
    _is_bad(findings[0], "failed", "does not fit")
    assert not shares


@pytest.mark.skipif(driver_cuda() is not None, reason="there is an NVIDIA driver")
def test_gpus_that_are_not_there_are_missed_where_they_are_wanted() -> None:
    assert gpus(0, 0).level == gpus(None, 0).level == "ok"
    _is_bad(gpus(2, 0), "failed", "2 wanted")


def test_ray_has_to_ask_for_a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "token"
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    _is_bad(ray_token(), "failed", str(file))
    file.write_text("x" * 32)
    assert ray_token().level == "ok"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    _is_bad(ray_token(), "warning", "can run code")


def test_versions_that_differ_are_named_with_their_nodes() -> None:
    own = versions.versions()
    assert [finding.level for finding in versions.own_findings(own)] == ["ok"]
    assert [finding.level for finding in versions.differences({"a": own, "b": own})] == ["ok"]
    torch, numpy = versions.differences({"a": own, "b": {**own, "torch": "1.0", "numpy": "1.0"}})
    _is_bad(torch, "failed", "torch differs", "1.0 on b")
    _is_bad(numpy, "warning", "numpy differs")
    missing = {name: text for name, text in own.items() if name != "ray"}
    _is_bad(versions.own_findings(missing)[0], "failed", "ray")


def test_a_link_is_measured_by_who_knows_the_secret() -> None:
    listener = LinkListener(HOST, "secret")
    found = measure(HOST, listener.port, "secret")
    assert found.bytes_per_s > 1e6
    assert abs(found.ahead_s) <= found.round_trip_s  # it is one clock
    with pytest.raises(LinkError, match=HOST):
        measure(HOST, listener.port, "guess!")
    with socket.create_server((HOST, 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(LinkError, match="refused"):
        measure(HOST, port, "secret")


def test_links_and_clocks_are_judged() -> None:
    quick, slow, late = LinkFigures(2e9, 1e-4, 0.0), LinkFigures(1e7, 1e-3, 0.0), LinkFigures(2e9, 1e-4, -90.0)
    first, second, third, clocks = link_findings({("a", "b"): quick, ("b", "c"): slow, ("a", "c"): "no route"})
    assert first.level == "ok"
    _is_bad(second, "warning", "b to c", "0.1 Gbit/s")
    _is_bad(third, "failed", "no route")
    assert clocks.level == "ok"
    _is_bad(link_findings({("a", "b"): late})[-1], "failed", "-90.000 s", "a's")


@pytest.mark.parametrize("count", [2, 3, 8, 9])
def test_every_node_meets_every_other_once_and_one_at_a_time(count: int) -> None:
    nodes = [str(number) for number in range(count)]
    made = rounds(nodes)
    assert all(len({node for pair in pairs for node in pair}) == 2 * len(pairs) for pairs in made)
    met = [frozenset(pair) for pairs in made for pair in pairs]
    assert len(set(met)) == len(met)
    if count <= 8:
        assert set(met) == {frozenset(pair) for pair in combinations(nodes, 2)}
    assert len(rounds([str(number) for number in range(100)])) == 8


def test_the_command_ends_with_what_it_has_found(model: Path, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    with socket.create_server((HOST, 0)) as taken:
        spec.write_text(f"model: {model}\nkv_cache_tokens: 4096\nlisten: {HOST}:{taken.getsockname()[1]}\n")
        ended = CliRunner().invoke(app, ["doctor", str(spec), "--json"])
    assert ended.exit_code == 1
    report = json.loads(ended.stdout)
    assert (report["version"], report["ok"]) == (1, False)
    bad = [finding["check"] for finding in report["findings"] if finding["level"] == "failed"]
    assert bad == ["ports"]
    again = CliRunner().invoke(app, ["doctor", str(spec)])
    assert again.exit_code == 0, again.stdout
    assert "0 failed" in again.stdout
