"""A `Shot` is what one connection sends at once and what may honestly come back; its number and the seed make
it again.

A well-framed shot must be answered, whatever nonsense its fields hold. Of any other it is only asked that
what comes back is HTTP.
"""

import enum
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tests.fuzz.http import values
from tests.fuzz.http.values import chat, completion, mutated, scrambled

NO_STATUSES: frozenset[int] = frozenset()
DEADLINE_HEADER = "X-Request-Timeout-Ms"


class Ending(enum.Enum):
    """What the client does when all is sent."""

    WAIT = "waits for answers"
    HALF_CLOSE = "closes its half of the connection"
    LEAVE = "is gone at once"


@dataclass(frozen=True, slots=True)
class Shot:
    """What is sent over one connection."""

    kind: str
    pieces: tuple[bytes, ...]
    """Each is a write of its own."""
    requests: int = 1
    answers: int | None = None
    """So many must come; None: any number may."""
    ending: Ending = Ending.WAIT
    true_failures: frozenset[int] = NO_STATUSES
    """The 5xx statuses that would be the truth."""
    bodiless: bool = False
    """Answers announce a body and have none (HEAD)."""


@dataclass(frozen=True, slots=True)
class Target:
    """Whom the shots are for."""

    admin_key: str
    spare: str
    """`host:port` of an engine that may come and go."""
    nobody: str
    """`host:port` where nobody listens."""


Headers = Sequence[tuple[str, str]]
JSON: Headers = (("Host", "fuzz"), ("Content-Type", "application/json"))
SENTINEL = b"GET /health HTTP/1.1\r\nHost: fuzz\r\nConnection: close\r\n\r\n"
"""Sent after broken requests: one that was understood in spite of all is then followed by an end, which saves
waiting."""

_GENERATING = ("/v1/completions", "/v1/chat/completions", "/explain")
_SEEING = (
    "/health",
    "/ready",
    "/v1/models",
    "/status",
    "/metrics",
    "/openapi.json",
    "/ping",
    "/load/",
    "/version",
)
_OTHERS_SHARE = 0.2
_HEARING = ("/v1/audio/transcriptions", "/v1/audio/translations")
_ADMIN = ("/instances/add", "/instances/drain", "/instances/remove")


