"""Captions equal the reference's, byte for byte; prompts are read from wherever the user has them."""

import warnings
from functools import cache, partial

import pytest
from bs4.builder import ParserRejectedMarkup

from common import captions
from tests.common import caption_texts
from tests.common.caption_oracle import oracle
from tests.recorded import recorded

# What encoders are given: (the cleaner, whether it takes the text as a list of one, whether Chinese stays).
FORMS = {
    "list_mt5": (captions.clean_caption_as_trained, True, True),
    "list_t5": (partial(captions.clean_caption_as_trained, keep_chinese=False), True, False),
    "text_mt5": (captions.clean_caption, False, True),
}
REFUSALS = (ParserRejectedMarkup, UnicodeEncodeError)  # the oracle's, from inside BeautifulSoup


@pytest.fixture(scope="module")
def golden() -> dict:
    return recorded("captions").data


class Script:
    """Stands in for random.choice: makes the recorded picks in order, each of which must be on offer."""

    def __init__(self, picks: list[str]) -> None:
        self.picks = picks

    def __call__(self, offered) -> str:
        pick = self.picks.pop(0)
        assert pick in offered
        return pick


def test_cleaning_equals_the_reference(golden):
    assert len(golden["cleaning"]) == 31
    for record in golden["cleaning"]:
        text = record["input"]
        assert captions.clean_caption_as_trained(text) == record["cleaned_from_list_mt5"], text
        assert (
            captions.clean_caption_as_trained(text, keep_chinese=False) == record["cleaned_from_list_t5"]
        ), text
        assert captions.clean_caption(text) == record["cleaned_from_str_mt5"], text


@cache
def generated() -> list[str]:
    return caption_texts.captions(2000, seed=20261130)


@pytest.mark.parametrize("form", FORMS)
def test_cleaning_equals_the_oracle_on_generated_captions(form):
    clean, as_list, keep_chinese = FORMS[form]
    reference = oracle(keep_chinese)
    wrong, refused = [], 0
    for text in generated():
        ours = clean(text)
        try:
            theirs = reference(str([text]) if as_list else text)
        except REFUSALS:
            refused += 1
        else:
            wrong += [] if ours == theirs else [(text, ours, theirs)]
    assert not wrong, f"{len(wrong)} differ, the shortest: {min(wrong, key=lambda case: len(case[0]))}"
    assert refused < len(generated()) / 20, "so many are not compared"


@pytest.mark.parametrize(
    ("text", "cleaned", "as_trained"),
    [
        ("&amp;am&amp;quot;p", "", '"'),  # taking out &quot; uncovers &amp
        ("%3Cb%3Ecat%3C%2Fb%3E", "cat", "cat"),  # a tag once the percent signs are decoded
        ("&lt;b&gt;cat", "cat", "cat"),  # a tag in the second pass
        ("&lt;b&gt;cat&lt;/b&gt;", "cat< b>", "cat< b>"),  # the first pass has taken the slash
        ("＆ｌｔ；ｂ＆ｇｔ；cat", "cat", "cat"),  # an entity once the full-width signs are repaired
        ("&#38;#60;b&#62;cat", "b>cat", "b>cat"),
        ("%2526amp%253B cat", "cat", "cat"),
        ("a cat, ", "a cat", "a cat"),
        ("jc6640, a cat, free shipping", "a cat", "a cat"),
        ("click here, a cat, page 12", "click here, a cat", "click here, a cat"),
        ("<b>, a cat :</b>", "a cat", "a cat"),
        ("- 'a cat' -", "a cat", "a cat"),
        ("'', a cat", '", a cat', "a cat"),
        ("'\"", '"', ""),
        ("« a cat », “a dog”.", '" a cat ", "a dog".', 'a cat ", "a dog".'),
        ("“a cat” and ‘a dog’", "a cat\" and 'a dog", "a cat\" and 'a dog"),
        ("\x92, jc6640", "", "x92"),
    ],
)
def test_what_decoding_and_removing_uncover_is_cleaned_as_by_the_oracle(text, cleaned, as_trained):
    assert captions.clean_caption(text) == cleaned
    assert captions.clean_caption_as_trained(text) == as_trained
    reference = oracle(keep_chinese=True)
    assert (reference(text), reference(str([text]))) == (cleaned, as_trained)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a <b>cat</b> <![x] and", "a cat< b> <! x and"),  # the parser takes it in the second pass only
        ("<![ a cat", "<! a cat"),
        ("a cat \ud83d", "a cat \N{REPLACEMENT CHARACTER}"),  # half of an emoji, which cannot be encoded
    ],
)
def test_captions_on_which_the_oracle_fails_are_cleaned_nevertheless(text, cleaned):
    assert captions.clean_caption(text) == cleaned
    with pytest.raises(REFUSALS):
        oracle(keep_chinese=True)(text)


