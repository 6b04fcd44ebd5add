"""The checks of a request: a table of queries and of origins."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brightsocket_anyio.protocol.handshake import (
    MAX_PARAMETERS,
    MESSAGES,
    Query,
    RequestError,
    check_origin,
    choose_subprotocol,
    cors_headers,
    header_values,
    parse_cookies,
    parse_query,
    preflight_headers,
    session_cookie,
)
from brightsocket_anyio.settings import Settings

PAGE = "https://page.example"


def scope(query: bytes = b"", *, method: str = "GET", **headers: str | list[str]) -> dict[str, Any]:
    pairs = [
        (name.replace("_", "-").encode(), value.encode("latin-1"))
        for name, values in headers.items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    return {"type": "http", "method": method, "query_string": query, "headers": pairs}


class TestQuery:
    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            (b"EIO=4&transport=polling&t=abc", Query("polling", 4, None, False)),
            (b"EIO=3&transport=websocket", Query("websocket", 3, None, False)),
            (b"EIO=4&transport=polling&sid=S-_1", Query("polling", 4, "S-_1", False)),
            (b"b64=1&EIO=3&transport=polling", Query("polling", 3, None, True)),
            (b"b64=&EIO=3&transport=polling", Query("polling", 3, None, False)),
            (b"EIO=4&transport=polling&token=%zz&token=%ff&x", Query("polling", 4, None, False)),
        ],
    )
    def test_good(self, query: bytes, expected: Query) -> None:
        assert parse_query(scope(query)) == expected

    @pytest.mark.parametrize(
        ("query", "code"),
        [
            (b"", 0),
            (b"EIO=4", 0),
            (b"EIO=4&transport=", 0),
            (b"EIO=4&transport=__proto__", 0),
            (b"EIO=4&transport=constructor&sid=x", 0),
            (b"EIO=4&transport=Polling", 0),
            (b"EIO=4&transport=polling&transport=polling", 0),
            (b"EIO=4&transport=p\xf6lling", 0),
            (b"EIO=4&transport=%F0%9F%98%80", 0),
            (b"transport=polling", 5),
            (b"EIO=&transport=polling", 5),
            (b"EIO=5&transport=polling", 5),
            (b"EIO=04&transport=polling", 5),
            (b"EIO=%D9%A4&transport=polling", 5),
            (b"EIO=__proto__&transport=polling", 5),
            (b"EIO=4&EIO=4&transport=polling", 5),
            (b"EIO=4&transport=polling&sid=", 1),
            (b"EIO=4&transport=polling&sid=a&sid=b", 1),
            (b"EIO=4&transport=polling&j=0", 3),
            (b"EIO=4&transport=polling" + MAX_PARAMETERS * b"&a=1", 3),
        ],
    )
    def test_bad(self, query: bytes, code: int) -> None:
        with pytest.raises(RequestError) as caught:
            parse_query(scope(query))
        assert (caught.value.status, caught.value.code) == (400, code)

    def test_without_a_query_string(self) -> None:
        with pytest.raises(RequestError) as caught:
            parse_query({"headers": []})
        assert caught.value.code == 0

    @given(st.binary())
    def test_any_bytes(self, query: bytes) -> None:
        with contextlib.suppress(RequestError):
            parse_query(scope(b"EIO=4&transport=polling&" + query))


class TestRequestError:
    @pytest.mark.parametrize("code", MESSAGES)
    def test_body(self, code: int) -> None:
        error = RequestError.of(code)
        assert error.body == f'{{"code":{code},"message":"{MESSAGES[code]}"}}'.encode()
        assert error.status == (403 if code == 4 else 400)

    def test_a_reason_of_any_text(self) -> None:
        assert RequestError(403, 4, "n\xf6 \ud800").body == '{"code":4,"message":"n\xf6 ?"}'.encode()

    def test_body_without_a_code(self) -> None:
        assert RequestError(413, None, "Payload too large").body == b'{"message":"Payload too large"}'


class TestOrigin:
    @pytest.mark.parametrize(
        ("origin", "host"),
        [
            ("https://here.example", "here.example"),
            ("https://Here.Example:443", "here.example"),
            ("https://here.example", "HERE.example:443"),
            ("http://here.example", "here.example:80"),
            ("http://localhost:8000", "localhost:8000"),
            ("http://[::1]:8000", "[::1]:8000"),
        ],
    )
    def test_the_same_host_passes(self, origin: str, host: str) -> None:
        check_origin(scope(origin=origin, host=host), Settings())

    def test_programs_pass(self) -> None:
        check_origin(scope(host="here.example"), Settings())

    @pytest.mark.parametrize(
        ("origin", "host"),
        [
            ("https://there.example", "here.example"),
            ("https://here.example.evil", "here.example"),
            ("https://evil-here.example", "here.example"),
            ("https://here.example@evil", "here.example"),
            ("http://here.example:8000", "here.example"),
            ("http://here.example:443", "here.example"),
            ("null", "here.example"),
            ("", ""),
            ("http://", ""),
            ("extension://here.example", "here.example"),
            ("https://h\xe9re.example", "here.example"),
            (["https://here.example", "https://here.example"], "here.example"),
            ("https://here.example", []),
            ("https://here.example", ["here.example", "here.example"]),
        ],
    )
    def test_a_foreign_page_does_not(self, origin: str | list[str], host: str | list[str]) -> None:
        with pytest.raises(RequestError) as caught:
            check_origin(scope(origin=origin, host=host), Settings(allowed_origins=["https://other.example"]))
        assert (caught.value.status, caught.value.code) == (403, 4)

    @pytest.mark.parametrize("allowed", ["*", [PAGE], ["https://PAGE.example:443/"], ["http://x", PAGE]])
    def test_an_allowed_page_passes(self, allowed: Literal["*"] | list[str]) -> None:
        check_origin(scope(origin=PAGE, host="here.example"), Settings(allowed_origins=allowed))

    def test_a_file_passes_if_it_is_allowed(self) -> None:
        check_origin(scope(origin="null", host="here.example"), Settings(allowed_origins=["null"]))


class TestCORS:
    def test_any_origin(self) -> None:
        headers = cors_headers(scope(origin=PAGE), Settings(allowed_origins="*"))
        assert headers == [(b"access-control-allow-origin", b"*")]

    def test_an_allowed_page(self) -> None:
        headers = cors_headers(scope(origin=PAGE), Settings(allowed_origins=[PAGE]))
        assert headers == [(b"vary", b"Origin"), (b"access-control-allow-origin", PAGE.encode())]

    def test_credentials(self) -> None:
        headers = cors_headers(scope(origin=PAGE), Settings(allowed_origins=[PAGE], credentials=True))
        assert headers[-1] == (b"access-control-allow-credentials", b"true")

    @pytest.mark.parametrize("request_", [scope(), scope(origin="https://there.example", host="here.example")])
    def test_nobody_else(self, request_: dict[str, Any]) -> None:
        settings = Settings(allowed_origins=[PAGE], credentials=True)
        assert cors_headers(request_, settings) == [(b"vary", b"Origin")]

    def test_preflight(self) -> None:
        headers = preflight_headers(
            scope(
                method="OPTIONS",
                access_control_request_method="POST",
                access_control_request_headers=["content-type", "x-mine"],
            )
        )
        assert headers is not None
        assert dict(headers) == {
            b"access-control-allow-methods": b"GET, POST",
            b"access-control-max-age": b"600",
            b"vary": b"Access-Control-Request-Headers",
            b"access-control-allow-headers": b"content-type, x-mine",
        }

    def test_preflight_without_headers(self) -> None:
        headers = preflight_headers(scope(method="OPTIONS", access_control_request_method="POST"))
        assert headers is not None
        assert b"access-control-allow-headers" not in dict(headers)

    @pytest.mark.parametrize("request_", [scope(method="OPTIONS"), scope(access_control_request_method="POST")])
    def test_no_preflight(self, request_: dict[str, Any]) -> None:
        assert preflight_headers(request_) is None


class TestCookies:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([], {}),
            (["a=1; b=2"], {"a": "1", "b": "2"}),
            (["a=1", "b=2"], {"a": "1", "b": "2"}),
            (["a=1;b=2 ;\tc=3"], {"a": "1", "b": "2", "c": "3"}),
            (["a=the closest; a=another"], {"a": "the closest"}),
            (["a=; b=x=y=="], {"a": "", "b": "x=y=="}),
            (['a="1"; b="; c=""'], {"a": "1", "b": '"', "c": ""}),
            (['a={"b":1}; c=%20; d=\xe9'], {"a": '{"b":1}', "c": "%20", "d": "\xe9"}),
            (["nonsense; =1; a b=2; \xe9=3; c=\x00; d=\x7f; ;; e=4"], {"e": "4"}),
        ],
    )
    def test_parse(self, values: list[str], expected: dict[str, str]) -> None:
        assert parse_cookies(values) == expected

    @given(st.lists(st.text()))
    def test_any_text(self, values: list[str]) -> None:
        parse_cookies(values)

    def test_a_sessions(self) -> None:
        assert session_cookie("io", "S-_1") == (b"set-cookie", b"io=S-_1; Path=/; HttpOnly; SameSite=Lax")


@pytest.mark.parametrize(
    ("offered", "known", "chosen"),
    [
        ([], [], None),
        (["a"], [], None),
        ([], ["a"], None),
        (["a", "b"], ["b", "a"], "a"),
        (["x", "b"], ["a", "b"], "b"),
        (["A"], ["a"], None),
    ],
)
def test_the_first_of_the_clients_subprotocols(offered: list[str], known: list[str], chosen: str | None) -> None:
    assert choose_subprotocol({"subprotocols": offered}, Settings(subprotocols=known)) == chosen


def test_polling_has_no_subprotocol() -> None:
    assert choose_subprotocol({}, Settings(subprotocols=["a"])) is None


def test_header_names_have_no_case() -> None:
    assert header_values({"headers": [(b"X-A", b"1"), (b"b", b"2"), (b"x-a", b"3")]}, b"x-a") == [b"1", b"3"]
