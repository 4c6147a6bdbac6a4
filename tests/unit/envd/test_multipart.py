"""The multipart parser: the same events however the body is cut, and nothing taken for complete."""

from itertools import pairwise

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opene2b.core.errors import InvalidArgument
from opene2b.envd.multipart import MultipartParser, PartBegin, PartData, PartEnd, boundary_of


def files_in(*chunks: bytes, boundary: str = "XX") -> list[tuple[PartBegin, bytes]]:
    parser = MultipartParser(boundary)
    files: list[tuple[PartBegin, bytes]] = []
    begin, content, ended = PartBegin(name=None, filename=None), b"", 0
    for chunk in chunks:
        for event in parser.feed(chunk):
            match event:
                case PartBegin():
                    begin, content = event, b""
                case PartData(data=data):
                    content += data
                case PartEnd():
                    files.append((begin, content))
                    ended += 1
    parser.close()
    return files


def body(*parts: tuple[str, bytes], boundary: str = "XX") -> bytes:
    out = b""
    for disposition, content in parts:
        head = f"--{boundary}\r\nContent-Disposition: {disposition}\r\n\r\n"
        out += head.encode("utf-8", "surrogateescape") + content + b"\r\n"
    return out + f"--{boundary}--\r\n".encode()


def filename_in(disposition: str) -> str | None:
    return files_in(body((f"form-data; {disposition}", b"")))[0][0].filename


@given(
    contents=st.lists(st.binary(max_size=60) | st.text("\r\n-X", max_size=30).map(str.encode)),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)
def test_content_comes_out_whole_however_the_body_is_cut(
    contents: list[bytes], cuts: list[int]
) -> None:
    contents = [content for content in contents if b"\r\n--XX" not in b"\r\n" + content + b"\r\n"]
    data = body(*(('form-data; name="file"; filename="f"', content) for content in contents))
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    chunks = [data[a:b] for a, b in pairwise(edges)]

    assert [content for _, content in files_in(*chunks)] == contents


@given(cut=st.integers(0, 10_000))
def test_a_body_cut_short_is_an_error(cut: int) -> None:
    data = body(('form-data; name="file"; filename="f"', b"abc"), ("form-data; name=x", b"d"))
    end = data.rindex(b"--XX--") + len(b"--XX--")

    with pytest.raises(InvalidArgument):
        files_in(data[: cut % end])


@given(st.binary(max_size=300))
def test_rubbish_is_an_error_and_nothing_worse(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        files_in(data.replace(b"--XX", b""))


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ('name="file"; filename="/home/user/a b.txt"', "/home/user/a b.txt"),
        ("name=file; filename=plain.txt", "plain.txt"),
        (r'filename="say \"hi\".txt"', 'say "hi".txt'),
        (r'filename="back\\slash"', "back\\slash"),
        (r'filename="C:\dir\file"', r"C:\dir\file"),
        ('filename="a%22b%0D%0A"', 'a"b\r\n'),
        ('filename="100%25 a%20b"', "100%25 a%20b"),
        ('filename="semi;colon=1"', "semi;colon=1"),
        ('filename="ünï"', "ünï"),
        ('filename="\udcff"', "\udcff"),
        ("filename=\"x\"; filename*=UTF-8''%c3%a9%2F1", "é/1"),
        ("name=file", None),
    ],
)
def test_file_names_mean_what_clients_meant(sent: str, meant: str | None) -> None:
    assert filename_in(sent) == meant


def test_names_of_parts_are_told() -> None:
    data = body(('form-data; name="file"; filename="f"', b"1"), ('form-data; name="x"', b"2"))

    assert [begin.name for begin, _ in files_in(data)] == ["file", "x"]


def test_preamble_padding_and_epilogue_are_skipped() -> None:
    data = b"hello\r\n--XX \t\r\nContent-Disposition: form-data; name=file\r\n\r\nc\r\n--XX--bye"

    assert [content for _, content in files_in(data)] == [b"c"]


def test_a_part_without_headers_has_no_name() -> None:
    assert files_in(b"--XX\r\n\r\nc\r\n--XX--") == [(PartBegin(name=None, filename=None), b"c")]


def test_endless_headers_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="too large"):
        files_in(b"--XX\r\nA: " + b"x" * 20_000)


def test_an_endless_preamble_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="no boundary"):
        files_in(b"x" * 40_000)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary="a\r\nb"',
        "multipart/form-data; boundary=" + "x" * 71,
    ],
)
def test_an_unusable_content_type_is_refused(content_type: str) -> None:
    with pytest.raises(InvalidArgument):
        boundary_of(content_type)


def test_a_quoted_boundary_is_unquoted() -> None:
    assert boundary_of('Multipart/Form-Data; charset=utf-8; Boundary="a b:c"') == "a b:c"


@given(names=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="%")), min_size=1))
def test_file_names_sent_by_httpx_arrive(names: list[str]) -> None:
    # Control characters but for line ends are sent as %XX, which nothing tells from a real %XX.
    names = ["".join(letter for letter in name if letter >= " ") or "f" for name in names]
    files = [("file", (name, b"content")) for name in names]
    request = httpx.Request("POST", "http://localhost/files", files=files)
    boundary = boundary_of(request.headers["content-type"])

    parts = files_in(request.read(), boundary=boundary)

    assert [begin.filename for begin, _ in parts] == names
