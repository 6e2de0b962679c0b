"""Controllers: run a policy in a control loop."""

from diffpolicy.control.controller import PolicyController
from diffpolicy.control.latency import measure_latency
from diffpolicy.control.protocol import Controller
from diffpolicy.control.wrapper import ControllerWrapper

__all__ = ["Controller", "ControllerWrapper", "PolicyController", "measure_latency"]
