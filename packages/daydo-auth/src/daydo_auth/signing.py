"""Signed requests: ``bce-auth-v1`` as Baidu AI Cloud publishes it, and what we ask for beyond it. Pure.

    Authorization: bce-auth-v1/{key id}/{time}/{seconds it is good for}/{signed headers}/{signature}

    signing key  HMAC-SHA256-HEX(secret, everything before "/{signed headers}")
    signature    HMAC-SHA256-HEX(signing key, canonical request)

The canonical request is four parts, a line each: method, path, sorted query, sorted ``name:value`` of the signed
headers, all percent-encoded in one way. (https://cloud.baidu.com/doc/Reference/s/njwvz1yfu)

The published scheme signs neither the body nor a nonce: a body can be exchanged and a request repeated. Here a request
must also carry, and sign, ``x-bce-content-sha256`` (hex SHA-256 of its body) and ``x-bce-nonce`` (16 to 64 letters,
digits, ``-`` or ``_``, never used before with this key), besides ``host``, ``content-type`` where there is one, and
every other ``x-bce-…``: all of these SDKs of the scheme sign when told to sign nothing in particular.

Two requests that an application reads differently never share a canonical request. So ``+`` in a query is a space, as
in a form; values of one name must come in sorted order, for sorting would hide an exchange of them; and a signed header
that is there twice, or a parameter ``authorization`` (which the scheme leaves out), is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final, Literal
from urllib.parse import quote_from_bytes, unquote_to_bytes

import msgspec

from .errors import SignatureInvalid

Headers = Sequence[tuple[bytes, bytes]]

SCHEME = "bce-auth-v1"
HASH_HEADER = b"x-bce-content-sha256"
NONCE_HEADER = b"x-bce-nonce"
# The default of the published SDKs. Beyond it nobody means what they say.
MAX_LIFE_S = 1_800
MAX_SIGNED_HEADERS = 32
MAX_PATH_BYTES = MAX_QUERY_BYTES = MAX_HEADER_BYTES = 8_192
MAX_PARAMETERS = 100

_AUTHORIZATION = re.compile(
    rf"({SCHEME}/([A-Za-z0-9_-]{{1,64}})/([0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}T[0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}}Z)"
    r"/([1-9][0-9]{0,11}))/((?:[a-z0-9._-]{1,64}(?:;[a-z0-9._-]{1,64})*)?)/([0-9a-f]{64})"
)
_MAX_AUTHORIZATION_CHARS = 2_560
_METHOD = re.compile(r"[A-Z]{1,16}")
_NONCE = re.compile(rb"[A-Za-z0-9_-]{16,64}")
_PREFIX = b"x-bce-"
_BY_DEFAULT: Final = frozenset({b"host", b"content-length", b"content-type", b"content-md5"})
_ALWAYS: Final = frozenset({b"host", HASH_HEADER, NONCE_HEADER})

Reason = Literal[
    "malformed",  # not of this form
    "too_large",  # or too many
    "not_signed",  # a header that must be is missing, or not among the signed
    "repeated",  # a signed header, or a parameter, that could be read in two ways
    "life_too_long",  # more than MAX_LIFE_S
    "too_early",  # the client's clock is ahead
    "expired",
    "wrong",  # another secret, or another request
    "body",  # not the one that was signed
    "replayed",  # the nonce was used before
]


class Signature(msgspec.Struct, frozen=True):
    """An Authorization header of this scheme, taken apart and not yet believed. ``signed`` is empty for the default."""

    prefix: str
    key_id: str
    made_at_s: int
    life_s: int
    signed: frozenset[bytes]
    mac: str


class Signed(msgspec.Struct, frozen=True):
    """What a genuine signature covers: the body's hash in hex, a nonce, and the second after which it is worthless."""

    body_sha256: str
    nonce: str
    until_s: int


def parse(authorization: str) -> Signature:
    """The parts of an Authorization header.

    Raises:
        SignatureInvalid: it is none of this scheme.
    """
    found = _AUTHORIZATION.fullmatch(authorization) if len(authorization) <= _MAX_AUTHORIZATION_CHARS else None
    if found is None:
        raise _invalid("malformed")
    try:
        made_at = datetime.fromisoformat(found[3][:-1]).replace(tzinfo=UTC)
    except ValueError:
        raise _invalid("malformed") from None
    names = found[5].split(";") if found[5] else []
    if len(names) > MAX_SIGNED_HEADERS:
        raise _invalid("too_large")
    signed = frozenset(name.encode() for name in names)
    return Signature(found[1], found[2], round(made_at.timestamp()), int(found[4]), signed, found[6])


def check(
    signature: Signature,
    secret: str,
    method: str,
    path: bytes,
    query: bytes,
    headers: Headers,
    *,
    now_s: int,
    window_s: int,
    skew_s: int,
) -> Signed:
    """Whether ``secret`` made ``signature`` for this request, not too long ago. The body is the caller's to compare.

    ``window_s`` bounds how long any signature is good, whatever it says of itself; ``skew_s`` is how far ahead the
    client's clock may be.

    Raises:
        SignatureInvalid: ``reason`` says why.
    """
    until_s = signature.made_at_s + min(signature.life_s, window_s)
    if signature.life_s > MAX_LIFE_S:
        raise _invalid("life_too_long")
    if signature.made_at_s > now_s + skew_s:
        raise _invalid("too_early")
    if now_s >= until_s:
        raise _invalid("expired")
    chosen = _chosen(signature.signed, headers)
    request = _canonical(method, path, query, chosen)
    if not hmac.compare_digest(_mac(secret, signature.prefix, request), signature.mac):
        raise _invalid("wrong")
    values = dict(chosen)
    nonce = values[NONCE_HEADER]
    if not _NONCE.fullmatch(nonce):
        raise _invalid("malformed")
    return Signed(values[HASH_HEADER].decode("latin-1"), nonce.decode(), until_s)


