"""Safe writing: writers of one file, journals, what killed processes leave."""

import multiprocessing
import os

import pytest
import torch
from safetensors.torch import save_file

from overfeat import files
from overfeat.errors import InputError, WriteError
from overfeat.files import Journal, atomic_write, lock


def _write(path, letter, count):
    for _ in range(count):
        with atomic_write(path) as part:
            part.write_text(letter * 100_000)


def test_two_writers_of_one_file(tmp_path):
    path = tmp_path / "r.json"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(path, letter, 40)) for letter in "ab"]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen |= {path.read_text()} if path.exists() else set()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen | {path.read_text()} <= {"a" * 100_000, "b" * 100_000}
    assert list(tmp_path.iterdir()) == [path]


def test_a_second_writer_has_its_own_temporary_file(tmp_path):
    path = tmp_path / "r.json"
    with atomic_write(path) as first, atomic_write(path) as second:
        assert first != second
        first.write_text("longer")
        second.write_text("short")
    assert path.read_text() == "longer" and list(tmp_path.iterdir()) == [path]


def test_a_writer_may_replace_its_file(tmp_path):
    """As that of safetensors does: a lock on the file would be lost."""
    path, tensors = tmp_path / "net.safetensors", {"x": torch.zeros(3)}
    with atomic_write(path) as first:
        save_file(tensors, first)
        with atomic_write(path) as second:
            assert second != first and first.exists()
            save_file(tensors, second)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("locks", [True, False])
def test_what_killed_writers_left_is_used_again(tmp_path, locks, monkeypatch):
    path, left = tmp_path / "r.json", tmp_path / ".part-r.json"
    if not locks:
        monkeypatch.setattr(files, "fcntl", None)
        left = tmp_path / f".part-r.json-{os.getpid()}"
    left.mkdir()
    (left / "r.json").write_text("half of a longer text")
    with atomic_write(path) as part:
        assert part.parent == left and not part.exists()
        part.write_text("{}")
    assert path.read_text() == "{}" and list(tmp_path.iterdir()) == [path]


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    (tmp_path / ".part-killed.json").mkdir()
    (tmp_path / ".part-killed.json" / "killed.json").write_text("half")
    (tmp_path / "result.json").write_text("whole")
    with atomic_write(tmp_path / "written.json") as part:
        files.remove_leftovers(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == [part.parent.name, "result.json"]
        part.write_text("{}")
    assert (tmp_path / "written.json").read_text() == "{}"


def test_locks(tmp_path):
    for path, make in ((tmp_path, False), (tmp_path / "file", True)):
        held = lock(path, make=make)
        assert held is not None and lock(path, make=make) is None
        os.close(held)
        again = lock(path, make=make)
        assert again is not None
        os.close(again)


def test_a_journal(tmp_path):
    """Torn lines and the results of other settings are dropped."""
    path = tmp_path / "j"

    def reopened(before, settings):
        before.file.close()
        return Journal(path, settings)

    journal = Journal(path, {"a": 1})
    journal.add("x", [1, 2.5])
    journal.add("y", [])
    for torn in ('["z", [3', "7\n", "[[], 1]\n"):
        with open(path, "a") as file:
            file.write(torn)
        journal = reopened(journal, {"a": 1})
        assert journal.done == {"x": [1, 2.5], "y": []}
    journal.add("z", [4])
    journal = reopened(journal, {"a": 1})
    assert journal.done["z"] == [4]
    journal = reopened(journal, {"a": 2})
    assert journal.done == {} and journal.dropped
    journal = reopened(journal, {"a": 1})
    assert journal.done == {}
    journal.finish()
    assert not path.exists()
    with pytest.raises(InputError, match="cannot be written"):
        Journal(tmp_path / "no" / "j", {})


def test_a_journal_has_one_writer(tmp_path):
    path = tmp_path / "j"
    first = Journal(path, {})
    first.add("x", 1)
    with pytest.raises(WriteError, match="another process is writing these results; wait"):
        Journal(path, {})
    first.add("y", 2)
    first.file.close()
    assert Journal(path, {}).done == {"x": 1, "y": 2}
