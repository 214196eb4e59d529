"""Captions drawn from the litter of the web, to compare caption cleaners on; the same ones for a seed."""

import html
import random
from collections.abc import Callable
from urllib.parse import quote, quote_plus

PIECES: dict[str, tuple[str, ...]] = {
    "word": (
        "a cat", "The Dog", "it's", "3D", "4K", "x", "İstanbul", "Straße", "ΣΟΦΟΣ", "naïve", "no.1",
        "s.t", "a",
    ),
    "markup": (
        "<b>", "</b>", "<br/>", "<p class='x y'>", '<a href="http://a.com/b">', "<!-- a -->",
        "<!doctype html>", "<?php echo 1 ?>", "<script>", "</script>", "<style>b{}</style>",
        "<![CDATA[cat]]>", "<person>", "<PERSON>", "<", "</", "<!", "<!-", "<3", ">", "<b", "</ b",
        "<textarea>", "<title>", "<pre>", "<template>", "<svg>", "<![ b", "<![if x]>",
        "<?xml version='1.0'?>",
    ),
    "entity": (
        "&amp;", "&amp", "&amp;amp;", "&amp;amp;quot;", "&quot;", "&quot", "&QUOT;", "&lt;b&gt;",
        "&amp;lt;i&amp;gt;", "&#39;", "&#x27;", "&#38;quot;", "&nbsp;", "&#0;", "&#128;", "&#150;",
        "&#xd800;", "&bogus;", "&copy", "&notit;", "&", "&;", "&#;", "&#x;", "&eacute;",
        "&am&quot;p", "&am&ampp;", "&#65286;amp;", "&lsquo;",
    ),
    "percent": (
        "%20", "%", "%zz", "+", "%2B", "%26amp%3B", "%E4%BD%A0", "%E4", "%3Cb%3E", "%2520", "%0A",
        "%00",
    ),
    "quote": (
        '"', "'", '"""', "''", "'\"", "`", "´", "«", "»", "“", "”", "‘", "’", "¨", "„", "‚", "‹",
        "′", "＂", "＇",
    ),
    "sign": (
        ".", "..", "...", "…", ",", ",,", ":", ";", "-", "--", "_", "+", "!", "?", "/", "\\", "|",
        "*", "~", "@", "#", "(", ")", "[", "]", "{", "}", "§", "·", "º", "½", "¾", "¿", "©", "®",
        "™", "•", "=", "^", "$", " . ", " : ", "、", "。", "，", "．", "：", "；", "！",
    ),
    "dash": (
        "–", "—", "‐", "‑", "―", "〜", "〰", "゠", "−", "－", "﹣", "\u05be", "\u1806", "\u058a",
        "a-b-c-d-e", "_a_b_",
    ),
    "advertising": (
        "free shipping", "worldwide free shipping", "worldwide  shipping", "shipping",
        "free download", "download", "download free", "click here", "click for details",
        "click on it", "page 12", "page  3", "png images", "jpg", "jpeg image",
        "free free download free",
    ),
    "id": (
        "jc6640", "jc6640vc", "6640vc231", "j2d1a2a", "#123", "#1234", "#12345", "##12", "123456",
        "1234567", "１２３４５６", "1920x1080", "10×20", "3.5х2", "3.5x2.25", "12:30 ", "12:30",
        "192.168.0.1", "1.2.3.4.5", "1111.2.3.4", "é12345", "²³", "٣٤٥٦٧٨", "abc١٢٣",
    ),
    "address": (
        "http://a.com/b?c=d", "https://x", "https:a", "www.test.org/abc", "www:/x", "www:a",
        "a.com", "a.co.uk", "me@a.com", "@nick", "@ nick", "@é", "a.com@b", "a.com/b/@c", "a.it",
        "-a.ru-", "x.net/", "B.COM/é", "http:/", "https:%41", "a.comb", "例え.com", "a.com.b",
    ),
    "file": (
        "photo.jpg", "a_1.mp4", "b.PNG", ".pdf", "c.jpeg.zip", "d.webp!", "e.", "/f/g.eps", "ä.bmp",
        "jpg.jpg", ".x",
    ),
    "escape": (
        "\\n", "\\\\n", "\\t", "\\x00", "\\u4f60", "\\", "\\'", '\\"', "\\N",
    ),
    "blank": (
        " ", "  ", "\t", "\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\xa0",
        "\u2003", "\u2028", "\u3000",
    ),
    "control": (
        "\x00", "\x07", "\x08", "\x1b", "\x1b[31m", "\x7f", "\x80", "\x92", "\xad", "\u200b",
        "\u200e", "\ufeff", "\ufffd", "\ufffe", "\ud83d", "\udc80",
    ),
    "chinese": (
        "你好", "猫在跑", "日本語", "㈱", "㌔", "㐀", "䷀", "㇀", "ㇰ",
        "豈", "𠀀", "カタカナ", "ｶﾞ", "한국어", "々", "〇",
    ),
    "rare": (
        "😀", "👨‍👩‍👧", "🇩🇪", "☎️", "e\u0301", "n\u0303o", "\u0301", "\u0345", "שלום", "مرحبا",
        "\u202eabc\u202c", "हिन्दी", "ﬁ", "ﬃ", "ǆ", "ŉ", "Å", "Ω", "①", "㎏", "ⅻ", "ª", "𝐛𝐨𝐥𝐝", "ſ",
        "ı", "ß", "ẞ", "₤",
    ),
    "mojibake": (
        "Ã©", "â€™", "â€œquoteâ€\x9d", "Â£", "ðŸ˜€", "Ã\xa0", "a Ã la", "&Atilde;&copy;", "ä½\xa0",
        "âœ”", "Ã¼ber", "ï»¿", "Ð¼Ð¸Ñ€",
    ),
}  # fmt: skip
JOINTS = ("", "", "", " ", " ", " ", ", ", ",", ".", "-", "_", "\n", "  ", "'", '"')