def head(method: str, path: str, headers: Headers, version: str = "HTTP/1.1") -> bytes:
    lines = [f"{method} {path} {version}", *(f"{name}: {value}" for name, value in headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


def post(path: str, body: bytes, headers: Headers = JSON) -> bytes:
    return head("POST", path, [*headers, ("Content-Length", str(len(body)))]) + body


def _headers(rng: random.Random, target: Target, path: str) -> Headers:
    """/explain is asked with the admin key mostly: without it the body would not be read."""
    if path == "/explain" and rng.random() < 0.9:
        return [*JSON, ("X-API-Key", target.admin_key)]
    return JSON


def _right(rng: random.Random) -> tuple[str, bytes]:
    """A path and a body that belong together."""
    if rng.random() < _OTHERS_SHARE:
        path = rng.choice(values.OTHERS)
        return path, json.dumps(values.other(rng, path)).encode()
    path = rng.choice(_GENERATING)
    make = (
        chat if path == "/v1/chat/completions" or (path == "/explain" and rng.random() < 0.5) else completion
    )
    return path, json.dumps(make(rng)).encode()


def _wrong(rng: random.Random) -> tuple[str, bytes]:
    """A path, and a body that is nearly right for it."""
    if rng.random() < _OTHERS_SHARE:
        path = rng.choice(values.OTHERS)
        return path, mutated(rng, values.other(rng, path))
    path = rng.choice(_GENERATING)
    make = chat if rng.random() < 0.5 else completion
    return path, mutated(rng, make(rng))


def _pieces(rng: random.Random, data: bytes, most: int) -> tuple[bytes, ...]:
    cuts = sorted(rng.randrange(len(data)) for _ in range(rng.randrange(1, most)))
    return tuple(data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a != b)


def _body(rng: random.Random, target: Target) -> Shot:
    path, body = _wrong(rng)
    if rng.random() < 0.1:
        path = rng.choice((*_SEEING, *_ADMIN, "/nowhere"))
    return Shot("body structure", (post(path, body, _headers(rng, target, path)),), answers=1)


def _body_bytes(rng: random.Random, target: Target) -> Shot:
    path, body = _right(rng)
    data = post(path, scrambled(rng, body), _headers(rng, target, path))
    return Shot("body bytes", (data,), answers=1)


def _admin(rng: random.Random, target: Target) -> Shot:
    """With the right key only addresses on loopback are named: nothing else may be connected to."""
    path = rng.choice(_ADMIN)
    body: values.Body = {"instance": rng.choice((target.spare, target.spare, target.nobody))}
    if rng.random() < 0.9:
        body["type"] = rng.choice(("prefill", "decode", "both"))
    if rng.random() < 0.2:
        body[rng.choice(("undo", "force"))] = rng.random() < 0.7
    host, _, port = target.nobody.rpartition(":")
    odd: tuple[object, ...] = (
        *(
            None,
            True,
            1,
            1.5,
            "",
            [],
            {},
            "prefill",
            "decode",
            "other",
            "http://",
            ":",
            "127.0.0.1",
            "[::1",
            "a b:1",
        ),
        *(
            f"{host}:0",
            f"{host}:65536",
            f"{host}:x",
            f"{host}:{port}0000000",
            f"https://{target.spare}",
            "[::1]:1",
        ),
        *(f"http://{target.spare}/", f"{target.spare}/x", f"u:p@{target.spare}", f"{target.spare}\r\nX: 1"),
        *(f"{target.nobody}?events=x", f"{target.nobody}?topic=a", f"{target.nobody}?events={'a' * 2000}"),
    )
    known = rng.random() < 0.7
    if rng.random() < 0.4:
        data = json.dumps(body).encode()
    elif known:
        data = _safely_mutated(rng, body, odd)
    else:
        data = mutated(rng, body)
    key = target.admin_key if known else rng.choice(("", "x", target.admin_key + "x", "\u00e9", "a" * 5000))
    headers = [*JSON, ("X-API-Key", key)] if rng.random() < 0.95 else JSON
    return Shot("admin", (post(path, data, headers),), answers=1)


def _safely_mutated(rng: random.Random, body: values.Body, odd: Sequence[object]) -> bytes:
    """Members of an admin body replaced by values that name no other machine."""
    for _ in range(rng.randrange(1, 3)):
        body[rng.choice(("instance", "type", "undo", "force", "more"))] = rng.choice(odd)
    data = json.dumps(body).encode()
    return data[: rng.randrange(len(data))] if rng.random() < 0.1 else data


_ODD_VALUES = (
    *("", " ", "x", "0", "-1", "1", "1.5", "1e9", "nan", "Infinity", "9" * 40, "\t", "a,b", '"q"', ";", "*/*",
    "a" * 9000),
    *("\u00e9", "\udcff\udcfe", "Bearer", "Bearer ", "Bearer x", "Basic eDp5", "Bearer \udcff", "%00",
    "close, x", "127.0.0.1"),
)  # fmt: skip
_ODD_HEADERS = (
    *("Content-Encoding", "Accept", "Accept-Encoding", "Authorization", "X-API-Key", "X-Request-Id",
    "Priority"),
    *("X-data-parallel-rank", "Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "Cookie", "Origin",
    "Referer"),
    *("User-Agent", "Keep-Alive", "Proxy-Authorization", "Range", "If-None-Match", "Via", "traceparent",
    "X-Kvproxy-Decode"),
    *("X-Client", "TE", "Trailer", "Date", "Content-Type", "Content-Language", DEADLINE_HEADER),
)  # fmt: skip
_TYPES = (
    *("text/plain", "application/JSON", "application/json; charset=utf-16", "application/json;", "json",
    "multipart/form-data"),
    *("application/json, text/plain", 'application/json; charset="', "application/problem+json",
    "application/ json", "*/*", ""),
    "multipart/form-data; boundary=x",
)  # fmt: skip


def _fields(rng: random.Random, _target: Target) -> Shot:
    """Header fields whose values are odd, in a frame that is right."""
    path, body = _right(rng) if rng.random() < 0.5 else _wrong(rng)
    headers = [("Host", rng.choice(("fuzz", "fuzz", "", "a:b:c", "[::1]")))]
    content_type = rng.choice(_TYPES) if rng.random() < 0.3 else "application/json"
    headers.append(("Content-Type", content_type))
    count = rng.choice((1, 1, 2, 5, 60))
    headers += [(rng.choice(_ODD_HEADERS), rng.choice(_ODD_VALUES)) for _ in range(count)]
    if rng.random() < 0.1:
        headers.append(("Content-Encoding", rng.choice(("gzip", "br", "identity", "deflate", "gzip, gzip"))))
    true = frozenset({504}) if any(name == DEADLINE_HEADER for name, _ in headers) else NO_STATUSES
    return Shot("header values", (post(path, body, headers) + SENTINEL,), requests=2, true_failures=true)


_ODD_FIELDS = (
    *("A\x00B: 1", "A B: 1", ": 1", "novalue", " folded: 1", "A: 1\r\n folded", "A: 1\n", "A:\x00", "A: \x7f",
    "\u00e9: 1"),
    *("Connection: upgrade\r\nUpgrade: websocket", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c",
    "Connection: close"),
    *("Connection: keep-alive", "Connection: Transfer-Encoding", "Expect: 100-continue", "Expect: 200-ok",
    "A: " + "x" * 70_000),
    *("Host: two", "X" * 70_000 + ": 1", "A: 1\r\n" * 300 + "B: 1", "Transfer_Encoding: chunked",
    "Content-Length : 5"),
)  # fmt: skip


def _field_lines(rng: random.Random, _target: Target) -> Shot:
    """A header that has no right form, or that changes what the connection is."""
    path, body = _right(rng)
    lines = [rng.choice(_ODD_FIELDS) for _ in range(rng.choice((1, 1, 2)))]
    text = f"POST {path} HTTP/1.1\r\nHost: fuzz\r\n" + "\r\n".join(lines)
    text += f"\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    data = text.encode("utf-8", "surrogateescape") + body + SENTINEL
    return Shot("header lines", (data,), requests=2)


_METHODS = (
    *(
        "GET",
        "POST",
        "PUT",
        "DELETE",
        "PATCH",
        "OPTIONS",
        "TRACE",
        "PRI",
        "get",
        "G\x00T",
        "",
        "POST\t",
        "M-SEARCH",
    ),
    *("A" * 5000, "\u00e9", "PROPFIND"),
)
_PATHS = (
    *("/", "//", "/v1", "/v1/", "/v1/completions/", "/v1//completions", "/v1/completions?x=1",
    "/v1/completions#f", "*", ""),
    *("/v1/%63ompletions", "/v1/completions%00", "/%", "/%zz", "/%ff", "/\u00e9", "/a b", "/..", "/../status",
    "/v1/../status"),
    *("http://fuzz/health", "http://127.0.0.1:1/", "http://[::1", "http://", "//evil/health", "fuzz:443",
    "/health?" + "a=b&" * 3000),
    *("/" + "a" * 70_000, "/status?%ff=%00", "/health\x00", "/\udcff", "?x", "health",
    "http://fuzz:99999/health", "/metrics?name[]=x"),
    *_SEEING,
    *_GENERATING,
    *_ADMIN,
)  # fmt: skip
_VERSIONS = ("HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.", "HTTP/11", "http/1.1", "",
             "ICE/1.0", "HTTP/1.1 x")  # fmt: skip


def _line(rng: random.Random, _target: Target) -> Shot:
    body = _right(rng)[1] if rng.random() < 0.3 else b""
    headers = [*JSON, ("Content-Length", str(len(body)))]
    data = head(rng.choice(_METHODS), rng.choice(_PATHS), headers, rng.choice(_VERSIONS)) + body
    return Shot("request line", (data + SENTINEL,), requests=2)


def _heads(rng: random.Random, _target: Target) -> Shot:
    path = rng.choice((*_SEEING, *_GENERATING, "/nowhere"))
    return Shot("HEAD", (head("HEAD", path, JSON),), answers=1, bodiless=True)


_LENGTHS = ("0", "-1", "+5", "5 ", "0x5", "5,5", "5, 6", "1e1", "", "\u0661", "9" * 30, "00005", "5;",
            "70000000", "1" * 5000)  # fmt: skip
_CODINGS = ("chunked", "Chunked", "chunked, chunked", "gzip, chunked", "chunked, gzip", "identity",
            "xchunked", "chunked;x", "\x0bchunked", "")  # fmt: skip


def _framing(rng: random.Random, _target: Target) -> Shot:
    """Lengths and codings that contradict the body, each other or the grammar."""
    path, body = _right(rng)
    headers = list(JSON)
    for _ in range(rng.choice((1, 1, 2))):
        if rng.random() < 0.5:
            near = str(max(0, len(body) + rng.choice((-3, -1, 0, 1, 3, 200))))
            headers.append(("Content-Length", rng.choice((*_LENGTHS, near, near, near))))
        else:
            headers.append(("Transfer-Encoding", rng.choice(_CODINGS)))
    sent = _chunked(rng, body, right=rng.random() < 0.5) if rng.random() < 0.6 else body
    return Shot("framing", (head("POST", path, headers) + sent + SENTINEL,), requests=2)


_SIZES = ("-1", "0x5", "g", "", " 5", "5 ", "ffffffffffffffff", "1" * 40, "5;" + "x" * 70_000, "5\n", "+5",
          "00000000005", "5\x00")  # fmt: skip


def _chunked(rng: random.Random, body: bytes, *, right: bool) -> bytes:
    out = b""
    for piece in _pieces(rng, body, 6):
        extension = rng.choice(("", "", ";a=b", ';a="b;c"', ";x"))
        size = f"{len(piece):{rng.choice('xX')}}"
        out += f"{size}{extension}\r\n".encode() + piece + b"\r\n"
    trailer = rng.choice(("", "", "A: b\r\n", "Content-Length: 5\r\n")) if right else ""
    out += f"0\r\n{trailer}\r\n".encode()
    if right:
        return out
    match rng.randrange(4):
        case 0:
            return f"{rng.choice(_SIZES)}\r\n".encode() + out
        case 1:
            return scrambled(rng, out)
        case 2:
            return out[: rng.randrange(len(out))]
        case _:
            return out.replace(b"\r\n", rng.choice((b"\n", b"\r", b"\r\n\r\n", b" \r\n")), 1)


def _chunks(rng: random.Random, target: Target) -> Shot:
    """A chunked body in a right frame, in several writes."""
    path, body = _right(rng) if rng.random() < 0.5 else _wrong(rng)
    if not body:
        body = b"{}"
    data = head("POST", path, [*_headers(rng, target, path), ("Transfer-Encoding", "chunked")])
    sizes = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in _pieces(rng, body, 6))
    return Shot("chunked", _pieces(rng, data + sizes + b"0\r\n\r\n", 5), answers=1)


def _split(rng: random.Random, target: Target) -> Shot:
    path, body = _right(rng) if rng.random() < 0.5 else _wrong(rng)
    data = post(path, body, _headers(rng, target, path))
    return Shot("split writes", _pieces(rng, data, 8), answers=1)


def _one_of_many(rng: random.Random) -> bytes:
    if rng.random() < 0.7:
        return head("GET", rng.choice((*_SEEING[:3], "/nowhere")), JSON)
    return post(*(_right(rng) if rng.random() < 0.5 else _wrong(rng)))


def _pipeline(rng: random.Random, _target: Target) -> Shot:
    count = rng.randrange(2, 9)
    data = b"".join(_one_of_many(rng) for _ in range(count))
    pieces = _pieces(rng, data, 4) if rng.random() < 0.5 else (data,)
    return Shot("pipeline", pieces, requests=count, answers=count)


def _raw(rng: random.Random, _target: Target) -> Shot:
    data = _one_of_many(rng) if rng.random() < 0.3 else post(*_right(rng))
    return Shot("request bytes", (scrambled(rng, data) + SENTINEL,), requests=2)


_NOISE = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    b"\r\n\r\n",
    b"\n",
    b"GET\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"\x00" * 100,
    b"GET / HTTP/1.1\r\n" + b"\r\n",
    b"SSH-2.0-x\r\n",
    b"\x05\x01\x00",
    b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n",
)


