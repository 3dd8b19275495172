"""Images in messages: what a caller sent, checked before Codex sees it. Pure, but for Pillow.

Codex never complains about an image: one that it cannot decode, and any image at all with
`detail: low`, becomes a sentence of text in the prompt, and the model answers without having seen
it. So an image is decoded here first, and `detail` never reaches Codex:

    null, auto, high, original   the image goes as it came; Codex itself asks for `high`, or says
                                 nothing of it, as the model has it
    low                          the image is scaled down into 512 x 512 pixels, which is what
                                 OpenAI's low means: the caller wants few tokens, and gets few

A GIF goes as a PNG of its first picture. Codex would do the same, but it reads past that picture,
and loses all of it to damage further on. So it is with an animated WebP.

Everything here is CPU work: about a second and 400 MB for a picture at the limits, twice the memory
for a WebP. The functions are synchronous for that reason; call them in a thread, and only a few at
a time.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import zlib

from PIL import Image, ImageOps

from proxy.errors import InvalidRequest

MAX_URL_CHARS = 20_000_000
MAX_BYTES = (MAX_URL_CHARS - 64) // 4 * 3
"""The largest image whose data URL stays within MAX_URL_CHARS."""
MAX_PIXELS = 50_000_000
LOW_SIDE_PX = 512
MAX_JPEG_SCANS = 100
"""Cameras write one scan and progressive encoders about ten. Each may be a few bytes and still
costs a walk over the whole picture, so a file of thousands would keep a core busy for minutes."""
MAX_JPEG_SEGMENTS = 2_000
MAX_PNG_CHUNKS = 20_000
"""Pillow walks over segments and chunks in Python: a million empty ones took it 14 seconds."""

DETAILS = ("auto", "low", "high", "original")
MEDIA_TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",  # a JPEG with more pictures behind the first, as many phones write it
    "GIF": "image/gif",
    "WEBP": "image/webp",
}
SENT_SIDE_PX = 2048
"""Codex itself makes larger pictures smaller, down to this side."""
SIXTEEN_BITS = ("I", "I;16")
"""Grey pictures that Pillow would clip rather than convert: they stay as large as they are."""
# A wrong label is corrected from the bytes, but one of no image at all is a mistake to be told of.
ACCEPTED_LABELS = {*MEDIA_TYPES.values(), "image/jpg"}
HEAD = re.compile(r"data:([^;,]*);base64,", re.IGNORECASE)
NOT_A_DATA_URL = (
    "Expected a data URL with a base64-encoded image, such as 'data:image/png;base64,...'."
)
NO_REMOTE_URLS = f"This server does not download images. {NOT_A_DATA_URL}"


def check_data_url(url: str, detail: object, where: str) -> str:
    """Return the data URL to give to Codex for an `image_url` part; give it no `detail`.

    `url` and `detail` are the caller's, and `where` is the part's place for the error's `param`,
    such as `messages[0].content[1]`. The bytes of PNG, JPEG and still WebP come back unchanged,
    unless `detail` is low; the media type is that of the bytes, whatever the label said. A GIF and
    an animation become a PNG of their first picture. Blocks for as long as decoding takes: call it
    in a thread. Raises InvalidRequest, and nothing else whatever the bytes are.
    """
    return check_image(_decode_url(url, f"{where}.image_url.url"), detail, where)


def check_image(data: bytes, detail: object, where: str) -> str:
    """Return the data URL of an image that came as bytes; otherwise like `check_data_url`."""
    param = f"{where}.image_url.url"
    _check_detail(detail, f"{where}.image_url.detail")
    if not data:
        raise InvalidRequest("The image is empty.", param=param, code="empty_image_file")
    if len(data) > MAX_BYTES:
        raise _too_many_bytes(param)
    try:
        media_type, scaled = _decode(data, scale_down=detail == "low")
    except (_TooManyPixels, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidRequest(
            f"The image is too large: at most {MAX_PIXELS // 1_000_000} million pixels.",
            param=param,
            code="image_too_large",
        ) from error
    except Exception as error:
        # A decoder fed by strangers raises whatever it stumbles over, far from OSError alone.
        raise InvalidRequest(
            "The image could not be decoded. Supported are PNG, JPEG, GIF and WebP.",
            param=param,
            code="image_parse_error",
        ) from error
    # Encoded anew, since Codex's strict decoder refuses spellings that Python's lets pass.
    return f"data:{media_type};base64,{base64.b64encode(scaled or data).decode()}"


class _TooManyPixels(Exception):
    pass


def _check_detail(detail: object, param: str) -> None:
    if detail is None:
        return
    choices = ", ".join(f"'{choice}'" for choice in DETAILS)
    if not isinstance(detail, str):
        raise InvalidRequest(
            f"Invalid type for '{param}': expected one of {choices}.",
            param=param,
            code="invalid_type",
        )
    if detail not in DETAILS:
        raise InvalidRequest(
            f"Invalid value for '{param}': expected one of {choices}.", param=param
        )


def _decode_url(url: str, param: str) -> bytes:
    if len(url) > MAX_URL_CHARS:
        raise _too_many_bytes(param)
    head = HEAD.match(url)
    if head is None:
        remote = url[:8].lower().startswith(("http://", "https://"))
        message = NO_REMOTE_URLS if remote else NOT_A_DATA_URL
        raise InvalidRequest(message, param=param, code="invalid_image_url")
    if head[1].strip().lower() not in ACCEPTED_LABELS:
        raise InvalidRequest(
            "Unsupported media type of the data URL: expected image/png, image/jpeg, image/gif "
            "or image/webp.",
            param=param,
            code="unsupported_image_media_type",
        )
    # Encoders that wrap lines are common, and a space is never part of the data.
    text = "".join(url[head.end() :].split())
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(
            "The data URL is not valid base64.", param=param, code="invalid_base64_image"
        ) from error


def _decode(data: bytes, *, scale_down: bool) -> tuple[str, bytes | None]:
    """Decode the first picture wholly; return its media type, and its bytes if drawn anew."""
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(data)
    elif data.startswith(b"\x89PNG"):
        _check_png(data)
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "GIF", "WEBP")) as image:
        media_type = MEDIA_TYPES[str(image.format)]
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise _TooManyPixels
        if scale_down and max(width, height) > LOW_SIDE_PX and image.mode not in SIXTEEN_BITS:
            return _redraw(image, media_type, LOW_SIDE_PX)
        if media_type == "image/gif" or _is_animated_webp(data):
            return _redraw(image, "image/png", SENT_SIDE_PX)
        # JPEG alone can be read to its end, and so be checked, without building all pixels.
        image.draft(None, (1, 1))
        image.load()
    return media_type, None


def _check_jpeg(data: bytes) -> None:
    """Refuse what Pillow's decoder mends or endures: broken headers, and endless scans."""
    if data.count(b"\xff\xda") > MAX_JPEG_SCANS:
        raise ValueError("more scans than any encoder writes")
    at = 2
    for _ in range(MAX_JPEG_SEGMENTS):
        if data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker == 0xDA:  # the first scan: from here on it is the decoder's
            return
        length = int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xFF:  # a fill byte
            at += 1
        elif length < 2:
            break
        else:
            at += 2 + length
    raise ValueError("a header segment is broken")


