"""Measurements of alignment between feedback and forward weights, and between a rule's updates and backprop's.

Nothing is imported here, so that figures can be drawn without waiting for torch.
"""
