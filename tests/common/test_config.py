"""Strict configs: every mistake is one line that names the key; every preset loads."""

import typing
from pathlib import Path

import pytest
import yaml
from pydantic import Field, ValidationError

from common.captions import NEGATIVE_PROMPT, PROMPT_TEMPLATE
from common.config import Config, build, free_keys, key, load, marks_of
from common.encoding import EncodeConfig
from common.models import HubConfig, TransformerConfig, VAEConfig
from common.runs import EvaluateVAEConfig, ReconstructConfig, SampleConfig
from common.t2v_training import T2VTrainConfig
from common.vae_training import VAETrainConfig
from tools.parity.plan import DumpConfig

ROOT = Path(__file__).resolve().parents[2]


class Inner(Config):
    rate: float = 1.0
    steps: int = 3


class Outer(Config):
    name: str
    inner: Inner = Inner()


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def test_overrides_reach_into_sections(write):
    config = load(Outer, write("name: a\ninner: {rate: 2}"), ["inner.steps=7", "name=b c", "inner.rate=1e-4"])
    assert config == Outer(name="b c", inner=Inner(rate=1e-4, steps=7))


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("name: a\ninner: {stpes: 3}", [], "unknown key 'inner.stpes'; did you mean 'steps'?"),
        ("name: a\nqqq: 3", [], "unknown key 'qqq'; known keys: name, inner"),
        ("inner: {}", [], "'name' is missing"),
        ("name: a\ninner: {steps: many}", [], "inner.steps: .*integer.*; got 'many'"),
        ("- a", [], "expected `key: value` lines, got list"),
        ("name: [", [], "not valid YAML"),
        ("name: a", ["inner"], "override 'inner' is not of the form section.key=value"),
        ("name: a", ["name.x=1"], "'name' is a value, not a section"),
    ],
)
def test_mistakes_are_named(write, text, overrides, message):
    with pytest.raises(ValueError, match=message):
        load(Outer, write(text), overrides)


class Texts(Config):
    prompt: str | list[str] = ""
    path: str | None = "x"
    number: float = 1.0
    free: dict = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("prompt=A harbour #1 at dawn", "prompt", "A harbour #1 at dawn"),
        ("prompt=Title: a cat: sits", "prompt", "Title: a cat: sits"),
        ("prompt=yes", "prompt", "yes"),
        ("prompt=12:30", "prompt", "12:30"),
        ("prompt=[wide shot] a cat", "prompt", "[wide shot] a cat"),
        ('prompt="quoted" cat', "prompt", '"quoted" cat'),
        ("prompt=*stars* @home", "prompt", "*stars* @home"),
        ("prompt=- a cat", "prompt", "- a cat"),
        ("prompt=[a cat, a dog]", "prompt", ["a cat", "a dog"]),
        ("path=null", "path", None),
        ("path=1.0", "path", "1.0"),
        ("number=1e-4", "number", 1e-4),
        ("free.a=[1, 2]", "free", {"a": [1, 2]}),
    ],
)
def test_text_stays_as_it_was_typed(write, override, key, value):
    assert getattr(load(Texts, write("number: 2"), [override]), key) == value


def test_missing_file():
    with pytest.raises(ValueError, match=r"no such file; presets are in configs/"):
        load(Outer, "nowhere.yaml")


def test_all_mistakes_at_once(write):
    with pytest.raises(ValueError, match="stpes") as caught:
        load(Outer, write("inner: {stpes: 3, rate: x}"))
    assert len(str(caught.value).splitlines()) == 3


def test_replace_validates():
    with pytest.raises(ValueError, match="steps"):
        Inner().replace(steps="x")


def test_released_config_json_is_accepted_as_it_is():
    released = {"_class_name": "OpenSoraT2V_v1_3", "_diffusers_version": "0.30.2", "num_layers": 32}
    released |= {"decay": 0.9999, "optimization_step": 7}  # what EMAModel adds
    released |= {
        "attention_head_dim": 96,
        "num_attention_heads": 24,
        "cross_attention_dim": 2304,
        "sparse_n": 4,
    }
    assert build(TransformerConfig, released, "x").plan[1:4] == ("full", "single", "group")
    assert build(VAEConfig, {"_class_name": "WFVAEModel", "norm_type": "layernorm"}, "x").stride_thw == (
        4,
        8,
        8,
    )


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (TransformerConfig, {"attention_head_dim": 100}, "multiple of 6"),
        (TransformerConfig, {"cross_attention_dim": 4096}, "must equal heads"),
        (TransformerConfig, {"sparse_n": 0}, "at least 1"),
        (TransformerConfig, {"num_layers": 0}, "num_layers=0 must be at least 1"),
        (VAEConfig, {"latent_dim": 0, "norm_type": "layernorm"}, "latent_dim=0 must be at least 1"),
        (TransformerConfig, {"only_cross_attention": True}, "only_cross_attention"),
        (VAEConfig, {"scale": [1, 2, 3]}, "1 or latent_dim"),
        (VAEConfig, {"l1_upsample_wavelet": "InverseHaarWaveletTransform3D"}, "all 2D"),
        (VAEConfig, {"base_channels": 48}, "32 groups"),
    ],
)
def test_impossible_models(cls, fields, message):
    with pytest.raises(ValueError, match=message):
        build(cls, fields, "model")


