"""Codecs: convert actions to the encoding that is denoised, and back."""

from diffpolicy.codecs.codec import Codec
from diffpolicy.codecs.normalizer import Normalizer

__all__ = ["Codec", "Normalizer"]
