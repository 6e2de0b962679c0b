"""Each room exports the names that a user's own loop needs."""

import importlib
import pkgutil

from one_case import over

NAMES = {
    "diffpolicy.safety": "Safety SafetyConfig build_safety Surroundings PlanReport KeepOut Box NormLimit Polytope "
    "BarrierDecrease Quantity Obstacles disc box polygon together State LinearPlant position_servo identify "
    "Assumptions",
    "diffpolicy.constraints": "Constraint Quantity Scene KeepOut Box NormLimit Polytope BarrierDecrease Obstacles disc "
    "box polygon together State LinearPlant position_servo identify Assumptions Certifier Projector",
    "diffpolicy.control": "PolicyController Controller ControllerWrapper",
}


@over("room", [*NAMES])
def test_a_room_gives_the_names_that_it_lists(room: str) -> None:
    module = importlib.import_module(room)
    assert set(NAMES[room].split()) <= set(module.__all__)
    assert module.__all__ == sorted(module.__all__)
    assert all(getattr(module, name) is not None for name in module.__all__)


def test_a_name_is_the_same_thing_wherever_it_is_taken_from() -> None:
    safety, constraints = (importlib.import_module(f"diffpolicy.{room}") for room in ("safety", "constraints"))
    for name in set(safety.__all__) & set(constraints.__all__):
        assert getattr(safety, name) is getattr(constraints, name)
    assert pkgutil.resolve_name("diffpolicy.control.PolicyController") is pkgutil.resolve_name(
        "diffpolicy.PolicyController"
    )
