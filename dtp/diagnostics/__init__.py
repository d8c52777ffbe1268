"""Measurements of alignment between feedback and forward weights, and between a rule's updates and backprop's."""

from dtp.diagnostics.alignment import Alignment, alignment, feedback_alignment, update_alignment, weight_alignment

__all__ = ["Alignment", "alignment", "feedback_alignment", "update_alignment", "weight_alignment"]
