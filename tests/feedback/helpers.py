"""Short forms that several tests of this folder use."""

from torch import Size, nn

from dtp.feedback import FeedbackLayer, FeedbackSettings, derive_feedback


def undo(layer: nn.Module, in_shape: tuple[int, ...], symmetric: bool = False, **settings) -> FeedbackLayer:
    """The feedback layer of one forward layer, as layer 1 of a network of its own."""
    feedback = derive_feedback([layer], [Size(in_shape)], [1], FeedbackSettings(**settings))[1]
    if symmetric:
        feedback.copy_transpose(layer)
    return feedback


def storages(module: nn.Module) -> set[int]:
    """Addresses of the memory of all parameters and buffers."""
    return {t.untyped_storage().data_ptr() for t in [*module.parameters(), *module.buffers()]}