def _noise(rng: random.Random, _target: Target) -> Shot:
    data = rng.choice(_NOISE) if rng.random() < 0.5 else rng.randbytes(rng.choice((1, 10, 100, 5000)))
    return Shot("noise", (data + SENTINEL,), requests=2)


def _leaves(rng: random.Random, _target: Target) -> Shot:
    path, body = _right(rng)
    data = post(path, body)
    if rng.random() < 0.5:
        data = data[: rng.randrange(1, len(data))]
    pieces = _pieces(rng, data, 4) if rng.random() < 0.5 else (data,)
    return Shot("leaves early", pieces, ending=rng.choice((Ending.LEAVE, Ending.HALF_CLOSE)))


def _sees(rng: random.Random, target: Target) -> Shot:
    path = rng.choice(_SEEING)
    headers = [*JSON, ("X-API-Key", target.admin_key)]
    return Shot("looks", (head("GET", path, headers),), answers=1)


def _is_right(rng: random.Random, target: Target) -> Shot:
    path, body = _right(rng)
    return Shot("right", (post(path, body, _headers(rng, target, path)),), answers=1)


def _large(rng: random.Random, target: Target) -> Shot:
    """Bodies that are large, or have many of something, whole or broken anywhere."""
    path, body = values.large(rng)
    if rng.random() < 0.2:
        at = rng.randrange(len(body))
        body = rng.choice((body[:at], body[:at] + rng.choice((b",", b"]", b'"', b"\\", b"\xff")) + body[at:]))
    return Shot("large bodies", (post(path, body, _headers(rng, target, path)),), answers=1)


