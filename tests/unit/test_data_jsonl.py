"""JSON lines on disk: bad lines, torn lines, atomic replacement."""

import os
from pathlib import Path

import pytest

from anchorline.data import append_jsonl, read_appended, read_json, read_jsonl, write_json, write_jsonl
from anchorline.data.jsonl import scan_jsonl
from anchorline.errors import DataError

BAD_LINES = {
    "not JSON": (b"{'id': 1}", "is not JSON"),
    "cut": (b'{"id": "x", "te', "is not JSON"),
    "two values": (b'{"a": 1} {"a": 2}', "Extra data"),
    "array": (b"[1, 2]", "is a JSON list"),
    "string": (b'"hello"', "is a JSON str"),
    "null": (b"null", "is a JSON NoneType"),
    "Latin-1": ("{'a': 'caf\u00e9'}".encode("latin-1"), "is not UTF-8"),
    "NUL bytes": (b"\x00\x00\x00\x00", "is not JSON"),
    "NUL in text": (b'{"a": "x\x00y"}', "is not JSON"),
    "NaN": (b'{"a": NaN}', "NaN"),
    "Infinity": (b'{"a": -Infinity}', "Infinity"),
    "float overflow": (b'{"a": 1e999}', "too large"),
    "huge int": (b'{"a": ' + b"9" * 5000 + b"}", "not JSON that can be used"),
    "deep": (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
    "half a surrogate pair": (b'{"a": "\\uD83D"}', "surrogate"),
}


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_one_error_and_its_neighbours_are_read(tmp_path: Path, line: bytes, reason: str):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"id": 1}\n' + line + b'\n{"id": 3}\n')
    first, bad, last = scan_jsonl(file)
    assert first == (1, {"id": 1})
    assert last == (3, {"id": 3})
    error = bad[1]
    assert isinstance(error, DataError)
    assert (error.file, error.line) == (file, 2)
    assert str(error).startswith(f"{file}:2: ")
    assert reason in str(error)
    assert "\n" not in str(error)

    rows = read_jsonl(file)
    assert next(rows) == (1, {"id": 1})
    with pytest.raises(DataError, match=":2: "):
        next(rows)


def test_bom_crlf_blank_lines_and_unicode_line_ends_are_no_trouble(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + '{"a": "x\u2028y\u0085z"}\r\n\r\n  \n{"a": "\\ud83d\\ude00"}'.encode())
    assert list(read_jsonl(file)) == [(1, {"a": "x\u2028y\u0085z"}), (4, {"a": "😀"})]


