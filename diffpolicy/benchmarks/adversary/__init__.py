"""Adversaries for the safety layer, and a judge of the executed motion that shares no code with it."""
