"""Other people's data sets, to and from the zarr layout: LeRobot, robomimic and Minari."""

from diffpolicy.formats.convert import convert
from diffpolicy.formats.recognise import recognise
from diffpolicy.formats.recording import Recording
from diffpolicy.formats.table import READERS, WRITERS, open_recording

__all__ = ["READERS", "WRITERS", "Recording", "convert", "open_recording", "recognise"]
