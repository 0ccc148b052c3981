"""Which URIs lie below which prefixes: by whole segments of what is read, and never by a second way of reading it."""

import pytest

from service.image_sources.errors import LocationNotAllowed
from service.image_sources.locations import parse_location, parse_prefixes

PREFIXES = (
    "file:///images/cats s3://bucket s3://other/cats/ https://host.example/public http://host.example:8080/"
    " http://[::1]:9000/images http://127.0.0.1:9000"
)

WITHIN = [
    "file:///images/cats/1.jpg",
    "file:///images/cats/deep/er/1.jpg",
    "file:///images/cats/a%20b.jpg",
    "FILE:///images/cats/1.jpg",
    "file:///images/cats/100%.jpg",
    "file:///images/cats/Kätzchen ☺.jpg",
    "file:///images/cats/a..b.jpg",
    "s3://bucket/1.jpg",
    "s3://bucket/50%25.jpg",
    "s3://bucket/a?b#c.jpg",
    "S3://bucket/...",
    "s3://other/cats/ü.jpg",
    "https://host.example/public/1.jpg",
    "HTTPS://HOST.example:443/public/1.jpg?size=2&sign=a%2Fb",
    "https://host.example/public/a%2Fb.jpg",
    "https://host.example/public/ä b.jpg",
    "http://host.example:8080/anything",
    "http://[::1]:9000/images/1.jpg",
    "http://127.0.0.1:9000/1.jpg",
]

OUTSIDE = [
    # Names that only begin alike, and other places.
    "file:///images/cats-private/1.jpg",
    "file:///images",
    "file:///etc/passwd",
    "s3://bucket-evil/1.jpg",
    "s3://Bucket/1.jpg",
    "s3://other/catsup/1.jpg",
    "s3://other/1.jpg",
    "https://host.example/publicity/1.jpg",
    "http://host.example/public/1.jpg",
    "https://host.example:8080/public/1.jpg",
    "https://host.example.evil.example/public/1.jpg",
    "https://host.example./public/1.jpg",
    "ftp://host.example/public/1.jpg",
    # Ways up.
    "file:///images/cats/../dogs/1.jpg",
    "file:///images/cats/./1.jpg",
    "file:///images/cats/..",
    "file:///images/cats/%2e%2e/dogs/1.jpg",
    "file:///images/cats/%2E./dogs/1.jpg",
    "file:///images/cats/%252e%252e/dogs/1.jpg",
    "file:///images/cats/%25252e%25252e/dogs/1.jpg",
    "file:///images/cats/..%2fdogs/1.jpg",
    "file:///images/cats/x%2f..%2f..%2fdogs",
    "file:///images/cats/..\\dogs\\1.jpg",
    "file:///images/cats/..%5cdogs",
    "file:///images/cats/..%255cdogs",
    "file:///images/cats/．．/dogs/1.jpg",
    "file:///images/cats/‥/dogs/1.jpg",
    "file:///images/cats/%c0%ae%c0%ae/dogs/1.jpg",
    "https://host.example/public/..;/private",
    "https://host.example/public/.. /private",
    "https://host.example/public/%2e%2e%3b/private",
    "s3://other/cats/../1.jpg",
    "s3://other/cats/%2e%2e/1.jpg",
    "file:///images/cats/" + "%" + "25" * 20 + "2e",
    # Hosts and users.
    "https://host.example@evil.example/public/1.jpg",
    "https://host.example:secret@evil.example/public/1.jpg",
    "https://evil.example#@host.example/public/1.jpg",
    "https://evil.example?@host.example/public/1.jpg",
    "https://evil.example\\@host.example/public/1.jpg",
    "https://host.example\\.evil.example/public/1.jpg",
    "https://host.example%2eevil.example/public/1.jpg",
    "https://user@host.example/public/1.jpg",
    "s3://key:secret@bucket/1.jpg",
    "http://2130706433:9000/1.jpg",
    "http://0x7f000001:9000/1.jpg",
    "http://0177.0.0.1:9000/1.jpg",
    "http://127.1:9000/1.jpg",
    "http://localhost:9000/1.jpg",
    "http://[::ffff:127.0.0.1]:9000/1.jpg",
    "http://[::1%25lo]:9000/images/1.jpg",
    "http://１２７.0.0.1:9000/1.jpg",
    "http://ⓗost.example:8080/1.jpg",
    "file://localhost/images/cats/1.jpg",
    "file://evil.example/images/cats/1.jpg",
    # Other spellings of a scheme, and file systems inside others.
    "simplecache::s3://bucket/1.jpg",
    "zip://1.jpg::s3://bucket/1.zip",
    "file::https://host.example/public/1.jpg",
    "s3::file:///etc/passwd",
    "local:///images/cats/1.jpg",
    "file:/images/cats/1.jpg",
    "file:images/cats/1.jpg",
    "/images/cats/1.jpg",
    "//host.example/public/1.jpg",
    "https:host.example/public/1.jpg",
    "https:///host.example/public/1.jpg",
    " https://host.example/public/1.jpg",
    "data:image/png;base64,aaaa",
    "https://host.example/public/1.jpg#fragment",
    "",
    # What ends a string, a line or a header elsewhere.
    "file:///images/cats/1.jpg\0.png",
    "file:///images/cats/1.jpg%00.png",
    "https://host.example/public/1.jpg\r\nHost: evil.example",
    "https://host.example/public/%0d%0aHost:%20evil.example",
    "file:///images/cats/\ud800",
]


def _is_allowed(uri: str) -> bool:
    try:
        location = parse_location(uri)
    except LocationNotAllowed:
        return False
    return any(location.is_below(prefix) for prefix in parse_prefixes(PREFIXES))


@pytest.mark.parametrize("uri", WITHIN)
def test_what_lies_below_a_prefix_is_allowed(uri: str) -> None:
    assert _is_allowed(uri)


@pytest.mark.parametrize("uri", OUTSIDE)
def test_nothing_outside_the_prefixes_is_allowed_however_it_is_spelled(uri: str) -> None:
    assert not _is_allowed(uri)


def test_files_are_percent_decoded_and_objects_are_literal() -> None:
    assert parse_location("file:///a%20b/50%25.jpg").path == "/a b/50%.jpg"
    assert parse_location("s3://bucket/a%20b.jpg").path == "/a%20b.jpg"
    assert parse_location("https://host/ä b/%C3%A4?q=ö").path == "/%C3%A4%20b/%C3%A4"
    assert parse_location("https://host/a?q=ö&r=%2f").query == "?q=%C3%B6&r=%2f"


@pytest.mark.parametrize(
    "listed",
    [
        "/images",
        "file:///a,s3://b",
        "https://user@host/",
        "s3://",
        "file://host/a",
        "s3://a/../b",
        "https://host/?a",
        "http://a:99999/",
        "http://[zz]/",
        "s3://a:0/",
        "x",
    ],
)
def test_a_setting_that_lists_something_else_than_prefixes_is_refused(listed: str) -> None:
    with pytest.raises(ValueError, match="GALLERY_IMAGES: "):
        parse_prefixes(listed)


def test_no_prefix_is_listed_by_default() -> None:
    assert parse_prefixes("") == ()