def test_utf16_is_named(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes('{"a": 1}\n'.encode("utf-16"))
    with pytest.raises(DataError, match="is not UTF-8"):
        list(read_jsonl(file))


@pytest.mark.parametrize(("name", "reason"), [("none.jsonl", "no such file"), ("", "is a folder")])
def test_what_is_no_file(tmp_path: Path, name: str, reason: str):
    with pytest.raises(DataError, match=reason):
        list(read_jsonl(tmp_path / name))
    with pytest.raises(DataError, match=reason):
        read_json(tmp_path / name)


def test_a_crash_at_any_byte_loses_no_whole_row_and_owes_the_rest(tmp_path: Path):
    rows = [{"id": "a", "text": "né {\u2028}"}, {"id": "b", "text": "two\nlines"}, {"id": "c", "text": ""}]
    whole = tmp_path / "whole.jsonl"
    append_jsonl(whole, rows)
    content = whole.read_bytes()
    file = tmp_path / "cut.jsonl"
    torn_seen = 0
    for cut in range(len(content) + 1):
        file.write_bytes(content[:cut])
        found = read_appended(file)
        done = [row for _, row in found.rows]
        # A row counts as soon as all of it is there, with or without its newline.
        assert done == rows[: len(done)]
        assert len(done) in (content[:cut].count(b"\n"), content[:cut].count(b"\n") + 1)
        torn_seen += found.torn is not None
        append_jsonl(file, rows[len(done) :])
        if len(done) < len(rows):
            assert file.read_bytes() == content
        assert [row for _, row in read_appended(file).rows] == rows
        assert read_appended(file).torn is None
    assert torn_seen > len(content) - 3 * len(rows)


def test_a_torn_line_longer_than_one_look_back_is_cut_off(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"id": 1}\n{"text": "' + b"x" * 200_000)
    assert read_appended(file).torn is not None
    append_jsonl(file, [{"id": 2}])
    assert file.read_bytes() == b'{"id": 1}\n{"id": 2}\n'


def test_zeros_at_the_end_of_a_file_after_a_power_cut_are_torn(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"id": 1}\n' + b"\0" * 64)
    assert read_appended(file).rows == [(1, {"id": 1})]
    append_jsonl(file, [{"id": 2}])
    assert [row["id"] for _, row in read_jsonl(file)] == [1, 2]


@pytest.mark.parametrize("content", [b'{"id": 1}\n{"id":\n{"id": 3}\n', b'{"id": 1}\n{"id":\n', b'{"id":\n{"id": 3'])
def test_a_bad_line_that_no_crash_explains_is_an_error(tmp_path: Path, content: bytes):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError, match="is not JSON"):
        read_appended(file)


def test_no_file_yet_means_no_rows(tmp_path: Path):
    assert read_appended(tmp_path / "none.jsonl") == ([], None)


def test_append_adds_nothing_unless_every_row_can_be_written(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    append_jsonl(file, [{"id": 1}])
    for bad in (float("nan"), {1, 2}, "\ud800"):
        with pytest.raises(DataError, match="cannot be written as JSON"):
            append_jsonl(file, [{"id": 2}, {"id": bad}])
    append_jsonl(file, [])
    assert file.read_bytes() == b'{"id": 1}\n'


def test_append_and_replace_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    append_jsonl(tmp_path / "rows.jsonl", [{"id": 1}])
    write_json(tmp_path / "one.json", [])
    assert synced == [len('{"id": 1}\n'), len("[]\n")]


def test_a_replacement_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    write_jsonl(file, [{"id": "old"}])

    def rows():
        yield {"id": "new"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(file, rows())
    with pytest.raises(DataError, match="cannot be written as JSON"):
        write_json(file, {"loss": float("nan")})
    assert [row for _, row in read_jsonl(file)] == [{"id": "old"}]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_reader_sees_the_old_rows_until_the_new_ones_are_complete(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    write_jsonl(file, [{"id": "old"}])
    seen: list[object] = []

    def rows():
        for n in range(3):
            seen.append([row for _, row in read_jsonl(file)])
            yield {"id": n}

    write_jsonl(file, rows())
    assert seen == [[{"id": "old"}]] * 3
    assert [row["id"] for _, row in read_jsonl(file)] == [0, 1, 2]


@pytest.mark.parametrize("write", [append_jsonl, write_jsonl, write_json])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, write):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "none" / "a.jsonl", tmp_path / "file" / "a.jsonl", tmp_path):
        with pytest.raises(DataError, match="cannot be written: ") as caught:
            write(place, [{"id": 1}])
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_are_readable_as_they_stand_and_by_others(tmp_path: Path):
    umask = os.umask(0o022)
    try:
        write_jsonl(tmp_path / "a.jsonl", [{"text": "Größe 44 ⛵"}])
        write_json(tmp_path / "b.json", {"text": "Größe 44 ⛵"})
        append_jsonl(tmp_path / "c.jsonl", [{"text": "Größe 44 ⛵"}])
    finally:
        os.umask(umask)
    for file in tmp_path.iterdir():
        assert "Größe 44 ⛵" in file.read_text(encoding="utf-8")
        assert file.stat().st_mode & 0o777 == 0o644
    assert read_json(tmp_path / "b.json") == {"text": "Größe 44 ⛵"}
