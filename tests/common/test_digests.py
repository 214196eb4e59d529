"""Digests of large files are read once, and again when the file changed."""

import hashlib
import os

from common import digests


def test_large_files_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LARGE", 4)
    path = tmp_path / "weights"
    for time, content in enumerate((b"first", b"other")):
        path.write_bytes(content)
        os.utime(path, ns=(1, time))
        digests._digest.cache_clear()
        assert digests.file_digest(path) == hashlib.sha256(content).hexdigest()
    reads = []
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: reads.append(a))
    digests._digest.cache_clear()  # as a new process
    assert digests.file_digest(path) == hashlib.sha256(b"other").hexdigest()
    assert not reads


def test_a_cache_that_is_damaged_or_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LARGE", 1)
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    digests.cache_file().parent.mkdir(parents=True)
    digests.cache_file().write_text("{broken")
    assert digests.file_digest(path) == hashlib.sha256(b"abc").hexdigest()
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    digests._digest.cache_clear()
    assert digests.file_digest(path) == hashlib.sha256(b"abc").hexdigest()