PRESETS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_presets_load_and_say_how_to_run_them(path):
    kinds = {
        "sample": SampleConfig,
        "reconstruct": ReconstructConfig,
        "evaluate": EvaluateVAEConfig,
        "parity": DumpConfig,
        "encode": EncodeConfig,
        "train_vae": VAETrainConfig,
        "train": T2VTrainConfig,
    }
    load(next(kind for name, kind in kinds.items() if path.stem.startswith(name)), path)
    head = path.read_text().split("\n\n")[0]
    for word in ("command:", "hardware:", "result:"):
        assert word in head, f"{path.name} does not open with its {word}"
    assert yaml.safe_load(path.read_text())


def test_released_presets_use_the_references_prompts():
    for path in PRESETS:
        if "sample_released" in path.stem:
            config = load(SampleConfig, path)
            assert config.prompt_template == PROMPT_TEMPLATE
            assert config.negative_prompt == NEGATIVE_PROMPT


def test_an_override_reaches_into_a_list(tmp_path):
    preset = ROOT / "configs" / "train_vae_tiny.yaml"
    config = load(
        VAETrainConfig,
        preset,
        ["data.sources.1.weight=5", "data.sources.0.videos=a: b", "data.sources.0.generated=false"],
    )
    assert config.data.sources[1].weight == 5
    assert config.data.sources[0].videos == "a: b"
    with pytest.raises(ValueError, match="'7' is not an entry of a list of 2, counted from 0"):
        load(VAETrainConfig, preset, ["data.sources.7.weight=5"])


def sections(cls, found=None):
    """The configs that a config is made of; what a model is made of affects the result as a whole."""
    found = {} if found is None else found
    for name in () if cls in found or issubclass(cls, HubConfig) else cls.model_fields:
        found.setdefault(cls, set()).add(name)
        kinds = [cls.model_fields[name].annotation]
        while kinds:
            kind = kinds.pop()
            kinds += typing.get_args(kind)
            if isinstance(kind, type) and issubclass(kind, Config) and kind not in found:
                sections(kind, found)
    return found


@pytest.mark.parametrize("cls", [T2VTrainConfig, VAETrainConfig])
def test_every_key_of_a_training_says_whether_it_affects_the_result(cls):
    found = sections(cls)
    assert len(found) >= 8
    unmarked = [f"{c.__name__}.{n}" for c, names in found.items() for n in names if marks_of(c, n) is None]
    assert not unmarked, "declare them with key(default, affects_result=...)"


def test_free_keys_are_what_they_were_before_the_marks():
    """A run that was begun then goes on with the same freedom."""
    before = {
        *("output", "device", "accumulate", "recompute", "parallel", "transformer.path", "vae.path"),
        *("text.path", "data.annotations", "data.root", "data.encoded", "data.workers", "data.prefetch"),
        *("data.max_bad_share", "data.token_multiple", "validation", "ema_on_host", "encoders_on_host"),
        "vae_chunk_frames",
    }
    assert set(free_keys(T2VTrainConfig)) == before | {"loop", "op_compile"}
    before = {"output", "device", "data.workers", "data.prefetch", "data.max_bad_share", "validation"}
    assert set(free_keys(VAETrainConfig)) == before | {"loop", "op_compile", "vae.path"}


def test_a_field_without_a_mark_is_noticed():
    class Planted(Config):
        """A section with a key that says nothing."""

        steps: int = key(1, ge=1)
        workers: int = key(2, affects_result=False)
        forgotten: int = 3

    assert [marks_of(Planted, name) is None for name in Planted.model_fields] == [False, False, True]
    assert free_keys(Planted) == ("workers",)
    with pytest.raises(ValidationError):
        Planted(steps=0)
