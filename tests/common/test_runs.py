"""What is decided before a tensor exists: sizes, sources, jobs, ranks."""

import json

import pytest

from common.errors import InputError
from common.guidance import Guidance
from common.models import TransformerConfig, VAEConfig
from common.noise import initial_weights, normal
from common.outputs import batches, plan_jobs
from common.parallel import Mesh, mesh_from_environment
from common.runs import ModelSource, SampleConfig, SamplerConfig, latent_size

VAE, DIT = VAEConfig(norm_type="layernorm"), TransformerConfig()


def sample_config(**fields):
    models = {"transformer": {"path": "x"}, "vae": {"path": "y"}, "text": {"kind": "minilm"}}
    return SampleConfig.model_validate({**models, "prompt": "a", **fields})


def test_latent_size_of_the_released_models():
    assert latent_size(sample_config(num_frames=93, height=352, width=640), VAE, DIT) == (24, 44, 80)
    assert latent_size(sample_config(num_frames=1, height=512, width=512), VAE, DIT) == (1, 64, 64)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_frames": 30}, "num_frames: got 30, wanted a multiple of 4 plus 1; the nearest are 29 and 33"),
        (
            {"height": 360},
            "height: got 360, wanted a multiple of 16; multiples of 32 never need padding.*352",
        ),
        ({"width": 100}, "width: got 100"),
    ],
)
def test_sizes_the_models_cannot_make(fields, message):
    with pytest.raises(ValueError, match=message):
        latent_size(sample_config(**fields), VAE, DIT)


def test_models_that_do_not_belong_together():
    with pytest.raises(ValueError, match=r"in_channels is 8, vae.latent_dim is 4"):
        latent_size(sample_config(), VAE.replace(latent_dim=4), DIT)


def test_a_model_has_one_source(tmp_path):
    with pytest.raises(ValueError, match="either path"):
        ModelSource()
    with pytest.raises(ValueError, match="random_seed draws weights"):
        ModelSource(config={})
    with pytest.raises(ValueError, match="would ignore the checkpoint"):
        ModelSource(path="x", random_seed=1)
    with pytest.raises(ValueError, match=r"no config.json"):
        ModelSource(path=str(tmp_path)).resolve(VAEConfig, "vae")
    (tmp_path / "config.json").write_text(json.dumps({"latent_dim": 4, "_class_name": "WFVAEModel"}))
    source = ModelSource(path=str(tmp_path), overrides={"norm_type": "layernorm"})
    assert source.resolve(VAEConfig, "vae") == VAEConfig(latent_dim=4, norm_type="layernorm")


def test_unknown_sampler_is_named():
    with pytest.raises(ValueError, match=r"did you mean 'DDIM'"):
        SamplerConfig(name="DDIMM").table()


@pytest.mark.parametrize(
    ("scale", "below_one", "on"),
    [
        *((0, False, False), (0.5, False, False), (1, False, False), (1.5, False, True), (7.5, False, True)),
        *((0, True, True), (0.5, True, True), (1, True, False), (1.5, True, True)),
    ],
)
def test_guidance_at_or_below_one_is_off_as_in_the_reference(scale, below_one, on):
    config = SamplerConfig(guidance_scale=scale, guidance_below_one=below_one, guidance_rescale=0.25)
    assert config.guidance() == Guidance(scale, 0.25, below_one)
    assert config.guidance().on == on


def test_prompt_template_needs_a_place():
    with pytest.raises(ValueError, match=r"must contain \{\} once"):
        sample_config(prompt_template="a photo")


def test_jobs_are_the_same_however_they_are_spread():
    jobs = plan_jobs(["a", "b", "c"], 2, seed=10)
    assert [job.seed for job in jobs] == [10, 11, 12, 13, 14, 15]
    assert [job.prompt for job in jobs] == ["a", "a", "b", "b", "c", "c"]
    spread = [job for rank in range(4) for job in Mesh(rank, 4).share(jobs)]
    assert sorted(spread) == jobs
    assert [job for batch in batches(jobs, 4, [(64, 64)] * 3) for job in batch] == jobs
    assert len({job.stem for job in jobs}) == len(jobs)


def test_a_batch_holds_one_size():
    jobs = plan_jobs(["a", "b", "c"], 2, seed=10)
    batched = list(batches(jobs, 3, [(64, 64), (64, 64), (32, 64)]))
    assert [[job.prompt for job in batch] for batch in batched] == [["a", "a", "b"], ["b"], ["c", "c"]]


def test_mesh_of_both_launchers(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "RANK_ID", "MS_WORKER_NUM", "DEVICE_ID"):
        monkeypatch.delenv(name, raising=False)
    assert mesh_from_environment() == Mesh(0, 1)
    monkeypatch.setenv("RANK_ID", "1")
    monkeypatch.setenv("MS_WORKER_NUM", "2")
    monkeypatch.setenv("DEVICE_ID", "1")
    assert mesh_from_environment() == Mesh(1, 2, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert mesh_from_environment() == Mesh(3, 4, 2)
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(ValueError, match="rank 4 of 4"):
        mesh_from_environment()


def test_noise_is_a_function_of_seed_and_index():
    assert (normal((4,), 1, 2) == normal((4,), 1, 2)).all()
    assert (normal((4,), 1, 2) != normal((4,), 1, 3)).any()
    assert (normal((4,), 1, 2) != normal((4,), 2, 2)).any()
    shapes = {"a.weight": (3, 4), "norm.weight": (5,), "b.bias": (2,)}
    forward, backward = initial_weights(shapes, 0), initial_weights(dict(reversed(shapes.items())), 0)
    assert all((forward[name] == backward[name]).all() for name in shapes)


def test_keys_of_a_downloaded_config_that_are_not_ours_are_a_warning(tmp_path, capsys):
    """Ours stay strict: a key of our own YAML that is not known is an error."""
    theirs = {"_class_name": "OpenSoraT2V_v1_3", "norm_num_groups": 32, "attention_type": "default"}
    (tmp_path / "config.json").write_text(json.dumps({**theirs, "num_layers": 4}))
    source = ModelSource(path=str(tmp_path))
    assert source.resolve(TransformerConfig, "transformer").num_layers == 4
    source.resolve(TransformerConfig, "transformer")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("keys that are not known here are passed over: norm_num_groups, attention_type")
    with pytest.raises(InputError, match=r"unknown key 'norm_num_groups'"):
        ModelSource(config={"norm_num_groups": 32}, random_seed=0).resolve(TransformerConfig, "transformer")
    with pytest.raises(InputError, match="unknown key 'num_layer'; did you mean 'num_layers'"):
        ModelSource(path=str(tmp_path), overrides={"num_layer": 3}).resolve(TransformerConfig, "transformer")


def test_a_trainers_checkpoint_names_the_models_inside(tmp_path):
    for name in ("model", "model_ema"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"the models inside are .*/model, .*/model_ema: give one of them"):
        ModelSource(path=str(tmp_path)).resolve(TransformerConfig, "transformer")
