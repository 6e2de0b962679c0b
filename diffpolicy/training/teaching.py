"""The teacher of a distillation: a trained policy, from whose weights the student starts and whose network it follows.

The student keeps the teacher's encoder and normalisation and does not train them, so that both see the same condition.
"""

from dataclasses import asdict, replace
from typing import Any

from diffpolicy.data.demonstrations import Demonstrations
from diffpolicy.policy.kinds import load_policy
from diffpolicy.policy.objective_choices import OBJECTIVES, build_objective
from diffpolicy.system.tables import Choice, settings_of
from diffpolicy.system.tensor_file import digest
from diffpolicy.training.run_settings import differences, flattened, new_policy
from diffpolicy.training.settings import TrainConfig

NOT_SHARED = ("diffusion",)  # settings of a policy in which the student may differ


def untrained_policy(config: TrainConfig, data: Demonstrations) -> Any:
    """The policy of a run before training: new, or a student with the weights of its teacher.

    Raises:
        FileNotFoundError: there is no such checkpoint, data or weights.
        ValueError: settings, data or teacher do not fit together.
    """
    teacher = load_teacher(config)
    if teacher is None:
        return new_policy(config, data)
    student = new_policy(replace(config, diffusion=taught(config.diffusion, teacher)), data)
    learn_from(student, teacher, str(config.teacher))
    return student


def load_teacher(config: TrainConfig) -> Any:
    """Load the teacher of a run, a `DiffusionPolicy` that denoises; None if the run has none.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is damaged, of another task, or no denoiser; the objective learns from no teacher, or lacks one.
    """
    objective = settings_of(OBJECTIVES, "diffusion", config.diffusion).name
    teaching = build_objective(config.diffusion).teaching
    if config.teacher is None:
        if teaching == "required":
            raise ValueError(
                f"diffusion: {objective} distils a trained denoiser; give teacher=RUN/checkpoints/last, for example "
                "teacher=data/checkpoints/pusht_small"
            )
        return None
    if teaching == "impossible":
        able = sorted(name for name in OBJECTIVES if build_objective(name).teaching != "impossible")
        raise ValueError(
            f"teacher: diffusion {objective} learns from data alone, expected one of {', '.join(able)}; or leave "
            "teacher out"
        )
    if config.init_from is not None:
        raise ValueError("teacher: the student starts from the teacher's weights; leave init_from out")
    teacher: Any = load_policy(config.teacher)
    if (task := teacher.metadata.get("task", config.task)) != config.task:
        raise ValueError(f"teacher: {config.teacher} was trained for task {task}, this run is for {config.task}")
    if (found := getattr(teacher.config.diffusion, "name", None)) != "denoising":
        raise ValueError(f"teacher: {config.teacher} was trained with diffusion {found}, expected a denoiser")
    return teacher


def taught(choice: Choice, teacher: Any) -> Any:
    """The settings of the student's objective, which starts from the teacher's denoiser.

    Raises:
        ValueError: they name another denoiser.
    """
    own, given = settings_of(OBJECTIVES, "diffusion", choice), teacher.config.diffusion
    if own.denoising is not None:
        named = flattened(asdict(settings_of(OBJECTIVES, "diffusion", {"name": "denoising", **own.denoising})))
        if different := differences(flattened(asdict(given)), named, "in the teacher"):
            raise ValueError(f"teacher: the denoiser differs: {', '.join(different)}; leave diffusion.denoising out")
    return replace(own, denoising=given)


def learn_from(student: Any, teacher: Any, source: str) -> None:
    """Copy the teacher into the untrained student, and freeze what both share.

    Raises:
        ValueError: window, observations, networks, codec or normalisation differ; the message names the differences.
    """
    pair = ({k: v for k, v in asdict(one.config).items() if k not in NOT_SHARED} for one in (teacher, student))
    before, now = (flattened(one) for one in pair)
    if different := differences(before, now, "there"):
        raise ValueError(f"teacher: the settings of {source} differ: {', '.join(different)}; give the same")
    state = teacher.acting_state()
    student.load_state_dict(state, strict=False)
    student.objective.learn_from(student.network)
    for shared in (student.encoder, student.null_condition):
        shared.requires_grad_(False)
    told = {"checkpoint": source, "sha256": digest(state), "step": teacher.metadata.get("step")}
    student.metadata["teacher"] = told