def _form(rng: random.Random, _target: Target) -> Shot:
    """A form, right or broken: an engine whose model does not hear answers 404."""
    mark = rng.choice(("x", "-" * 30 + "x", "a b"))
    model = rng.choice(("tiny", "tiny", "none", "\u00e9", "m" * 5000, ""))
    parts = [
        f'Content-Disposition: form-data; name="model"\r\n\r\n{model}'.encode(),
        b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        + rng.randbytes(rng.choice((0, 10, 1000, 100_000))),
    ]
    rng.shuffle(parts)
    body = b"".join(b"--%b\r\n%b\r\n" % (mark.encode(), part) for part in parts)
    body += f"--{mark}--\r\n".encode()
    if rng.random() < 0.3:
        body = scrambled(rng, body)
    boundary = rng.choice((f'"{mark}"', mark, f'"{mark}"', "y", '"', ""))
    headers = [("Host", "fuzz"), ("Content-Type", f"multipart/form-data; boundary={boundary}")]
    path = rng.choice(_HEARING)
    if rng.random() < 0.3:
        head_of_it = head("POST", path, [*headers, ("Transfer-Encoding", "chunked")])
        sizes = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in _pieces(rng, body or b"x", 6))
        return Shot("form", (head_of_it, sizes + b"0\r\n\r\n"), answers=1)
    return Shot("form", _pieces(rng, post(path, body, headers), 5), answers=1)


