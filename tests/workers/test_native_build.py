"""The build of the native library: what is chosen, kept, shared and said."""

from __future__ import annotations

import ctypes
import logging
import platform
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from workers.native import build as building
from workers.native.build import LEVELS, BuildError, build, choose_level, prebuild
from workers.native.library import library

_AMX, _AVX512, _AVX2 = LEVELS


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "one.h").write_text("constexpr int one = 1;\n")
    (folder / "one.cpp").write_text('#include "one.h"\nextern "C" int answer() { return 41 + one; }\n')
    (folder / "two.cpp").write_text('extern "C" int other() { return 2; }\n')
    try:
        building.find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    return folder


def test_the_level_is_the_best_that_the_processor_has() -> None:
    assert choose_level("x86_64", _AMX.needs | _AVX2.needs) is _AMX
    assert choose_level("x86_64", _AMX.needs | _AVX2.needs, "avx512") is _AVX512
    assert choose_level("x86_64", _AVX512.needs | _AVX2.needs) is _AVX512
    assert choose_level("x86_64", (_AVX512.needs | _AVX2.needs) - {"avx512_bf16"}) is _AVX2
    assert choose_level("x86_64", _AVX512.needs | _AVX2.needs, "avx2") is _AVX2
    assert choose_level("aarch64", frozenset()).name == "generic"
    with pytest.raises(BuildError, match="without AVX2"):
        choose_level("x86_64", frozenset(("sse2",)))


def test_a_wish_that_cannot_be_met_is_refused_with_what_is_missing() -> None:
    with pytest.raises(ValueError, match="no avx512_bf16"):
        choose_level("x86_64", (_AVX512.needs | _AVX2.needs) - {"avx512_bf16"}, "avx512")
    with pytest.raises(ValueError, match="choose one of amx, avx512, avx2, off"):
        choose_level("x86_64", _AVX2.needs, "sse")


def test_all_sources_become_one_library_that_is_kept_until_one_changes(sources: Path, tmp_path: Path) -> None:
    first = build(sources, tmp_path / "cache")
    assert ctypes.CDLL(str(first)).answer() == 42
    assert ctypes.CDLL(str(first)).other() == 2
    made = first.stat().st_mtime_ns
    assert build(sources, tmp_path / "cache") == first
    assert first.stat().st_mtime_ns == made
    (sources / "one.h").write_text("constexpr int one = 2;\n")
    second = build(sources, tmp_path / "cache")
    assert ctypes.CDLL(str(second)).answer() == 43


def test_ranks_that_build_at_once_get_the_same_library(sources: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: build(sources, tmp_path / "cache"), range(4)))
    assert len(paths) == 1
    assert len(list((tmp_path / "cache").glob("*/libphalanx.so"))) == 1
    assert not list((tmp_path / "cache").glob("build-*"))


def test_libraries_built_ahead_need_no_compiler_and_serve_their_own_sources_alone(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if platform.machine() != "x86_64":
        with pytest.raises(BuildError, match="only libraries for x86-64"):
            prebuild(tmp_path / "ahead", sources)
        return
    libraries = prebuild(tmp_path / "ahead", sources)
    assert [path.parent.name.partition("-")[0] for path in libraries] == ["amx", "avx512", "avx2"]
    made = [path.stat().st_mtime_ns for path in libraries]
    assert prebuild(tmp_path / "ahead", sources) == libraries
    assert [path.stat().st_mtime_ns for path in libraries] == made

    monkeypatch.setenv(building.PREBUILT, str(tmp_path / "ahead"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(building, "processor_flags", lambda: _AVX2.needs)
    assert build(sources, tmp_path / "cache") == libraries[-1]
    assert ctypes.CDLL(str(libraries[-1])).answer() == 42
    (sources / "one.h").write_text("constexpr int one = 2;\n")
    with pytest.raises(BuildError, match="no-such-compiler"):
        build(sources, tmp_path / "cache")


def test_a_compiler_that_does_not_know_amx_makes_the_next_best(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("AMX is of x86-64 processors")
    old = tmp_path / "old-compiler"
    real = shlex.join(building.find_compiler())
    old.write_text(f'#!/bin/sh\ncase "$*" in *-mamx*) exit 1;; esac\nexec {real} "$@"\n')
    old.chmod(0o755)
    monkeypatch.setenv("CXX", str(old))
    monkeypatch.delenv(building.SWITCH, raising=False)
    monkeypatch.setattr(building, "processor_flags", lambda: _AMX.needs)
    assert build(sources, tmp_path / "cache").parent.name.startswith("avx512-")

    ahead = prebuild(tmp_path / "ahead", sources)
    assert [path.parent.name.partition("-")[0] for path in ahead] == ["avx512", "avx2"]
    monkeypatch.setenv(building.PREBUILT, str(tmp_path / "ahead"))
    assert build(sources, tmp_path / "cache") == ahead[0]


def test_a_failed_build_leaves_nothing_and_shows_the_compilers_words(sources: Path, tmp_path: Path) -> None:
    (sources / "two.cpp").write_text("this is no C++\n")
    with pytest.raises(BuildError, match=r"two\.cpp"):
        build(sources, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*/libphalanx.so"))


def test_without_a_compiler_it_is_said_once_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.delenv(building.SWITCH, raising=False)
    library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert library() is None
            assert library() is None
    finally:
        library.cache_clear()
    assert len(caplog.records) == 1
    assert "no-such-compiler" in caplog.text
    assert "apt-get install g++" in caplog.text


def test_the_switch_turns_it_off_without_a_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(building.SWITCH, building.OFF)
    library.cache_clear()
    try:
        assert library() is None
    finally:
        library.cache_clear()
    assert not caplog.records


def test_the_library_is_kept_in_the_cache_or_the_error_says_how_to_name_another(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHALANX_CACHE", str(tmp_path / "cache"))
    assert build(sources).parent.parent == tmp_path / "cache" / "native"
    (tmp_path / "file").touch()
    monkeypatch.setenv("PHALANX_CACHE", str(tmp_path / "file"))
    with pytest.raises(BuildError, match=r"cannot be kept: .*; PHALANX_CACHE can name another folder"):
        build(sources)
