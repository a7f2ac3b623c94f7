"""A form is passed on as its client sends it, and of all that it holds only the field `model` is read.

Pure but for the `Upload`, which takes pieces from whoever reads the client's connection.
"""

from collections.abc import AsyncIterator
from email.message import Message

MAX_SEARCHED_BYTES = 64 << 10
"""How much of a form is held while its model is looked for. OpenAI's clients write plain fields before files,
curl in the order of its arguments: a model behind a longer file is not found, and counts as not given."""

MAX_MODEL_BYTES = 4096
"""The longest value of the field."""

MAX_BOUNDARY_CHARS = 70
"""RFC 2046 section 5.1.1."""


def boundary_of(content_type: str) -> str | None:
    """The boundary of a multipart form; None for any other type, or for a boundary that cannot be one."""
    message = Message()
    message["Content-Type"] = content_type
    boundary = _param(message, "boundary", "content-type")
    if message.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        return None
    return boundary if 0 < len(boundary) <= MAX_BOUNDARY_CHARS and boundary.isascii() else None


def _param(message: Message, name: str, header: str) -> object:
    """A parameter of a header; None if the header has none, or if its parameters cannot be read: numbers of
    pieces (`name*0`) may have more digits than Python reads.
    """
    try:
        return message.get_param(name, header=header)
    except ValueError:
        return None


class ModelField:
    """Looks for the field in the beginning of a form that grows."""

    def __init__(self, boundary: str) -> None:
        self._mark = b"--" + boundary.encode("ascii")
        self._part = -1
        """Where the mark before the part begins that is not yet complete; -1 before the first mark."""
        self.value: str | None = None
        self.is_over = False
        """Whether there is nothing more to look for."""

    def look(self, data: bytes | bytearray) -> None:
        """Look through the form up to here; `data` is all of it from its beginning."""
        if self._part < 0:
            self._part = data.find(self._mark)
            if self._part < 0:
                return
        while not self.is_over:
            after = self._part + len(self._mark)
            if data[after : after + 2] == b"--":
                self.is_over = True
                return
            end = data.find(b"\r\n" + self._mark, after)
            if end < 0:
                return
            self._read(bytes(data[after:end]) if end - after <= MAX_SEARCHED_BYTES else b"")
            self._part = end + 2

    def _read(self, part: bytes) -> None:
        head, found, value = part.partition(b"\r\n\r\n")
        if not found or len(value) > MAX_MODEL_BYTES:
            return
        message = Message()
        for line in head.split(b"\r\n"):
            name, _, said = line.partition(b":")
            if name.strip().lower() == b"content-disposition":
                message["Content-Disposition"] = said.strip().decode("latin-1")
        named = _param(message, "name", "content-disposition")
        is_file = _param(message, "filename", "content-disposition") is not None
        if named == "model" and not is_file:
            self.value = value.decode("utf-8", "replace")
            self.is_over = True


class Upload:
    """A body that is passed on as it arrives. Once any of it was sent it cannot be sent again."""

    def __init__(
        self, content_type: str, size_bytes: int | None, held: bytes, rest: AsyncIterator[bytes]
    ) -> None:
        """`size_bytes`: its length, None if the client does not say; `held`: what was read of it already;
        `rest`: what follows, at the client's pace.
        """
        self.content_type = content_type
        self.size_bytes = size_bytes
        self._held = held
        self._rest = rest
        self.has_begun = False
        """Whether any of it was sent, or could have been."""

    async def pieces(self) -> AsyncIterator[bytes]:
        """All of it, once. Raises what reading from the client raises."""
        if self.has_begun:
            raise RuntimeError("an upload is sent once")
        self.has_begun = True
        if self._held:
            yield self._held
        async for piece in self._rest:
            if piece:
                yield piece
