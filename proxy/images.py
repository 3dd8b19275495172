"""Images in messages: what a caller sent, checked before Codex sees it. Pure, but for Pillow.

Codex never complains about an image: one that it cannot decode, and any image at all with
`detail: low`, becomes a sentence of text in the prompt, and the model answers without having seen
it. So an image is decoded here first, and `detail` never reaches Codex:

    null, auto, high, original   the image goes as it came; Codex itself asks for `high`, or says
                                 nothing of it, as the model has it
    low                          the image is scaled down into 512 x 512 pixels, which is what
                                 OpenAI's low means: the caller wants few tokens, and gets few

Everything here is CPU work: up to seconds, and some 300 MB for a picture at the limits. The
functions are synchronous for that reason; call them in a thread, and only a few at a time.
"""

from __future__ import annotations

import base64
import binascii
import io
import re

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

DETAILS = ("auto", "low", "high", "original")
MEDIA_TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",  # a JPEG with more pictures behind the first, as many phones write it
    "GIF": "image/gif",
    "WEBP": "image/webp",
}
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
    such as `messages[0].content[1]`. The image's bytes come back unchanged, unless `detail` is
    low; the media type is that of the bytes, whatever the label said. Of an animation the first
    picture is looked at. Blocks for as long as decoding takes: call it in a thread. Raises
    InvalidRequest, and nothing else whatever the bytes are.
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
    except _TooManyPixels as error:
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
    """Decode the first picture wholly; return its media type, and a smaller copy if wanted."""
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "GIF", "WEBP")) as image:
        media_type = MEDIA_TYPES[str(image.format)]
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise _TooManyPixels
        if media_type == "image/jpeg" and data.count(b"\xff\xda") > MAX_JPEG_SCANS:
            raise ValueError("more scans than any encoder writes")
        if scale_down and max(width, height) > LOW_SIDE_PX:
            return _scale_down(image, media_type)
        # JPEG alone can be read to its end, and so be checked, without building all pixels.
        image.draft(None, (1, 1))
        image.load()
    return media_type, None


def _scale_down(image: Image.Image, media_type: str) -> tuple[str, bytes]:
    """Return a copy that fits the box of `detail: low`, turned as its EXIF data says."""
    photo = media_type == "image/jpeg"
    small: Image.Image = image
    if not photo:
        small = image.convert("RGBA" if image.has_transparency_data else "RGB")
    small.thumbnail((LOW_SIDE_PX, LOW_SIDE_PX))
    small = ImageOps.exif_transpose(small)
    output = io.BytesIO()
    if photo:
        small.convert("RGB").save(output, "JPEG", quality=90)
    else:
        small.save(output, "PNG")
    return ("image/jpeg" if photo else "image/png"), output.getvalue()


def _too_many_bytes(param: str) -> InvalidRequest:
    return InvalidRequest(
        f"The image is too large: at most {MAX_BYTES // 1_000_000} MB, "
        f"or {MAX_URL_CHARS // 1_000_000} MB as a data URL.",
        param=param,
        code="image_file_too_large",
    )