def test_notices_equal_the_reference(golden):
    lists = golden["notice_lists"]
    for kind in ("video", "image"):
        assert captions.aesthetic_notice(4.25, kind) == tuple(lists[f"low_{kind}"])
        assert captions.aesthetic_notice(5.75, kind) == tuple(lists[f"high_{kind}"])
        assert captions.aesthetic_notice(5.0, kind) is None
        assert captions.aesthetic_notice(float("nan"), kind) is None
    for record in golden["notices"]:
        choose = Script([value for _, value in record["choices_drawn"]])
        if record["kind"] == "masking_notice":
            got = captions.with_masking_notice(record["caption"], choose)
        else:
            got = captions.with_notice(record["caption"], record["aesthetic"], record["kind"], choose)
        assert got == record["output"]
        assert not choose.picks, "a draw the reference makes was not made"


def test_the_masking_notice_offers_the_whole_list(golden):
    offered = []
    captions.with_masking_notice("Women.", lambda options: offered.append(options) or options[0])
    assert offered[0] == tuple(golden["notice_lists"]["masking"])


@pytest.mark.parametrize(
    "caption", ["a manual", "the boycott", "Germany", "kidney beans", "a personal computer"]
)
def test_words_that_only_contain_people_get_no_masking_notice(caption):
    assert captions.with_masking_notice(caption, lambda options: "drawn") == caption


def test_dropping_equals_the_reference(golden):
    for record in golden["inpaint_caption_drop"]:
        draws = iter([value for _, value in record["draws"]])
        kind = "video" if record["is_video"] else "image"
        got = captions.drop_caption(
            "some text", kind, record["cfg"], record["default_text_ratio"], draws.__next__
        )
        wanted = record["output"]
        assert got == (wanted[0] if isinstance(wanted, list) else wanted)
        assert not list(draws), "both draws are taken, whatever they decide"


def test_text_to_video_never_gets_the_stock_sentence():
    assert captions.drop_caption("a cat", "video", drop_ratio=1.0, stock_ratio=0.0, draw=lambda: 0.0) == ""
    assert (
        captions.drop_caption("a cat", "video", drop_ratio=0.0, stock_ratio=1.0, draw=lambda: 0.0) == "a cat"
    )


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a <![ b", "a <! b"),  # the parser rejects it
        ("", ""),
        ("photo.jpg &", ""),  # the parser would warn that this is a file name
        ("Füße &amp; Hände", "füße hände"),
        ("ＡＢＣ", "abc"),
        ("日本語 ㈱", "日本語"),
        ("- -a cat", "a cat"),  # the second pass sees the second dash
        ("script <script>alert(1)</script>end", "script end"),
        ("<?xml version='1.0'?><a>a cat</a>", "a cat"),  # the parser would warn that this is XML
        ("a & b \udc80", "a b \N{REPLACEMENT CHARACTER}"),
    ],
)
def test_odd_text_is_cleaned_without_error_or_warning(text, cleaned):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert captions.clean_caption(text) == cleaned


def test_the_templates_survive_cleaning():
    prompt = captions.clean_caption(captions.PROMPT_TEMPLATE.format("A {red} ball"))
    assert prompt == "high quality, high aesthetic, a red ball"
    negative = captions.clean_caption(captions.NEGATIVE_PROMPT)
    assert negative == captions.NEGATIVE_PROMPT.replace("jpeg ", "")  # a word of the table of advertising


def test_prompts_come_from_a_string_a_list_or_a_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa cat\n\n  ein Fuß \r\n", encoding="utf-8")
    assert captions.read_prompts(" a cat ") == ["a cat"]
    assert captions.read_prompts(["a cat", "a dog"]) == ["a cat", "a dog"]
    assert captions.read_prompts(str(file)) == ["a cat", "ein Fuß"]


@pytest.mark.parametrize("content", [None, b"", b" \n\n", b"\xff\xfe\x00"])
def test_a_useless_prompt_file_is_refused_by_name(tmp_path, content):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"prompts\.txt: got .+, wanted .+; \w+"):
        captions.read_prompts(str(file))


@pytest.mark.parametrize("spec", ["", "  ", [], ["a cat", ""], ["a cat", 3]])
def test_a_blank_prompt_is_refused(spec):
    with pytest.raises(ValueError, match=r"prompts: got .+, wanted text"):
        captions.read_prompts(spec)
