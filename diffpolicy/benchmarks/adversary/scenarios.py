"""The scenarios of the adversarial benchmark: plants, limits, and faults within the assumptions that are declared."""

from collections.abc import Mapping
from dataclasses import replace

from diffpolicy.benchmarks.adversary.demands import Limits
from diffpolicy.benchmarks.adversary.scenario import Scenario
from diffpolicy.benchmarks.adversary.servo import Servo
from diffpolicy.constraints.assumptions import Assumptions

SHIPPED = Servo(100.0, 20.0, 10, 10, is_sampled=True)  # the agent of both envs
SMOOTH = Servo(100.0, 20.0, 10, 10)
STIFF = Servo(400.0, 40.0, 50, 2)
SPRINGY = Servo(100.0, 6.0, 20, 5)  # overshoots by a third
QUICK = Servo(900.0, 75.0, 4, 5)  # 50 Hz
LOOSE = Servo(200.0, 3.0, 10, 10)  # swings for seconds
SLUGGISH = Servo(60.0, 40.0, 20, 5)
COARSE = Servo(400.0, 40.0, 30, 3, is_sampled=True)  # turns its speed round in a sub-step

FAST = Limits(distance=17.0, speed=250.0, targets=(0.0, 512.0))
NOISY = Assumptions(position_error=1.0, velocity_error=5.0, tracking_error=1.0, tracking_velocity_error=10.0)
MOVING = Assumptions(rest_speed=1.0)

SCENARIOS: Mapping[str, Scenario] = {
    "shipped": Scenario(SHIPPED, FAST),
    "smooth": Scenario(SMOOTH, FAST),
    "stiff": Scenario(STIFF, Limits(distance=17.0, speed=600.0), reach=200.0),
    "springy": Scenario(SPRINGY, FAST),
    "quick": Scenario(QUICK, FAST, reach=20.0),
    "loose": Scenario(LOOSE, Limits(distance=17.0, speed=400.0)),
    "sluggish": Scenario(SLUGGISH, FAST, reach=150.0),
    "coarse": Scenario(COARSE, FAST),
    "projected": Scenario(SHIPPED, FAST, mode="last", candidates=2),
    "each_tick": Scenario(STIFF, FAST, candidates=8, n_action_steps=1),
    "thin_walls": Scenario(STIFF, Limits(distance=2.0), size=20.0, obstacles=6, reach=300.0),
    "workspace": Scenario(STIFF, Limits(workspace=(100.0, 400.0), speed=400.0), reach=150.0),
    "own_margins": Scenario(
        STIFF, Limits(distance=17.0, within=(256.0, 256.0, 200.0), beside=(0.6, 0.8, 400.0)), reach=150.0
    ),
    "acceleration": Scenario(SMOOTH, Limits(acceleration=2000.0, speed=250.0)),
    "targets": Scenario(
        SHIPPED,
        Limits(distance=17.0, targets=(0.0, 512.0), target_speed=300.0, target_acceleration=3000.0),
        reach=30.0,
        dropped=0.1,
    ),
    "late_targets": Scenario(
        SMOOTH,
        Limits(distance=17.0, speed=300.0, target_acceleration=3000.0),
        Assumptions(delay_substeps=8, latency_s=0.08),
        reach=30.0,
        dropped=0.3,
    ),
    "moving": Scenario(SHIPPED, FAST, MOVING, obstacle_speed=80.0),
    "moving_stiff": Scenario(STIFF, FAST, MOVING, obstacle_speed=80.0),
    "jumps": Scenario(SHIPPED, FAST, jumps=0.1, candidates=2, resets=0.1),
    "nan_slots": Scenario(SHIPPED, FAST, MOVING, obstacle_speed=50.0, nan=0.15, jumps=0.15, candidates=2, resets=0.1),
    "dropped": Scenario(SHIPPED, FAST, MOVING, obstacle_speed=50.0, dropped=0.3, jumps=0.05, resets=0.1),
    "noise": Scenario(SHIPPED, FAST, replace(NOISY, rest_speed=30.0), obstacle_speed=30.0),
    "noise_stiff": Scenario(STIFF, Limits(distance=17.0, speed=600.0), replace(NOISY, tracking_velocity_error=25.0)),
    "delay": Scenario(SHIPPED, FAST, Assumptions(delay_substeps=3)),
    "delay_springy": Scenario(SPRINGY, Limits(distance=17.0, speed=400.0), Assumptions(delay_substeps=6)),
    "delay_quick": Scenario(QUICK, FAST, Assumptions(delay_substeps=14), reach=20.0, dropped=0.1),
    "late": Scenario(SHIPPED, FAST, Assumptions(delay_substeps=3, latency_s=0.02, tolerance=1e-3), late=0.1),
    "late_smooth": Scenario(
        SMOOTH, FAST, Assumptions(delay_substeps=10, latency_s=0.05, rest_speed=1.0), late=0.1, obstacle_speed=30.0
    ),
    "slow_plans": Scenario(
        SHIPPED, FAST, Assumptions(delay_substeps=3, latency_s=0.03, rest_speed=1.0), slow=0.2, obstacle_speed=40.0
    ),
    "garbage": Scenario(SHIPPED, FAST, MOVING, obstacles=4, slots=3, obstacle_speed=40.0, garbage=0.05, dropped=0.05),
    "everything": Scenario(
        SMOOTH,
        Limits(distance=17.0, speed=400.0, targets=(0.0, 512.0)),
        replace(NOISY, delay_substeps=4, latency_s=0.03, rest_speed=40.0),
        obstacle_speed=40.0,
        dropped=0.1,
        nan=0.1,
        jumps=0.05,
        late=0.05,
        garbage=0.02,
        slow=0.05,
        resets=0.1,
        mode="last",
        candidates=2,
    ),
}
