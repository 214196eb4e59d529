"""Captions and prompts: cleaning, the notices training adds, caption dropping, and the templates of sampling.

Cleaning follows the web-caption recipe of DeepFloyd IF (as used by PixArt and Open-Sora Plan v1.3): a fixed
order of rewrites, applied twice. Randomness is handed in (`choose`, `draw`), so a step can be replayed.
"""

import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Literal
from urllib.parse import unquote_plus

import ftfy
from bs4 import BeautifulSoup, XMLParsedAsHTMLWarning
from bs4.builder import ParserRejectedMarkup

from .errors import InputError
from .files import read_lines

Kind = Literal["video", "image"]
Choose = Callable[[Sequence[str]], str]
Rewrite = tuple[re.Pattern[str], str, str]  # (what to find, what to put there, why)

PROMPT_TEMPLATE = "high quality, high aesthetic, {}"
NEGATIVE_PROMPT = (
    "nsfw, lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, "
    "worst quality, low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."
)


def read_prompts(spec: str | Sequence[str]) -> list[str]:
    """The prompts meant by `spec`: a list, one prompt, or the path of a .txt file with one prompt per line.

    Blank lines of a file are skipped; a line ends at LF or CRLF only.

    Raises:
        InputError: the file is missing, not UTF-8 or empty, or a prompt is blank.
    """
    if isinstance(spec, str) and spec.endswith(".txt"):
        lines = read_lines(spec, "prompts", "a UTF-8 text file with one prompt per line")
        return [line for _, line in lines]
    prompts = [spec] if isinstance(spec, str) else list(spec)
    blank = [i for i, prompt in enumerate(prompts) if not isinstance(prompt, str) or not prompt.strip()]
    if blank or not prompts:
        got = f"{prompts[blank[0]]!r} at position {blank[0]}" if blank else "no prompt at all"
        raise InputError(
            f"prompts: got {got}, wanted text; give a sentence, a list, or the path of a .txt file"
        )
    return [prompt.strip() for prompt in prompts]


def clean_caption(text: str, keep_chinese: bool = True) -> str:
    """`text` in lower case without the litter of web captions; twice, as one pass can uncover more litter.

    keep_chinese: True for mT5 and other multilingual encoders, False for T5, which knows no Chinese.
    """
    return _clean_once(_clean_once(text, keep_chinese), keep_chinese)


def clean_caption_as_trained(text: str, keep_chinese: bool = True) -> str:
    """What the released models saw in training: `text` cleaned in the form of a Python list of one element.

    The quotes and escapes of that form mostly vanish, but not always: '' becomes '"', and a tab leaves a "t".
    """
    return clean_caption(str([text]), keep_chinese)


def _clean_once(text: str, keep_chinese: bool) -> str:
    text = unquote_plus(text).strip().lower().replace("<person>", "person")  # the one tag that is a word
    text = _NICKNAME.sub("", _strip_html(_rewrite(text, _ADDRESSES)))
    text = (_RARE_CJK if keep_chinese else _CJK).sub("", text)
    text = _rewrite(text, _LITTER)
    if len(_JOINERS.findall(text)) > 3:  # this-is-my-cute-cat_and_dog; a few hyphens are normal English
        text = _JOINERS.sub(" ", text)
    text = _repair_unicode(text).strip()
    return _rewrite(text, _CODES_AND_ADS).strip()


def _rewrite(text: str, table: Sequence[Rewrite]) -> str:
    for pattern, replacement, _ in table:
        text = pattern.sub(replacement, text)
    return text


def _strip_html(text: str) -> str:
    if "<" not in text and "&" not in text:  # nothing to parse, and parsing is the slowest step
        return text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XMLParsedAsHTMLWarning)  # a caption may quote XML
        try:
            # As a stream: a string is first examined for being a file name, which fails on lone surrogates.
            return BeautifulSoup(io.StringIO(text, newline=""), features="html.parser").text
        except ParserRejectedMarkup:  # "a <![ b" is not HTML, so there is none to strip
            return text


