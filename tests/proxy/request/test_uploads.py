"""The model of a form is found wherever its beginning is cut, and nothing else is taken for it."""

import pytest

from proxy.request.uploads import ModelField, boundary_of


def part(head: bytes, value: bytes) -> bytes:
    return b"--b\r\n" + head + b"\r\n\r\n" + value + b"\r\n"


NAMED = part(b'Content-Disposition: form-data; name="model"', b"tiny")
UNQUOTED = part(b"content-type: text/plain\r\nCONTENT-DISPOSITION: form-data;name=model", b"tiny")
FILE = part(b'Content-Disposition: form-data; name="file"; filename="model"', b'name="model"\r\n\r\nother')
FILE_OF_THAT_NAME = part(b'Content-Disposition: form-data; name="model"; filename="x"', b"other")
ODD = part(b"no colon", b"other")
END = b"--b--\r\n"


@pytest.mark.parametrize(
    ("form", "model"),
    [
        (NAMED + END, "tiny"),
        (UNQUOTED + END, "tiny"),
        (b"preamble\r\n" + FILE + NAMED + END, "tiny"),
        (FILE + FILE_OF_THAT_NAME + ODD + END, None),
        (END + NAMED, None),
        (NAMED, None),  # it is not complete
        (part(b'Content-Disposition: form-data; name="model"', b"x" * 5000) + END, None),
        (b"", None),
        (
            part(b"Content-Disposition: form-data; name*" + b"1" * 5000 + b"=model", b"other") + NAMED + END,
            "tiny",
        ),
    ],
)
def test_the_model_is_the_plain_field_of_that_name(form: bytes, model: str | None) -> None:
    for step in (1, 7, max(1, len(form))):
        field = ModelField("b")
        for end in range(step, len(form) + step, step):
            field.look(form[:end])
        assert field.value == model


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=b", "b"),
        ('Multipart/Form-Data; charset=utf-8; boundary="a b"', "a b"),
        ("multipart/form-data", None),
        ("multipart/form-data; boundary=", None),
        ("multipart/form-data; boundary=" + "b" * 71, None),
        ("multipart/mixed; boundary=b", None),
        ("application/json", None),
        ("", None),
        ("multipart/form-data; boundary*" + "1" * 5000 + "=b", None),
    ],
)
def test_a_form_names_its_boundary(content_type: str, boundary: str | None) -> None:
    assert boundary_of(content_type) == boundary
