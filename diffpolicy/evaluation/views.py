"""What a policy with cameras sees, beside the scene of a video.

Shape legend: B envs, h and w height and width of a view, H and W those of a scene.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from diffpolicy.evaluation.rollout import observation_by_key
from diffpolicy.policy.observations import told_apart
from diffpolicy.policy.protocol import Policy

Picture = npt.NDArray[np.uint8]
"""[height, width, 3]."""

MARGIN = 8  # px between the scene and the views, and between two views
BACKGROUND = 128


def views(policy: Policy, observation: Any) -> list[Picture]:
    """The present image of every camera [B, h, w, 3], in alphabetical order, as the policy's networks see it.

    The whole image is shown if the encoder has no `views`, as `ImageEncoder` has. What a camera did not deliver is
    black.

    Raises:
        ValueError: the observation does not fit the policy.
    """
    specs = policy.config.observations
    cameras = sorted(key for key, spec in specs.items() if spec.kind == "image")
    if not cameras:
        return []
    chosen = observation_by_key(observation, policy)
    batch = len(chosen[cameras[0]])
    images, _ = told_apart({key: chosen[key] for key in cameras}, {key: specs[key] for key in cameras}, batch)
    windows = {key: image[:, None] for key, image in images.items()}
    view = getattr(getattr(policy, "encoder", None), "views", None)
    shown = windows if view is None else view(windows)
    return [shown[key][:, -1].cpu().numpy() for key in cameras]


def beside(scene: Picture, seen: Sequence[Picture]) -> Picture:
    """The scene [H, W, 3], and to its right the views, one below the other; height and width are even.

    Views are enlarged by the largest whole factor at which all of them fit beside the scene, so that each pixel stays a
    square of one colour. The scene alone is returned as it is.
    """
    if not seen:
        return scene
    rooms = [scene.shape[0] - MARGIN * (len(seen) - 1), *(len(seen) * [scene.shape[1]])]
    needed = [sum(view.shape[0] for view in seen), *(view.shape[1] for view in seen)]
    factor = max(1, min(room // need for room, need in zip(rooms, needed, strict=True)))
    large = [view.repeat(factor, axis=0).repeat(factor, axis=1) for view in seen]
    height = max(scene.shape[0], sum(view.shape[0] + MARGIN for view in large) - MARGIN)
    width = scene.shape[1] + MARGIN + max(view.shape[1] for view in large)
    picture = np.full((height + height % 2, width + width % 2, 3), BACKGROUND, dtype=np.uint8)
    picture[: scene.shape[0], : scene.shape[1]] = scene
    top = 0
    for view in large:
        picture[top : top + view.shape[0], scene.shape[1] + MARGIN :][:, : view.shape[1]] = view
        top += view.shape[0] + MARGIN
    return picture
