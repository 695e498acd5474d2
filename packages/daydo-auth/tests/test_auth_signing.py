from __future__ import annotations

import contextlib
import hashlib
import itertools
import warnings
from typing import Any
from urllib.parse import parse_qs, quote, unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daydo_auth import SignatureInvalid
from daydo_auth.signing import (
    MAX_LIFE_S,
    Headers,
    Signed,
    canonical_headers,
    canonical_path,
    canonical_query,
    check,
    check_body,
    parse,
    sign,
)

with warnings.catch_warnings():  # it was written for older Pythons, too
    warnings.simplefilter("ignore")
    from baidubce.auth.bce_credentials import BceCredentials
    from baidubce.auth.bce_v1_signer import sign as sdk_sign
    from baidubce.utils import normalize_string

SECRET = "test-secret"
NOW_S = 1_430_123_029
HASH = hashlib.sha256(b"{}").hexdigest()
GOOD: list[tuple[bytes, bytes]] = [
    (b"host", b"api.example.cn"),
    (b"content-type", b"application/json"),
    (b"content-length", b"2"),
    (b"x-bce-content-sha256", HASH.encode()),
    (b"x-bce-nonce", b"0123456789abcdef"),
    (b"accept", b"*/*"),
]


def signed(
    method: str = "POST",
    path: bytes = b"/v1/tasks",
    query: bytes = b"a=1",
    headers: Headers = GOOD,
    *,
    now_s: int = NOW_S,
    **options: Any,
) -> str:
    return sign(SECRET, "dk_1", method, path, query, headers, now_s=now_s, **options)


def judged(
    authorization: str,
    method: str = "POST",
    path: bytes = b"/v1/tasks",
    query: bytes = b"a=1",
    headers: Headers = GOOD,
    *,
    secret: str = SECRET,
    now_s: int = NOW_S,
    window_s: int = 300,
) -> Signed:
    return check(parse(authorization), secret, method, path, query, headers, now_s=now_s, window_s=window_s, skew_s=30)


def reason(call: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(SignatureInvalid) as refused:
        call(*args, **options)
    return str(refused.value.reason)


# -- as published


def test_the_documented_example() -> None:
    """The worked example of "Generate Authentication String", default headers, gives its signature."""
    headers = [
        (b"Host", b"bj.bcebos.com"),
        (b"Date", b"Mon, 27 Apr 2015 16:23:49 +0800"),
        (b"Content-Type", b"text/plain"),
        (b"Content-Length", b"8"),
        (b"Content-Md5", b"NFzcPqhviddjRNnSOGo4rw=="),
        (b"x-bce-date", b"2015-04-27T08:23:49Z"),
    ]
    path, query = b"/v1/test/myfolder/readme.txt", b"partNumber=9&uploadId=a44cc9bab11cbd156984767aad637851"
    assert sign("b" * 32, "a" * 32, "PUT", path, query, headers, now_s=1_430_123_029) == (
        f"bce-auth-v1/{'a' * 32}/2015-04-27T08:23:49Z/1800//"
        "d74a04362e6a848f5b39b15421cb449427f419c95a480fd6b8cf9fc783e2999e"
    )


@pytest.mark.parametrize(
    ("method", "path", "query", "headers", "names", "expected"),
    [
        (
            "PUT",
            b"/v1/bucket/object1",
            b"A&b=&C=d",
            [(b"Host", b"bce.baidu.com"), (b"abc", b"123"), (b"x-bce-meta-key1", b"ABC")],
            ["host", "x-bce-meta-key1"],
            "80c9672aca2ea9af4bb40b9a8ff458d72df94e97d550840727f3a929af271d25",
        ),
        (
            "DELETE",
            b"/v1/test-bucket1361199862",
            b"",
            [
                (b"Content-Type", b"application/json; charset=utf-8"),
                (b"Content-Length", b"0"),
                (b"User-Agent", b"This is the user-agent"),
            ],
            ["content-type", "content-length"],
            "c9386b15d585960ae5e6972f73ed92a9a682dc81025480ba5b41206d3e489822",
        ),
    ],
)
def test_the_vectors_of_the_owners_sdks(
    method: str, path: bytes, query: bytes, headers: Headers, names: list[str], expected: str
) -> None:
    """The vectors in the test suites of the owner's own SDKs, with headers named, come out."""
    authorization = sign("my_sk", "my_ak", method, path, query, headers, now_s=1_402_639_056, signed=names)
    assert authorization == f"bce-auth-v1/my_ak/2014-06-13T05:57:36Z/1800/{';'.join(sorted(names))}/{expected}"


def test_the_documented_forms() -> None:
    """Path, query and headers take the forms that the documentation shows, its odd order of the query included."""
    assert canonical_path("/example/测试".encode()) == "/example/%E6%B5%8B%E8%AF%95"
    assert canonical_path(quote("/example/测试").encode()) == "/example/%E6%B5%8B%E8%AF%95"
    query = f"text&text1={quote('测试')}&text10=test".encode()
    assert canonical_query(query) == "text10=test&text1=%E6%B5%8B%E8%AF%95&text="
    assert canonical_headers([(b"host", b"localhost"), (b"x-bce-a", b"a/b:c"), (b"content-md5", b"MD5")]) == (
        "content-md5:MD5\nhost:localhost\nx-bce-a:a%2Fb%3Ac"
    )


# -- as the owner's SDK does it

_text = st.text(st.characters(codec="utf-8"), max_size=12)
_path = st.lists(st.text("aZ09-._~ %+汉字&=?é*", max_size=8), max_size=4).map(lambda parts: "/" + "/".join(parts))
_names = st.sampled_from(["host", "content-type", "content-md5", "content-length", "x-bce-date", "x-bce-z", "a"])
_headers = st.dictionaries(_names, st.text("aZ0 /:;,=%汉\t~", max_size=10), max_size=6)


@given(
    method=st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD", "PATCH"]),
    path=_path,
    params=st.dictionaries(_text.filter(lambda name: name.lower() != "authorization"), _text, max_size=5),
    headers=_headers,
    some=st.none() | st.sets(_names, min_size=1),
    now_s=st.integers(1, 4_000_000_000),
    life_s=st.integers(1, 100_000),
)
def test_the_owners_sdk_agrees(
    method: str,
    path: str,
    params: dict[str, str],
    headers: dict[str, str],
    some: set[str] | None,
    now_s: int,
    life_s: int,
) -> None:
    """Whatever is signed, bce-python-sdk makes the same Authorization header of it."""
    # The SDK signs every x-bce-… header, also where the list of names lacks it: then nobody could check it.
    names = sorted(some | {name for name in headers if name.startswith("x-bce-")}) if some else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sdk_sign(
            BceCredentials("dk_1", SECRET),
            method.encode(),
            normalize_string(path, False),
            {name.encode(): value.encode() for name, value in headers.items()},
            {name.encode(): value.encode() for name, value in params.items()},
            now_s,
            life_s,
            [name.encode() for name in names] or None,
        )
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in params.items())
    ours = sign(
        SECRET,
        "dk_1",
        method,
        quote(path).encode(),
        query.encode(),
        [(name.title().encode(), value.encode()) for name, value in headers.items()],
        now_s=now_s,
        life_s=life_s,
        signed=names,
    )
    assert ours == theirs.decode()


