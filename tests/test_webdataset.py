"""Test sets in WebDataset's tar files."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_files import assert_refused, samples_of, tar_of

from lipdeploy.datasets import scan_test_set
from lipdeploy.errors import DatasetError, ImageError

Cli = Callable[..., tuple[int, str, str]]
blobs = st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=40)


names = st.text(
    st.characters(exclude_characters="/.\0", exclude_categories=["Cs"]), min_size=1, max_size=60
)


@settings(max_examples=50)
@given(made=blobs, keys=st.lists(names, min_size=40, max_size=40, unique=True))
def test_whatever_the_names_in_a_tar_file_its_images_are_read(
    tmp_path_factory: pytest.TempPathFactory, made: list[bytes], keys: list[str]
) -> None:
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    files = []
    for index, (key, image) in enumerate(zip(keys, made, strict=False)):
        stem = f"./{index}/{key}"  # keys of one sample must not be those of the next
        files += [(f"{stem}.png", image), (f"{stem}.seg.png", b"x"), (f"{stem}.CLS", b" a b\n")]
    path.write_bytes(tar_of([("README.md", b"hi"), ("__meta__", b"{}"), *files, ("._0.jpg", b"")]))
    images = scan_test_set(str(path))
    assert (images.classes, len(images)) == (("a b",), len(made))
    assert [source.read() for source in images.sources] == made
    assert [source.name for source in images.sources] == [
        f"{path}/{name}" for name, _ in files[::3]
    ]


@given(made=blobs, data=st.data())
def test_a_tar_file_that_was_cut_off_is_refused_and_never_taken_for_a_smaller_one(
    tmp_path_factory: pytest.TempPathFactory, made: list[bytes], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    whole = tar_of(samples_of(made, ["a"] * len(made)))
    # A header and what is in it, in blocks of 512 bytes, for each image and each label.
    end = sum(512 + 512 * -(-len(image) // 512) + 1024 for image in made)
    path.write_bytes(whole[: data.draw(st.integers(0, end + 511) | st.just(end), "refused")])
    with pytest.raises(DatasetError, match=r"cut off|not a readable tar file|no class, expected"):
        scan_test_set(str(path))
    path.write_bytes(whole[: data.draw(st.integers(end + 512, len(whole)), "read")])
    images = scan_test_set(str(path))
    assert [source.read() for source in images.sources] == made


def with_member(kind: bytes, size: int = 0) -> bytes:
    member = tarfile.TarInfo("0.jpg")
    member.type, member.size, member.linkname = kind, size, "/etc/passwd"
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def pax_header(kind: bytes, fields: dict[str, str]) -> bytes:
    """The blocks of such a header, as tarfile writes them."""
    return bytes(tarfile.TarInfo._create_pax_generic_header(fields, kind, "utf-8"))


TWO = samples_of([b"x", b"y"], ["a", "b"])
NUMBERED = samples_of([b"x", b"y"], [0, 1])
MANY = {f"k{number}": "" for number in range(70_000)}


REFUSED = [
    (b"", "not a readable tar file"),
    (b"no image", "not a readable tar file"),
    (tar_of([]), "no samples, expected files as 0000.jpg"),
    (tar_of([("a.txt", b"hi")]), "no samples"),
    (with_member(tarfile.SYMTYPE), "'0.jpg' is a link or a device"),
    (with_member(tarfile.LNKTYPE), "'0.jpg' is a link or a device"),
    (with_member(tarfile.CHRTYPE), "'0.jpg' is a link or a device"),
    (with_member(tarfile.GNUTYPE_SPARSE), "'0.jpg' is a link or a device"),
    (with_member(tarfile.REGTYPE, 1 << 50), "'0.jpg' is cut off"),
    (with_member(tarfile.REGTYPE, -4096), "an impossible place or size"),
    (with_member(tarfile.GNUTYPE_LONGNAME, 1 << 40), r"header of \d+ bytes"),
    (with_member(tarfile.XHDTYPE, -1 << 40), r"header of -\d+ bytes"),
    (pax_header(tarfile.XGLTYPE, MANY) + tar_of(TWO), r"not a readable .*header of \d+ bytes"),
    (pax_header(tarfile.XGLTYPE, {"path": "x.jpg"}) + tar_of(TWO), "one path for all of its files"),
    (tar_of(TWO[:2]) + tar_of(TWO[2:]), "ends at byte 2,048, but more follows; if it is several"),
    (tar_of(TWO) + b"x", "ends at byte 4,096, but more follows"),
    (tar_of(TWO)[:2048] + bytes(512) + tar_of(TWO)[2560:], "ends at byte 2,048, but more"),
    (tar_of(TWO).replace(b"0001.jpg", b"1.jpg___"), r"not a readable .*bad checksum"),
    (tar_of(TWO[:-1]), "0001.jpg: no class, expected a file ending in cls, txt, json"),
    (tar_of([*TWO, ("2.cls", b"a")]), r"2: no images \(files ending in 'cls'\)"),
    (tar_of([*TWO, ("0001.png", b"a")]), "0001: 2 images"),
    (tar_of([*TWO, ("2.npy", b""), ("2.cls", b"a")]), "2: no images .*'npy, cls'"),
    (tar_of([*TWO, TWO[-1]]), "0001: two files of one name"),
    (tar_of(samples_of([b"x"], [3])), "class 3 is a number that nothing names; put clas"),
    (
        tar_of([*samples_of([b"x"], [3]), ("classes.txt", b"a\nb\n")]),
        "class 3, but classes.txt names 0 to 1",
    ),
    (
        tar_of([*TWO, ("x/classes.txt", b"a"), ("y/classes.txt", b"b")]),
        "several classes.txt that differ",
    ),
    (
        tar_of([*NUMBERED, ("classes.txt", b"\na\nb\n")]),
        "classes.txt: line 1 is empty, expected the name of class 0",
    ),
    (tar_of([*NUMBERED, ("classes.txt", b"a\nb\n \r\n")]), "classes.txt: line 3 is empty"),
    (tar_of([*NUMBERED, ("classes.txt", b"")]), "classes.txt: line 1 is empty"),
    (tar_of([*NUMBERED, ("classes.txt", b"a\x0cb\nc")]), "classes.txt: .* is no name of a class"),
    (
        tar_of([*NUMBERED, ("classes.txt", "a\u2028b\nc".encode())]),
        "classes.txt: .* is no name of a class; write a name a line",
    ),
    (tar_of([*NUMBERED, ("classes.txt", b"a\na")]), "classes.txt: two classes of one name"),
    (tar_of([("0.jpg", b""), ("0.cls", b"\xff")]), "0.cls: not text in UTF-8"),
    (tar_of([("0.jpg", b""), ("0.cls", b" ")]), "0.cls: no class, expected its name"),
    (tar_of([("0.jpg", b""), ("0.cls", b"a" * 2_000_000)]), "more than 1,048,576 bytes"),
    (tar_of([("0.jpg", b""), ("0.cls", b"a\nb")]), "is no name of a class; change it"),
    (tar_of(samples_of([b"x"], ["[1]"], "json")), "or an object with class_name or cl"),
    (tar_of(samples_of([b"x"], ['{"label": true}'], "json")), "no class, expected its"),
    (tar_of(samples_of([b"x"], ["{"], "json")), "no class, expected its name"),
]


@pytest.mark.parametrize(("data", "message"), REFUSED, ids=[row[1][:40] for row in REFUSED])
def test_files_that_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    assert_refused(tmp_path / "a.tar", data, message)


def test_lines_name_the_classes_from_0_on_however_they_end(tmp_path: Path) -> None:
    for text in (b"a\nb", b"a\nb\n", b"\xef\xbb\xbfa\r\nb\r\n", b" a\nb \n"):
        (tmp_path / "a.tar").write_bytes(tar_of([*NUMBERED, ("classes.txt", text)]))
        images = scan_test_set(str(tmp_path / "a.tar"))
        assert (images.classes, list(images.labels)) == (("a", "b"), [0, 1])


def test_a_global_header_is_not_applied_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied: list[int] = []
    apply = tarfile.TarInfo._apply_pax_info

    def counted(member: tarfile.TarInfo, fields: dict[str, str], *others: str) -> None:
        applied.append(len(fields))
        apply(member, fields, *others)

    monkeypatch.setattr(tarfile.TarInfo, "_apply_pax_info", counted)
    fields = {f"k{number}": "" for number in range(1000)} | {"comment": "a commit"}
    samples = tar_of(samples_of([b"x"] * 50, ["a"] * 50))
    (tmp_path / "a.tar").write_bytes(pax_header(tarfile.XGLTYPE, fields) + samples)
    assert len(scan_test_set(str(tmp_path / "a.tar"))) == 50
    # tarfile itself reads the first member once more when it opens the file.
    assert sum(applied) <= 2 * len(fields)


def test_an_image_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.tar").open("wb") as stream:
        member = tarfile.TarInfo("0.jpg")
        member.size = 201 << 20
        stream.write(member.tobuf())
        stream.seek(member.size, 1)
        stream.write(tar_of([("0.cls", b"a")]))
    (source,) = scan_test_set(str(tmp_path / "a.tar")).sources
    with pytest.raises(ImageError, match="larger than 200 MiB"):
        source.read()


def test_files_that_change_while_they_are_read_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of(TWO))
    first, second = scan_test_set(str(path)).sources
    path.write_bytes(tar_of(TWO)[: second.offset])
    assert first.read() == b"x"
    with pytest.raises(ImageError, match="the tar file ends inside of it"):
        second.read()
    path.unlink()
    with pytest.raises(ImageError, match="cannot be read"):
        first.read()
