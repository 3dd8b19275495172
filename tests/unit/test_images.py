from __future__ import annotations

import base64
import io
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from proxy.errors import InvalidRequest
from proxy.images import MAX_URL_CHARS, check_data_url, check_image

WHERE = "messages[0].content[1]"


def encoded(format_: str, size: tuple[int, int] = (8, 6), mode: str = "RGB", **options: object):
    output = io.BytesIO()
    Image.new(mode, size, 0 if mode in ("P", "I;16") else "red").save(output, format_, **options)
    return output.getvalue()


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def decoded(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def refused(url: str, detail: object = None) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        check_data_url(url, detail, WHERE)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("detail", [None, "auto", "high", "original", "low"])
def test_good_image_comes_back_unchanged(name: str, detail: str | None):
    url = data_url(encoded(name.upper()), f"image/{name}")

    assert check_data_url(url, detail, WHERE) == url


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_kind_of_png_is_taken(mode: str):
    url = data_url(encoded("PNG", mode=mode))

    assert check_data_url(url, None, WHERE) == url


@pytest.mark.parametrize("label", ["image/jpeg", "image/jpg", "IMAGE/GIF"])
def test_wrong_label_is_corrected_from_the_bytes(label: str):
    data = encoded("PNG")

    assert check_data_url(data_url(data, label), None, WHERE) == data_url(data, "image/png")


def test_phones_jpeg_with_a_second_picture_is_a_jpeg():
    data = encoded("MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))])

    assert check_data_url(data_url(data), None, WHERE) == data_url(data, "image/jpeg")


@pytest.mark.parametrize("format_", ["GIF", "WEBP"])
def test_animation_becomes_its_first_picture(format_: str):
    data = encoded(format_, save_all=True, append_images=[Image.new("RGB", (8, 6), "blue")])
    still = decoded(check_image(data, None, WHERE))

    assert (still.format, still.size) == ("PNG", (8, 6))
    red, _, blue = still.convert("RGB").getpixel((0, 0))  # type: ignore[misc]
    assert red > 200 > 50 > blue


def test_damage_behind_the_first_picture_of_a_gif_does_no_harm():
    data = encoded("GIF", save_all=True, append_images=[Image.new("RGB", (8, 6), "blue")])

    assert decoded(check_image(data[:-9] + b"\xff" * 9, None, WHERE)).size == (8, 6)


def test_wrapped_base64_is_joined():
    data = encoded("PNG")
    wrapped = "data:image/png;base64," + base64.encodebytes(data).decode()

    assert check_data_url(wrapped, None, WHERE) == data_url(data)


def test_loose_end_of_base64_is_written_strictly():
    data = encoded("PNG")
    data += b"\0" * (4 - len(data) % 3)  # two pad characters at the end
    strict = data_url(data)
    assert strict.endswith("A==")

    assert check_data_url(strict[:-3] + "B==", None, WHERE) == strict


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("", "invalid_image_url"),
        ("hello", "invalid_image_url"),
        ("file:///etc/passwd", "invalid_image_url"),
        ("https://example.com/a.png", "invalid_image_url"),
        ("http://example.com/a.png", "invalid_image_url"),
        ("data:image/png,abc", "invalid_image_url"),
        ("data:image/svg+xml;base64,PHN2Zy8+", "unsupported_image_media_type"),
        ("data:;base64,AAAA", "unsupported_image_media_type"),
        ("data:image/png;base64,AAA", "invalid_base64_image"),
        ("data:image/png;base64,\N{SNOWMAN}", "invalid_base64_image"),
        ("data:image/png;base64,", "empty_image_file"),
        (data_url(b"not an image"), "image_parse_error"),
        (data_url(encoded("BMP")), "image_parse_error"),
        (data_url(encoded("PNG", (64, 64))[:-20]), "image_parse_error"),
        (data_url(encoded("JPEG", (640, 640))[:-60]), "image_parse_error"),
        (data_url(encoded("GIF", (64, 64))[:30]), "image_parse_error"),
        (data_url(encoded("WEBP", (64, 64))[:-20]), "image_parse_error"),
        (data_url(png_header(0, 0)), "image_parse_error"),
        (data_url(png_header(8000, 8000)), "image_too_large"),
        (data_url(png_header(10_000, 10_000)), "image_too_large"),  # Pillow's warning
        (data_url(png_header(60_000, 60_000)), "image_too_large"),  # Pillow's error
        ("data:image/png;base64," + "A" * MAX_URL_CHARS, "image_file_too_large"),
    ],
    ids=lambda value: value[:40],
)
@pytest.mark.parametrize("detail", [None, "low"])
def test_bad_image_is_refused(url: str, code: str, detail: str | None):
    error = refused(url, detail)

    assert (error.code, error.param) == (code, f"{WHERE}.image_url.url")