@given(names=st.sampled_from([[], sorted(name.decode() for name, _ in GOOD)]), life_s=st.integers(1, MAX_LIFE_S))
def test_what_the_sdk_signs_is_accepted(names: list[str], life_s: int) -> None:
    """A client that uses the owner's SDK, told which headers to sign or not, is let in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        authorization = sdk_sign(
            BceCredentials("dk_1", SECRET),
            b"POST",
            b"/v1/tasks",
            dict(GOOD),
            {b"a": b"1"},
            NOW_S,
            life_s,
            [name.encode() for name in names] or None,
        )
    assert judged(authorization.decode()) == Signed(HASH, "0123456789abcdef", NOW_S + min(life_s, 300))


# -- beyond it


def test_a_good_request() -> None:
    """A request that signs what it must is accepted, whichever other headers come along, and its body is compared."""
    accepted = judged(signed(), headers=[*GOOD, (b"cookie", b"a=b"), (b"user-agent", b"x")])
    assert accepted == Signed(HASH, "0123456789abcdef", NOW_S + 300)
    check_body(accepted, b"{}")
    assert reason(check_body, accepted, b"{ }") == "body"
    assert reason(check_body, Signed("é" * 64, "n", 0), b"{}") == "body"


def without(name: bytes) -> list[tuple[bytes, bytes]]:
    return [header for header in GOOD if header[0] != name]


def with_value(name: bytes, value: bytes) -> list[tuple[bytes, bytes]]:
    return [*without(name), (name, value)]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"method": "PUT"}, "wrong"),
        ({"method": "post"}, "malformed"),
        ({"path": b"/v1/task"}, "wrong"),
        ({"path": b"/v1/tasks/"}, "wrong"),
        ({"path": b"/v1%2Ftasks"}, "wrong"),
        ({"path": b"//v1/tasks"}, "wrong"),
        ({"path": b"v1/tasks"}, "malformed"),
        ({"path": b"/" + b"x" * 9_000}, "too_large"),
        ({"query": b""}, "wrong"),
        ({"query": b"a=2"}, "wrong"),
        ({"query": b"a=1&b=2"}, "wrong"),
        ({"query": b"a=1&a=1"}, "wrong"),
        ({"query": b"a=1&authorization=x"}, "repeated"),
        ({"query": b"a=1&Authoriz%61tion=x"}, "repeated"),
        ({"query": b"x=2&x=1"}, "repeated"),
        ({"query": b"x" * 9_000}, "too_large"),
        ({"query": b"&".join(b"a%d=1" % number for number in range(200))}, "too_large"),
        ({"headers": with_value(b"host", b"evil.example.cn")}, "wrong"),
        ({"headers": without(b"host")}, "not_signed"),
        ({"headers": with_value(b"host", b" ")}, "not_signed"),
        ({"headers": without(b"x-bce-content-sha256")}, "not_signed"),
        ({"headers": without(b"x-bce-nonce")}, "not_signed"),
        ({"headers": with_value(b"content-type", b"text/plain")}, "wrong"),
        ({"headers": without(b"content-type")}, "wrong"),
        ({"headers": with_value(b"x-bce-nonce", b"fedcba9876543210")}, "wrong"),
        ({"headers": with_value(b"x-bce-content-sha256", b"0" * 64)}, "wrong"),
        ({"headers": [*GOOD, (b"host", b"evil.example.cn")]}, "repeated"),
        ({"headers": [*GOOD, (b"Host", b"api.example.cn")]}, "repeated"),
        ({"headers": [*GOOD, (b"x-bce-nonce", b"fedcba9876543210")]}, "repeated"),
        ({"headers": [*GOOD, (b"x-bce-security-token", b"x")]}, "wrong"),
        ({"headers": [*GOOD, *((b"x-bce-%d" % number, b"x") for number in range(40))]}, "too_large"),
        ({"headers": [*GOOD, (b"x-bce-long", b"x" * 9_000)]}, "too_large"),
        ({"secret": "another"}, "wrong"),
    ],
)
def test_no_other_request_passes(change: dict[str, Any], expected: str) -> None:
    """A signature is good for the very request it was made for, and the refusal says what kind of difference it is."""
    assert reason(judged, signed(), **change) == expected


ALL = sorted(name.decode() for name, _ in GOOD)


@pytest.mark.parametrize("missing", ["host", "x-bce-content-sha256", "x-bce-nonce", "content-type"])
def test_headers_that_must_be_signed(missing: str) -> None:
    """A genuine signature over too little is none: the header that was left out could say anything."""
    assert judged(signed(signed=ALL))
    names = [name for name in ALL if name != missing]
    assert reason(judged, signed(signed=names)) == "not_signed"


def test_what_was_signed_as_absent_stays_absent() -> None:
    """A header that is named and not there may not be added afterwards."""
    authorization = signed(signed=[*ALL, "x-other"])
    assert judged(authorization)
    assert reason(judged, authorization, headers=[*GOOD, (b"x-other", b"x")]) == "wrong"


@pytest.mark.parametrize("nonce", [b"short", b"x" * 65, b"0123456789abcde/", "汉".encode() * 6, b"\xff" * 16])
def test_nonces_have_a_form(nonce: bytes) -> None:
    """A nonce becomes a key in Redis, so a genuine signature over an odd one is refused."""
    headers = with_value(b"x-bce-nonce", nonce)
    assert reason(judged, signed(headers=headers), headers=headers) == "malformed"


@pytest.mark.parametrize(
    ("made_ago_s", "life_s", "expected"),
    [
        (0, 1, None),
        (0, MAX_LIFE_S, None),
        (-30, 60, None),
        (299, MAX_LIFE_S, None),
        (300, MAX_LIFE_S, "expired"),
        (59, 60, None),
        (60, 60, "expired"),
        (-31, 60, "too_early"),
        (0, MAX_LIFE_S + 1, "life_too_long"),
        (0, 315_360_000, "life_too_long"),
        (10**6, 315_360_000, "life_too_long"),
        (NOW_S - 1, 60, "expired"),
    ],
)
def test_times(made_ago_s: int, life_s: int, expected: str | None) -> None:
    """A signature is good from when it was made, give or take the skew, for as long as it says and the window lasts."""
    authorization = signed(now_s=NOW_S - made_ago_s, life_s=life_s)
    if expected is None:
        assert judged(authorization).until_s == NOW_S - made_ago_s + min(life_s, 300)
    else:
        assert reason(judged, authorization) == expected


def test_time_and_life_are_signed() -> None:
    """Nobody makes an old signature young, or its life longer."""
    authorization = signed(now_s=NOW_S - 400, life_s=100)
    parts = authorization.split("/")
    young = signed().split("/")[2]
    for change in ({2: young}, {2: young, 3: "1800"}):
        assert reason(judged, "/".join(change.get(at, part) for at, part in enumerate(parts))) == "wrong"


_MAC = "0" * 64


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "bce-auth-v1",
        f"bce-auth-v2/dk_1/2015-04-27T08:23:49Z/60//{_MAC}",
        f"bce-auth-v1//2015-04-27T08:23:49Z/60//{_MAC}",
        f"bce-auth-v1/dk 1/2015-04-27T08:23:49Z/60//{_MAC}",
        f"bce-auth-v1/{'x' * 65}/2015-04-27T08:23:49Z/60//{_MAC}",
        f"bce-auth-v1/dk_1/2015-02-30T08:23:49Z/60//{_MAC}",
        f"bce-auth-v1/dk_1/0000-01-01T00:00:00Z/60//{_MAC}",
        f"bce-auth-v1/dk_1/2015-04-27T08:23:49/60//{_MAC}",
        f"bce-auth-v1/dk_1/2015-04-27T08:23:4٩Z/60//{_MAC}",
        f"bce-auth-v1/dk_1/2015-04-27T08:23:49Z/0//{_MAC}",
        f"bce-auth-v1/dk_1/2015-04-27T08:23:49Z/060//{_MAC}",
        f"bce-auth-v1/dk_1/2015-04-27T08:23:49Z/-60//{_MAC}",
        f"bce-auth-v1/dk_1/2015-04-27T08:23:49Z/{'9' * 13}//{_MAC}",
        f"bce-auth-v1/dk_1/2015-04-27T08:23:49Z/60/{_MAC}",
        f"bce-auth-v1/dk_1/2015-04-27T08:23:49Z/60/Host/{_MAC}",
        f"bce-auth-v1/dk_1/2015-04-27T08:23:49Z/60/host;/{_MAC}",
        f"bce-auth-v1/dk_1/2015-04-27T08:23:49Z/60/host,date/{_MAC}",
        f"bce-auth-v1/dk_1/2015-04-27T08:23:49Z/60//{_MAC[1:]}",
        f"bce-auth-v1/dk_1/2015-04-27T08:23:49Z/60//{_MAC.replace('0', 'A')}",
        f"bce-auth-v1/dk_1/2015-04-27T08:23:49Z/60//{_MAC}\n",
        f"bce-auth-v1/dk_1/2015-04-27T08:23:49Z/60/{';'.join(['a' * 60] * 60)}/{_MAC}",
    ],
)
def test_headers_of_another_form(authorization: str) -> None:
    """What is not of this scheme to the letter is refused before anything is computed."""
    assert reason(parse, authorization) == "malformed"


def test_too_many_signed_headers() -> None:
    """The list of signed headers has an end."""
    names = ";".join(f"x-{number}" for number in range(33))
    assert reason(parse, f"bce-auth-v1/dk_1/2015-04-27T08:23:49Z/60/{names}/{_MAC}") == "too_large"


@given(st.text() | st.text("/;-0123456789TZabcdef").map("bce-auth-v1/{}".format))
def test_any_text_is_answered(header: str) -> None:
    """Whatever a header says, the answer is an error of ours."""
    with pytest.raises(SignatureInvalid):
        judged(header)


# -- one canonical form, one meaning


def test_queries_that_sign_alike_read_alike() -> None:
    """All queries of five pieces: those of one canonical form are the same to whoever reads them as a form."""
    read: dict[str, Any] = {}
    for pieces in itertools.product(["a", "b", "=", "&", "+", "%20", "%2B", "%61", "%"], repeat=5):
        query = "".join(pieces)
        with contextlib.suppress(SignatureInvalid):
            values = parse_qs(query, keep_blank_values=True)
            assert read.setdefault(canonical_query(query.encode()), values) == values, query


@given(st.lists(st.sampled_from(["a=1", "a=2", "b=", "a=", "c+d=%20", "b"])), st.randoms())
def test_an_exchange_of_values_is_seen(parameters: list[str], random: Any) -> None:
    """Parameters in any order sign alike as long as the values of each name keep theirs."""
    ordered = "&".join(sorted(parameters)).encode()
    form = canonical_query(ordered)
    random.shuffle(parameters)
    shuffled = "&".join(parameters).encode()
    same = parse_qs(shuffled.decode(), keep_blank_values=True) == parse_qs(ordered.decode(), keep_blank_values=True)
    if same:
        assert canonical_query(shuffled) == form
    else:
        assert reason(canonical_query, shuffled) == "repeated"


@given(st.binary(max_size=12), st.binary(max_size=12))
def test_paths_that_sign_alike_read_alike(one: bytes, other: bytes) -> None:
    """Two paths of one canonical form have the same segments, and a slash that was sent encoded is no separator."""
    read = [[unquote_to_bytes(segment) for segment in path.split(b"/")] for path in (one, other)]
    assert (canonical_path(one) == canonical_path(other)) == (read[0] == read[1])
    assert canonical_path(b"/a%2fb") == canonical_path(b"/a%2Fb") != canonical_path(b"/a/b")
