"""What is kept beside a transformer's weights of how it was trained.

The objective stands in `scheduler/scheduler_config.json`, in the hub's own fields; what else sampling and
further training take as defaults in `training_record.json`. A flow model that is sampled as v-prediction
gives noise without any error, so a config that contradicts the objective is refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import Field, ValidationError

from .config import Config, build
from .errors import InputError
from .files import read_json, write_json
from .schedules import Prediction, ScheduleConfig

SCHEDULER = Path("scheduler", "scheduler_config.json")
RECORD = "training_record.json"
FLOW_CLASS, DIFFUSION_CLASS = "FlowMatchEulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"
FLOW_FIELDS = ("num_train_timesteps", "shift")  # of a schedule
DIFFUSION_FIELDS = tuple(name for name in ScheduleConfig.model_fields if name != "shift")
CHOICES = {"shift"}  # fields that may differ between training and sampling


class Objective(NamedTuple):
    """What a transformer predicts, and under which noise schedule."""

    prediction_type: Prediction
    schedule: ScheduleConfig


class TextRecord(Config):
    """The text encoder that a transformer was trained with."""

    kind: str
    max_length: int
    sha256: str | None = None  # of its files


class ModelRecord(Config):
    """The content of `training_record.json`."""

    sampler: dict[str, Any] = Field(default_factory=dict)  # name, num_steps, guidance_scale, ...
    text: TextRecord | None = None
    vae_sha256: str | None = None
    sizes: tuple[tuple[int, int, int], ...] = ()  # frames, height, width that it was trained on
    fps: float | None = None


def write_objective(folder: str | Path, objective: Objective) -> None:
    """Write `scheduler/scheduler_config.json` as a scheduler of diffusers writes itself."""
    schedule = objective.schedule.model_dump()
    if objective.prediction_type == "flow":
        fields = {"_class_name": FLOW_CLASS, **{key: schedule[key] for key in FLOW_FIELDS}}
    else:
        fields = {"_class_name": DIFFUSION_CLASS, **{key: schedule[key] for key in DIFFUSION_FIELDS}}
        fields |= {
            "prediction_type": objective.prediction_type,
            "timestep_spacing": "trailing" if schedule["rescale_betas_zero_snr"] else "leading",
        }
    (Path(folder) / SCHEDULER).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(folder) / SCHEDULER, fields)


def read_objective(folder: str | Path) -> Objective | None:
    """The objective of a model directory, from the folder `scheduler` in it or, as diffusers lays a pipeline
    out, beside it; None where there is none.

    Raises:
        InputError: a file that is not JSON, or a schedule that is not ours.
    """
    places = [Path(folder) / SCHEDULER, Path(folder).parent / SCHEDULER]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return None
    fields = read_json(path, "a scheduler's config")
    if not isinstance(fields, dict):
        raise InputError(f"{path}: wanted a scheduler's config, got {type(fields).__name__}")
    flow = str(fields.get("_class_name", "")).startswith("FlowMatch")
    names = FLOW_FIELDS if flow else DIFFUSION_FIELDS
    known = {key: fields[key] for key in names if fields.get(key) is not None}
    schedule = build(ScheduleConfig, known, where=str(path))
    prediction = "flow" if flow else fields.get("prediction_type", "epsilon")
    if prediction not in get_args(Prediction):
        raise InputError(
            f"{path}: got prediction_type {prediction!r}, wanted {', '.join(get_args(Prediction))}"
        )
    return Objective(prediction, schedule)


def write_record(folder: str | Path, record: ModelRecord) -> None:
    """Write `training_record.json`."""
    write_json(Path(folder) / RECORD, json.loads(record.model_dump_json(exclude_none=True)))


def read_record(folder: str | Path) -> ModelRecord:
    """The record of a model directory; an empty one where there is none, as in released folders.

    Raises:
        InputError: a file that is not a record.
    """
    path = Path(folder) / RECORD
    return build(ModelRecord, read_json(path), where=str(path)) if path.is_file() else ModelRecord()


def copy_record(source: str | Path, target: str | Path) -> None:
    """Carry both files over to a folder that holds the same model otherwise."""
    objective = read_objective(source)
    if objective is not None:
        write_objective(target, objective)
    if (Path(source) / RECORD).is_file():
        write_record(target, read_record(source))


def path_of(source: Any) -> str | None:
    """The model directory of a config's section, parsed or not."""
    found = source.get("path") if isinstance(source, Mapping) else getattr(source, "path", None)
    return found if isinstance(found, str) else None