def captions(count: int, seed: int) -> list[str]:
    """`count` different texts of one to eight pieces; pieces and whole texts are at times disguised."""
    rng = random.Random(seed)
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[_text(rng)] = None
    return list(texts)


def _text(rng: random.Random) -> str:
    text = ""
    for _ in range(rng.randint(1, 8)):
        piece = _any_character(rng) if rng.random() < 0.03 else rng.choice(PIECES[rng.choice(list(PIECES))])
        text += _disguised(piece, rng, 0.15) + rng.choice(JOINTS)
    return _disguised(text, rng, 0.3)


def _any_character(rng: random.Random) -> str:
    return chr(rng.choice((rng.randrange(0x250), rng.randrange(0x10000), rng.randrange(0x110000))))


def _disguised(text: str, rng: random.Random, probability: float) -> str:
    while rng.random() < probability:
        text = rng.choice(DISGUISES)(text)
    return text


def _full_width(text: str) -> str:
    return "".join(chr(ord(sign) + 0xFEE0) if "!" <= sign <= "~" else sign for sign in text)


def _misread(codec: str) -> Callable[[str], str]:
    return lambda text: text.encode("utf-8", "replace").decode(codec, "replace")


DISGUISES: tuple[Callable[[str], str], ...] = (
    html.escape,
    lambda text: html.escape(html.escape(text)),
    lambda text: text.encode("ascii", "xmlcharrefreplace").decode(),
    lambda text: "".join(f"&#{ord(sign)};" for sign in text),
    lambda text: quote(text.encode("utf-8", "replace")),
    lambda text: quote_plus(quote_plus(text.encode("utf-8", "replace"))),
    _full_width,
    _misread("latin-1"),
    _misread("cp1252"),
    str.upper,
    lambda text: f'"{text}"',
    lambda text: f"'{text}'",
    lambda text: f"“{text}”",
    lambda text: f"({text})",
    lambda text: f"<b>{text}</b>",
    lambda text: f"- {text},",
    lambda text: f", {text} :",
    lambda text: f"{text} jc6640",
    lambda text: f"{text} 12:30 <br/>",
    lambda text: f"free download {text}",
    lambda text: str([text]),
    lambda text: text[::-1],
)
