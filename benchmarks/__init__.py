"""Measurements of torchlinreg and its rivals: correct digits, time and memory."""