def _repair_unicode(text: str) -> str:
    """Mojibake, full-width letters and left-over entities set right; printable ASCII has none of them."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text
    return html.unescape(html.unescape(ftfy.fix_text(text)))


def _table(*rows: tuple[str, str, str]) -> list[Rewrite]:
    return [(re.compile(pattern), replacement, why) for pattern, replacement, why in rows]


_DOMAIN = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_FILE_TYPE = r"(?:png|jpe?g|bmp|webp|eps|pdf|apk|mp4)"
_DASH = (  # every hyphen, dash and wave dash of Unicode
    "\\-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
    "\ufe31\ufe32\ufe58\ufe63\uff0d"
)
_RARE_CJK = re.compile("[\u31c0-\u4dff]+")  # strokes, enclosed letters, extension A, hexagrams
_CJK = re.compile("[\u31c0-\u9fff]+")  # those and the common ideographs, which follow at 4e00
_NICKNAME = re.compile(r"@\w+\b")
_JOINERS = re.compile("[-_]")

_ADDRESSES = _table(
    (rf"\b(?:https?:(?:/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN})", "", "web address"),
    (rf"\b(?:www:(?:/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN})", "", "web address uncovered by the first removal"),
)
_LITTER = _table(
    (f"[{_DASH}]+", "-", "one kind of dash"),
    ("[`´«»“”¨]", '"', "one kind of double quote"),
    ("[‘’]", "'", "one kind of single quote"),
    ("&quot;?", "", "entity that survived the parser"),
    ("&amp", "", "another, at times uncovered by the first removal"),
    (r"\d{1,3}(?:\.\d{1,3}){3}", " ", "IP address"),
    (r"\d:\d\d\s+$", "", "time of an article, at the end"),
    (r"\\n", " ", "line break written as backslash n"),
    (r"#(?:\d{1,3}|\d{5,})\b", "", "#123, #12345: ids; four digits may be a year"),
    (r"\b\d{6,}\b", "", "long number"),
    (rf"\S+\.{_FILE_TYPE}", "", "file name"),
    ("[\"']{2,}", '"', '"""SOLD OUT"""'),
    (r"\.{2,}", " ", "ellipsis"),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " ", "***sale***, brackets, symbols"),
    (r"\s+\.\s+", " ", "lonely full stop"),
)
_CODES_AND_ADS = _table(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", "", "jc6640"),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", "", "jc6640vc"),
    (r"\b\d+[a-zA-Z]+\d+\b", "", "6640vc231"),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", "", "advertising"),
    (r"(?:free\s)?download(?:\sfree)?", "", "advertising"),
    (r"\bclick\b\s(?:for|on)\s\w+", "", "click for details"),
    (rf"\b{_FILE_TYPE}(?:\simages?)?", "", "png image"),
    (r"\bpage\s+\d+\b", "", "page 12"),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " ", "j2d1a2a"),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", "", "1920x1080; the middle x of the three is Cyrillic"),
    (r"\b\s+:\s+", ": ", "space before a colon"),
    (r"(\D[,./])\b", r"\1 ", "no space after a comma"),
    (r"\s+", " ", "runs of blanks"),
    ("^[\"']([\\w\\W]+)[\"']$", r"\1", "quotes around everything"),
    (r"^['_,\-:;]", "", "loose sign at the start"),
    (r"['_,\-:+]$", "", "loose sign at the end"),
    (r"^\.\S+$", "", "only a file extension"),
)


LOW_AESTHETIC, HIGH_AESTHETIC = 4.25, 5.75  # a score between the two gets no notice

_LOW_NOTICES = (
    "This {} has a low aesthetic quality.",
    "The beauty of this {} is minimal.",
    "This {} scores low in aesthetic appeal.",
    "The aesthetic quality of this {} is below average.",
    "This {} ranks low for beauty.",
    "The artistic quality of this {} is lacking.",
    "This {} has a low score for aesthetic value.",
    "The visual appeal of this {} is low.",
    "This {} is rated low for beauty.",
    "The aesthetic quality of this {} is poor.",
)
_HIGH_NOTICES: dict[Kind, tuple[str, ...]] = {  # worded unlike for the two kinds
    "video": (
        "This video has a high aesthetic quality.",
        "The beauty of this video is exceptional.",
        "This video scores high in aesthetic value.",
        "With its harmonious colors and balanced composition.",
        "This video ranks highly for aesthetic quality",
        "The artistic quality of this video is excellent.",
        "This video is rated high for beauty.",
        "The aesthetic quality of this video is impressive.",
        "This video has a top aesthetic score.",
        "The visual appeal of this video is outstanding.",
    ),
    "image": (
        "This image has a high aesthetic quality.",
        "The beauty of this image is exceptional",
        "This photo scores high in aesthetic value.",
        "With its harmonious colors and balanced composition.",
        "This image ranks highly for aesthetic quality.",
        "The artistic quality of this photo is excellent.",
        "This image is rated high for beauty.",
        "The aesthetic quality of this image is impressive.",
        "This photo has a top aesthetic score.",
        "The visual appeal of this image is outstanding.",
    ),
}
_MASKING_NOTICES = (
    "Note: The faces in this image are blurred.",
    "This image contains faces that have been pixelated.",
    "Notice: Faces in this image are masked.",
    "Please be aware that the faces in this image are obscured.",
    "The faces in this image are hidden.",
    "This is an image with blurred faces.",
    "The faces in this image have been processed.",
    "Attention: Faces in this image are not visible.",
    "The faces in this image are partially blurred.",
    "This image has masked faces.",
    "Notice: The faces in this picture have been altered.",
    "This is a picture with obscured faces.",
    "The faces in this image are pixelated.",
    "Please note, the faces in this image have been blurred.",
    "The faces in this photo are hidden.",
    "The faces in this picture have been masked.",
    "Note: The faces in this picture are altered.",
    "This is an image where faces are not clear.",
    "Faces in this image have been obscured.",
    "This picture contains masked faces.",
    "The faces in this image are processed.",
    "The faces in this picture are not visible.",
    "Please be aware, the faces in this photo are pixelated.",
    "The faces in this picture have been blurred.",
)
_PEOPLE = re.compile(
    r"\b(?:people|child(?:ren)?|(?:wo)?m[ae]n|(?:person|human|individual|adult|kid|girl|boy)s?)\b",
    re.IGNORECASE,
)


def aesthetic_notice(score: float, kind: Kind) -> tuple[str, ...] | None:
    """The sentences of which one is to say that `score` is low, or high; None in between or if it is NaN."""
    if score <= LOW_AESTHETIC:
        return tuple(notice.format(kind) for notice in _LOW_NOTICES)
    return _HIGH_NOTICES[kind] if score >= HIGH_AESTHETIC else None


def with_notice(caption: str, score: float, kind: Kind, choose: Choose) -> str:
    """`caption` with an aesthetic notice before or after it; `choose` picks the notice, then the place."""
    notices = aesthetic_notice(score, kind)
    return _attach(caption, notices, choose) if notices else caption


def with_masking_notice(caption: str, choose: Choose) -> str:
    """`caption`, if it speaks of people, with a notice that faces are hidden (SA-1B blurs them)."""
    return _attach(caption, _MASKING_NOTICES, choose) if _PEOPLE.search(caption) else caption


def _attach(caption: str, notices: Sequence[str], choose: Choose) -> str:
    notice = choose(notices)
    return choose((f"{caption} {notice}", f"{notice} {caption}"))


def drop_caption(
    caption: str, kind: Kind, drop_ratio: float, stock_ratio: float, draw: Callable[[], float]
) -> str:
    """The caption, or with probability `drop_ratio` none, so that the model also learns to go without text.

    Of the dropped ones the share `stock_ratio` (inpainting; 0 for text-to-video) becomes a sentence that fits
    every picture. `draw` gives uniform numbers in [0, 1); it is always called twice, to keep streams in step.
    """
    dropped, stock = draw() < drop_ratio, draw() < stock_ratio
    if not dropped:
        return caption
    return f"The {kind} showcases a scene with coherent and clear visuals." if stock else ""