def _socket(rng: random.Random, _target: Target) -> Shot:
    """A handshake, right or broken: an engine whose model does not hear refuses it."""
    headers = [
        ("Host", "fuzz"),
        ("Connection", rng.choice(("Upgrade", "keep-alive, Upgrade", "close", "upgrade"))),
        ("Upgrade", rng.choice(("websocket", "websocket", "WebSocket", "h2c", ""))),
        ("Sec-WebSocket-Version", rng.choice(("13", "13", "13", "8", "x"))),
        ("Sec-WebSocket-Key", rng.choice(("dGhlIHNhbXBsZSBub25jZQ==", "x", "", "a" * 5000))),
    ]
    if rng.random() < 0.3:
        headers.append(
            ("Sec-WebSocket-Protocol", rng.choice(("realtime", "a, b", ",", "a" * 5000, "x," * 500)))
        )
    if rng.random() < 0.3:
        headers.append(("Sec-WebSocket-Extensions", rng.choice(("permessage-deflate", "x", "a=b;c"))))
    query = rng.choice(("", "?model=tiny", "?model=none", "?%ff=%00", "?model="))
    return Shot("socket", (head("GET", f"/v1/realtime{query}", headers),), requests=1, answers=1)


_KINDS: tuple[tuple[Callable[[random.Random, Target], Shot], float], ...] = (
    (_body, 20),
    (_large, 0.05),
    (_body_bytes, 10),
    (_admin, 6),
    (_fields, 8),
    (_field_lines, 6),
    (_line, 8),
    (_heads, 1),
    (_framing, 8),
    (_chunks, 4),
    (_split, 4),
    (_pipeline, 5),
    (_raw, 10),
    (_noise, 4),
    (_leaves, 3),
    (_form, 3),
    (_socket, 1),
    (_sees, 1),
    (_is_right, 2),
)


class Shots:
    """All shots of a seed, by number."""

    def __init__(self, seed: int, target: Target) -> None:
        self._seed = seed
        self._target = target
        self._rng = random.Random()  # repeatable on purpose
        self._makers = [maker for maker, _ in _KINDS]
        self._weights = [weight for _, weight in _KINDS]

    def __getitem__(self, number: int) -> Shot:
        """The shot of that number, always the same."""
        rng = self._rng
        rng.seed((self._seed << 40) + number)
        [maker] = rng.choices(self._makers, self._weights)
        shot = maker(rng, self._target)
        return replace(shot, pieces=tuple(piece for piece in shot.pieces if piece))