def with_objective(section: Any, objective: Objective | None, key: str, owner: str) -> Any:
    """A section with `prediction_type` and `schedule` filled in where it says nothing.

    Args:
        section: as it was written; None: nothing.
        key: how the config calls it.
        owner: whose objective it is, for the message.

    Raises:
        InputError: it says something else than the objective.
    """
    section = _as_written(section)
    if objective is None or not isinstance(section, Mapping | None):
        return section
    given = dict(section or {})
    asked = _as_written(given.get("schedule") or {})
    try:
        found = ScheduleConfig.model_validate(asked)
    except ValidationError:
        return section  # refused with its place when the whole is validated
    trained, prediction = objective.schedule, objective.prediction_type
    compared = set(FLOW_FIELDS if prediction == "flow" else DIFFUSION_FIELDS) & found.model_fields_set
    differ = [
        (f"schedule.{name}", getattr(found, name), getattr(trained, name))
        for name in sorted(compared - CHOICES)
        if getattr(found, name) != getattr(trained, name)
    ]
    if given.get("prediction_type", prediction) != prediction:
        differ.insert(0, ("prediction_type", given["prediction_type"], prediction))
    if differ:
        told = ", ".join(f"{key}.{name}={got} for a model trained with {was}" for name, got, was in differ)
        raise InputError(f"{owner}: got {told}; leave the key out, or use a model that was trained so")
    return {**given, "prediction_type": prediction, "schedule": {**trained.model_dump(), **asked}}


def _as_written(section: Any) -> Any:
    """A section as a file would have it: what was set of a config that is made already."""
    return section.model_dump(exclude_unset=True) if isinstance(section, Config) else section


def merged(defaults: Mapping[str, Any], given: Any) -> Any:
    """What was given, and below it, where it says nothing, the defaults."""
    given = _as_written(given)
    if not isinstance(given, Mapping | None):
        return given
    result = dict(defaults)
    for key, value in (given or {}).items():
        below = defaults.get(key)
        result[key] = merged(below, value) if isinstance(below, Mapping) else value
    return result


def sampling_defaults(data: Any) -> Any:
    """The content of a sampling config with what its transformer's folder says, where it says nothing itself.

    Raises:
        InputError: the config contradicts the objective.
    """
    path = path_of(data.get("transformer")) if isinstance(data, Mapping) else None
    if path is None:
        return data
    record, objective = read_record(path), read_objective(path)
    defaults: dict[str, Any] = {"sampler": record.sampler} if record.sampler else {}
    if record.text is not None:
        defaults["text"] = record.text.model_dump(exclude={"sha256"})
    if record.sizes:
        frames, height, width = max(record.sizes)
        defaults |= {"num_frames": frames, "height": height, "width": width}
    if record.fps is not None:
        defaults["fps"] = record.fps
    data = merged(defaults, data)
    sampler = with_objective(data.get("sampler"), objective, "sampler", f"transformer {path}")
    return {**data, "sampler": sampler} if sampler is not None else data


def training_defaults(data: Any) -> Any:
    """The content of a training config likewise: the objective and the text encoder of the transformer that
    it begins from, and for a validation's videos the objective that it trains.

    Raises:
        InputError: the config contradicts the objective.
    """
    if not isinstance(data, Mapping):
        return data
    path, data = path_of(data.get("transformer")), dict(data)
    if path is not None:
        record, owner = read_record(path), f"transformer {path}"
        if record.text is not None:
            data = merged({"text": record.text.model_dump(exclude={"sha256"})}, data)
        section = with_objective(data.get("diffusion"), read_objective(path), "diffusion", owner)
        data = data if section is None else {**data, "diffusion": section}
    validation, diffusion = data.get("validation"), data.get("diffusion")
    if not isinstance(validation, Mapping) or not isinstance(diffusion, Mapping):
        return data
    fields = {key: diffusion[key] for key in _Trained.model_fields if key in diffusion}
    trained = build(_Trained, fields, where="diffusion")
    objective = Objective(trained.prediction_type, trained.schedule)
    sampler = with_objective(validation.get("sampler"), objective, "validation.sampler", "diffusion")
    if objective.prediction_type == "flow" and isinstance(sampler, dict):
        sampler.setdefault("name", "FlowMatchEuler")
    return {**data, "validation": {**validation, "sampler": sampler}}


class _Trained(Config):
    prediction_type: Prediction = "v_prediction"
    schedule: ScheduleConfig = ScheduleConfig(rescale_betas_zero_snr=True)