def test_remote_url_is_told_that_data_urls_are_taken():
    assert "does not download" in refused("HTTPS://example.com/a.png").message


@pytest.mark.parametrize("cut", [1, 12, 14, 20])
def test_png_without_its_end_is_refused_since_codex_would_drop_it(cut: int):
    assert refused(data_url(encoded("PNG")[:-cut])).code == "image_parse_error"


@pytest.mark.parametrize("place", [-1, -14])  # the end's checksum, the pixels' checksum
def test_png_with_a_wrong_checksum_is_refused_since_codex_would_drop_it(place: int):
    damaged = bytearray(encoded("PNG"))
    damaged[place] ^= 1

    assert refused(data_url(bytes(damaged))).code == "image_parse_error"


@pytest.mark.parametrize("length", [b"\0\0", b"\0\1", b"\xff\xff"])
def test_jpeg_with_a_broken_header_is_refused_since_codex_would_drop_it(length: bytes):
    picture = encoded("JPEG")

    error = refused(data_url(picture[:4] + length + picture[6:]))

    assert error.code == "image_parse_error"


def test_png_of_endless_chunks_is_refused():
    picture = encoded("PNG")
    chunk = picture[-12:-8] + b"abCd" + struct.pack(">I", zlib.crc32(b"abCd"))

    assert refused(data_url(picture[:33] + chunk * 20_000 + picture[33:])).code


def test_jpeg_of_endless_scans_is_refused():
    picture = encoded("JPEG", progressive=True)
    start = picture.index(b"\xff\xda")
    bomb = picture[:start] + picture[start:-2] * 200 + picture[-2:]

    assert refused(data_url(bomb)).code == "image_parse_error"


@pytest.mark.parametrize(
    ("detail", "code"), [("LOW", "invalid_value"), ("", "invalid_value"), (1, "invalid_type")]
)
def test_unknown_detail_is_refused(detail: object, code: str):
    error = refused(data_url(encoded("PNG")), detail)

    assert (error.code, error.param) == (code, f"{WHERE}.image_url.detail")


@pytest.mark.parametrize(
    ("data", "format_"),
    [
        (encoded("PNG", (1600, 800)), "PNG"),
        (encoded("PNG", (1600, 800), "P"), "PNG"),
        (encoded("GIF", (1600, 800)), "PNG"),
        (encoded("WEBP", (1600, 800)), "PNG"),
        (encoded("JPEG", (1600, 800)), "JPEG"),
        (encoded("JPEG", (1600, 800), "CMYK"), "JPEG"),
    ],
)
def test_low_detail_scales_down_into_512_pixels(data: bytes, format_: str):
    small = decoded(check_image(data, "low", WHERE))

    assert (small.format, small.size) == (format_, (512, 256))


def test_low_detail_keeps_transparency():
    small = decoded(check_image(encoded("PNG", (1600, 800), "RGBA"), "low", WHERE))

    assert small.mode == "RGBA"


def test_low_detail_keeps_a_photo_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by a quarter
    small = decoded(check_image(encoded("JPEG", (1600, 800), exif=exif), "low", WHERE))

    assert small.size == (256, 512)


def test_low_detail_leaves_sixteen_bit_grey_as_it_is():
    data = encoded("PNG", (1600, 800), "I;16")

    assert check_image(data, "low", WHERE) == data_url(data)


@settings(max_examples=200, deadline=None)
@given(
    head=st.sampled_from(["", "data:", "data:image/png;base64,", "data:image/gif;base64,"]),
    text=st.text(st.characters(exclude_categories=())),
    detail=st.one_of(st.none(), st.text(), st.integers(), st.just("low")),
)
def test_any_text_is_taken_or_refused(head: str, text: str, detail: object):
    try:
        assert check_data_url(head + text, detail, WHERE).startswith("data:image/")
    except InvalidRequest:
        pass


@settings(max_examples=300, deadline=None)
@given(
    data=st.sampled_from(
        [encoded(name, (40, 30)) for name in ("PNG", "JPEG", "GIF", "WEBP")]
        + [encoded("PNG", (700, 30), "P"), encoded("JPEG", (700, 30), progressive=True)]
    ),
    place=st.integers(0, 2000),
    noise=st.binary(max_size=12),
    detail=st.sampled_from([None, "low"]),
)
def test_any_damage_is_taken_or_refused(data: bytes, place: int, noise: bytes, detail: str | None):
    place %= len(data)
    damaged = data[:place] + noise + data[place + len(noise) :]
    try:
        assert check_image(damaged, detail, WHERE).startswith("data:image/")
    except InvalidRequest:
        pass