def _check_png(data: bytes) -> None:
    """Refuse what Pillow's decoder does not look at once it has all pixels, and Codex's does."""
    at = 8
    for _ in range(MAX_PNG_CHUNKS):
        kind = data[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(data[at : at + 4])
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            break  # damaged, or cut off
        if kind == b"IEND" and end <= len(data):
            return
        at = end
    raise ValueError("a chunk is damaged, the end is missing, or far too many chunks away")


def _is_animated_webp(data: bytes) -> bool:
    return data[12:16] == b"VP8X" and len(data) > 20 and data[20] & 0b10 != 0


def _redraw(image: Image.Image, media_type: str, side_px: int) -> tuple[str, bytes]:
    """Return the first picture, at most that wide and high, turned as its EXIF data says."""
    output = io.BytesIO()
    if media_type == "image/jpeg":
        image.thumbnail((side_px, side_px))
        ImageOps.exif_transpose(image).convert("RGB").save(output, "JPEG", quality=90)
        return "image/jpeg", output.getvalue()
    mode = "RGBA" if image.has_transparency_data else "RGB"
    drawn = image if image.mode == mode else image.convert(mode)  # a palette cannot be averaged
    drawn.thumbnail((side_px, side_px))
    ImageOps.exif_transpose(drawn).save(output, "PNG")
    return "image/png", output.getvalue()


def _too_many_bytes(param: str) -> InvalidRequest:
    return InvalidRequest(
        f"The image is too large: at most {MAX_BYTES / 1_000_000:.0f} MB, "
        f"or {MAX_URL_CHARS // 1_000_000} MB as a data URL.",
        param=param,
        code="image_file_too_large",
    )
