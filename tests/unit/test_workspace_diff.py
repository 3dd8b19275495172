"""A folder compared before and after: what is found, what is not followed, where it stops."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proxy.workspace_diff import (
    COPY_BYTES,
    Change,
    Comparison,
    Limits,
    Workspace,
    count_lines,
    diff_of,
)


def looked_at(folder: Path, limits: Limits | None = None) -> Workspace:
    workspace = Workspace(str(folder), limits or Limits())
    workspace.look_before()
    return workspace


def changes(found: Comparison) -> dict[str, Change]:
    return {change.path: change for change in found.changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("one\ntwo\n")
    (folder / "b.txt").write_text("bee\n")
    (folder / "sub" / "c.txt").write_text("sea\n")
    return folder


def test_nothing_changed(folder: Path):
    found = looked_at(folder).compare()
    assert found == Comparison([], "Compared 3 files with 3.", is_complete=True)


def test_added_changed_and_deleted_files_are_found_with_their_lines(folder: Path):
    workspace = looked_at(folder)
    (folder / "a.txt").write_text("one\n2\n")
    (folder / "b.txt").unlink()
    (folder / "sub" / "new").mkdir()
    (folder / "sub" / "new" / "d.txt").write_text("dee")

    found = changes(workspace.compare())

    assert found == {
        "a.txt": Change("a.txt", "update", "", "@@ -1,2 +1,2 @@\n one\n-two\n+2\n", 1, 1),
        "b.txt": Change("b.txt", "delete", "", "@@ -1 +0,0 @@\n-bee\n", 0, 1),
        "sub/new/d.txt": Change(
            "sub/new/d.txt", "add", "",
            "@@ -0,0 +1 @@\n+dee\n\\ No newline at end of file\n", 1, 0,
        ),
    }  # fmt: skip


def test_renamed_file_is_one_move(folder: Path):
    workspace = looked_at(folder)
    (folder / "b.txt").rename(folder / "sub" / "bee.txt")
    assert workspace.compare().changes == [Change("b.txt", "move", "sub/bee.txt", "", 0, 0)]


def test_times_that_were_set_back_hide_nothing(folder: Path):
    workspace, file = looked_at(folder), folder / "a.txt"
    before = file.stat()
    file.write_text("ONE\nTWO\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (changes(workspace.compare())["a.txt"].lines_added) == 2


def test_touched_or_newly_permitted_file_says_that_its_text_is_the_same(folder: Path):
    workspace = looked_at(folder)
    (folder / "a.txt").touch()
    (folder / "b.txt").chmod(0o755)
    found = changes(workspace.compare())
    assert "touched" in found["a.txt"].note
    assert "mode" in found["b.txt"].note
    assert found["a.txt"].lines_added == 0


def test_what_a_patch_did_is_not_found_but_what_followed_it_is(folder: Path):
    workspace = looked_at(folder)
    (folder / "a.txt").write_text("patched\n")
    told = workspace.note_patch("a.txt")
    (folder / "b.txt").unlink()
    assert workspace.note_patch("b.txt") is not None
    assert told is not None
    assert (told.lines_added, told.lines_removed) == (1, 2)
    assert workspace.compare().changes == []

    (folder / "a.txt").write_text("patched\nmore\n")
    assert changes(workspace.compare())["a.txt"].diff == "@@ -1 +1,2 @@\n patched\n+more\n"


def test_no_link_is_followed(folder: Path, tmp_path: Path):
    secret = tmp_path / "secret.txt"
    secret.write_text("hidden\n")
    (tmp_path / "other").mkdir()
    workspace = looked_at(folder)
    (folder / "link.txt").symlink_to(secret)
    (folder / "out").symlink_to(tmp_path / "other")
    (folder / "a.txt").unlink()
    (folder / "a.txt").symlink_to(secret)
    (tmp_path / "other" / "new.txt").write_text("hidden\n")

    found = workspace.compare()

    assert set(changes(found)) == {"link.txt", "out", "a.txt"}
    assert "hidden" not in str(found)
    assert workspace.note_patch("out/new.txt") is None
    assert workspace.note_patch("../secret.txt") is None


def test_folder_that_became_a_link_is_not_entered(folder: Path, tmp_path: Path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("hidden\n")
    workspace = looked_at(folder)
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "other")

    found = workspace.compare()

    assert found.changes == []
    assert not found.is_complete
    assert found.summary.startswith("Not compared.")


def test_file_of_several_names_and_what_is_no_file_are_not_read(folder: Path, tmp_path: Path):
    secret = tmp_path / "secret.txt"
    secret.write_text("hidden\n")
    workspace = looked_at(folder)
    os.link(secret, folder / "hard.txt")
    os.mkfifo(folder / "pipe")

    found = workspace.compare()

    assert set(changes(found)) == {"hard.txt", "pipe"}
    assert "hidden" not in str(found)


def test_what_is_closed_inside_it_is_not_looked_at(folder: Path):
    closed = [str(folder / "sub"), str(folder / "b.txt")]
    workspace = Workspace(str(folder), Limits(), closed)
    workspace.look_before()
    for path in ("sub/c.txt", "sub/new.txt", "b.txt", "a.txt"):
        (folder / path).write_text("of others\n")
    assert workspace.note_patch("sub/c.txt") is None
    found = workspace.compare()
    assert set(changes(found)) == {"a.txt"}
    assert "Left out: sub." in found.summary


def test_large_and_binary_files_are_found_without_their_lines(folder: Path):
    (folder / "large").write_text("x" * (COPY_BYTES + 1))
    (folder / "binary").write_bytes(b"\0\1")
    workspace = looked_at(folder)
    (folder / "large").write_text("y" * (COPY_BYTES + 1))
    (folder / "binary").write_bytes(b"\0\2")

    found = workspace.compare()

    assert {change.lines_added for change in found.changes} == {None}
    assert "No copy was kept of 2 files" in found.summary


def test_it_stops_at_its_bound_and_says_nothing_of_the_rest(folder: Path):
    for number in range(10):
        (folder / "sub" / f"{number}.txt").write_text("x")
    workspace = looked_at(folder, Limits(files=2))
    (folder / "new.txt").write_text("x\n")
    (folder / "sub" / "c.txt").unlink()

    found = workspace.compare()

    assert not found.is_complete
    assert "Stopped at the bound of 2 files" in found.summary
    assert "sub/c.txt" not in changes(found)


def test_one_folder_with_more_files_than_the_bound_stops_it(tmp_path: Path):
    for number in range(50):
        (tmp_path / f"{number}.txt").write_text("x")
    workspace = looked_at(tmp_path, Limits(files=10))
    (tmp_path / "new.txt").write_text("x")
    found = workspace.compare()
    assert found.changes == []
    assert not found.is_complete


def test_more_changes_than_the_bound_are_counted(folder: Path):
    workspace = looked_at(folder, Limits(changes=3))
    for number in range(9):
        (folder / f"{number}.txt").write_text("x")
    found = workspace.compare()
    assert len(found.changes) == 3
    assert "9 changes were found, the first 3 are on record" in found.summary


def test_derived_folders_and_git_s_store_are_left_out_but_not_its_hooks(folder: Path):
    for name in (".git/objects", ".git/hooks", "node_modules"):
        (folder / name).mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    workspace = looked_at(folder)
    for name in (".git/objects/ab", ".git/index", ".git/hooks/pre-commit", "node_modules/x.js"):
        (folder / name).write_text("x\n")
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/evil\n")

    found = workspace.compare()

    assert set(changes(found)) == {".git/hooks/pre-commit", ".git/HEAD"}
    assert "Left out: node_modules." in found.summary


def test_git_s_own_configuration_runs_nothing(folder: Path, tmp_path: Path):
    trap = tmp_path / "trap"
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text(f'[core]\n\tfsmonitor = "touch {trap}"\n')
    looked_at(folder).compare()
    assert not trap.exists()


def test_folder_that_is_not_there_is_not_compared(tmp_path: Path):
    found = looked_at(tmp_path / "missing").compare()
    assert found.summary == "Not compared. The folder could not be read: No such file or directory."


def test_long_texts_without_a_common_line_are_cut_short_in_work():
    old = "".join(f"a{n}\n" for n in range(5_000))
    new = "".join(f"b{n}\n" for n in range(5_000))
    diff, added, removed = diff_of(f"same\n{old}end\n", f"same\n{new}end\n")
    assert (added, removed) == (5_000, 5_000)
    assert diff.startswith("@@ -2,5000 +2,5000 @@\n-a0\n")


def test_lines_are_counted_as_lines_whatever_they_hold():
    diff, added, removed = diff_of("a\x0cb\n", "a\x0cb\n++c\u2028d\n")
    assert (added, removed) == (1, 0)
    assert count_lines(diff) == (1, 0)
