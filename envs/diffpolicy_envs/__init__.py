"""Gymnasium environments for diffpolicy."""