def check_body(signed: Signed, body: bytes) -> None:
    """Whether ``body`` is the one that was signed.

    Raises:
        SignatureInvalid: it is another.
    """
    # Bytes: text beyond ASCII is nothing that compare_digest takes.
    if not hmac.compare_digest(hashlib.sha256(body).hexdigest().encode(), signed.body_sha256.encode()):
        raise _invalid("body")


def sign(
    secret: str,
    key_id: str,
    method: str,
    path: bytes,
    query: bytes,
    headers: Headers,
    *,
    now_s: int,
    life_s: int = MAX_LIFE_S,
    signed: Iterable[str] = (),
) -> str:
    """The Authorization header of a request whose ``headers`` are complete: for clients and for tests.

    ``path`` and ``query`` are as they are sent. ``signed`` names headers; none means the scheme's default: host,
    content-length, content-type, content-md5 and all ``x-bce-…``.
    """
    made_at = datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    prefix = f"{SCHEME}/{key_id}/{made_at}/{life_s}"
    names = sorted(signed)
    chosen = _select(frozenset(name.encode() for name in names), headers)
    return f"{prefix}/{';'.join(names)}/{_mac(secret, prefix, _canonical(method, path, query, chosen))}"


def canonical_path(path: bytes) -> str:
    """UriEncodeExceptSlash of a path as it is sent. A slash that was sent encoded stays encoded."""
    return "/".join(_encode(unquote_to_bytes(segment)) for segment in path.split(b"/"))


def canonical_query(query: bytes) -> str:
    """Every parameter encoded, then sorted: ``text10=test&text1=…&text=`` is in order, since ``0`` < ``=``.

    Raises:
        SignatureInvalid: too many, or in an order that sorting would hide, or one is called ``authorization``.
    """
    pairs = [part.partition(b"=") for part in query.split(b"&") if part]
    if len(pairs) > MAX_PARAMETERS:
        raise _invalid("too_large")
    last: dict[str, str] = {}
    lines = []
    for raw_name, _, raw_value in pairs:
        name, value = (_encode(unquote_to_bytes(text.replace(b"+", b" "))) for text in (raw_name, raw_value))
        if name.lower() == "authorization" or value < last.get(name, ""):
            raise _invalid("repeated")
        last[name] = value
        lines.append(f"{name}={value}")
    return "&".join(sorted(lines))


def canonical_headers(chosen: Headers) -> str:
    """``name:value`` of each, encoded and sorted."""
    return "\n".join(sorted(f"{_encode(name)}:{_encode(value)}" for name, value in chosen))


def _chosen(signed: frozenset[bytes], headers: Headers) -> list[tuple[bytes, bytes]]:
    """The signed headers of a request to be believed: each of them once, and all that we insist on."""
    present = {name.lower() for name, _ in headers}
    needed = _ALWAYS | {name for name in present if name == b"content-type" or name.startswith(_PREFIX)}
    if signed and not needed <= signed:
        raise _invalid("not_signed")
    chosen = _select(signed, headers)
    names = {name for name, _ in chosen}
    if len(chosen) > len(names):
        raise _invalid("repeated")
    if len(names) > MAX_SIGNED_HEADERS or any(len(value) > MAX_HEADER_BYTES for _, value in chosen):
        raise _invalid("too_large")
    if not names >= _ALWAYS:
        raise _invalid("not_signed")
    return chosen


def _select(signed: frozenset[bytes], headers: Headers) -> list[tuple[bytes, bytes]]:
    """Signed headers that are there and not empty, as published."""
    named = ((name.lower(), value.strip()) for name, value in headers)
    return [
        (name, value)
        for name, value in named
        if value and (name in signed if signed else name in _BY_DEFAULT or name.startswith(_PREFIX))
    ]


def _canonical(method: str, path: bytes, query: bytes, chosen: Headers) -> str:
    if not _METHOD.fullmatch(method) or not path.startswith(b"/"):
        raise _invalid("malformed")
    if len(path) > MAX_PATH_BYTES or len(query) > MAX_QUERY_BYTES:
        raise _invalid("too_large")
    return "\n".join((method, canonical_path(path), canonical_query(query), canonical_headers(chosen)))


def _mac(secret: str, prefix: str, request: str) -> str:
    key = hmac.new(secret.encode(), prefix.encode(), hashlib.sha256).hexdigest()
    return hmac.new(key.encode(), request.encode(), hashlib.sha256).hexdigest()


def _encode(text: bytes) -> str:
    """UriEncode: all but letters, digits and ``-._~`` as ``%XX``."""
    return quote_from_bytes(text, safe="")


def _invalid(reason: Reason) -> SignatureInvalid:
    return SignatureInvalid(reason=reason)
