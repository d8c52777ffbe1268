"""Measurements of alignment between feedback and forward weights, and between a rule's updates and backprop's.

Nothing is imported here: who draws a figure need not wait for torch.
"""
