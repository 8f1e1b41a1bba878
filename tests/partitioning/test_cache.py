from __future__ import annotations

from pathlib import Path

import pytest

from partitioning.cache import CacheError, cache_folder, writable_cache


def test_it_is_the_users_unless_another_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PHALANX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))
    assert cache_folder() == tmp_path / "users" / "phalanx"
    monkeypatch.setenv("PHALANX_CACHE", str(tmp_path / "named"))
    assert cache_folder() == tmp_path / "named"
    assert not cache_folder().exists()
    assert writable_cache("a/b") == tmp_path / "named" / "a" / "b"
    assert list(writable_cache("a/b").iterdir()) == []


def test_one_that_cannot_be_written_is_told_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PHALANX_CACHE", str(tmp_path / "file"))
    with pytest.raises(CacheError, match=r"file/locks cannot be written \(Not a directory\): .* with PHALANX_CACHE"):
        writable_cache("locks")
    # A file system that became read-only under a folder that is there already.
    monkeypatch.setenv("PHALANX_CACHE", "/proc/self")
    with pytest.raises(CacheError, match=r"/proc/self/fd cannot be written \(.*\): .* with PHALANX_CACHE"):
        writable_cache("fd")
