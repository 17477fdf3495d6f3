"""A language model as L3D takes it: a sample is one position of a text, its output the logits there."""

import torch
from torch import nn

from gimkit.errors import GimkitError
from gimkit.model.apply import check_unedited
from gimkit.remote.trace import steady


class NextToken(nn.Module):
    """Logits at one position of each text, [n, vocabulary], from embeddings.

    >>> module = gimkit.l3d.NextToken(gimkit.load("mini-gpt2"))
    >>> module(*module.inputs(task.clean, task.last)).shape
    torch.Size([64, 561])

    model: an nnsight language model, whose parameters keep their names behind "model.". Embeddings are looked up
    beforehand, for token ids cannot pass through `torch.func.vmap` in every architecture; so the input embedding is not
    decomposed where it is used. Sliding attention windows are not applied: texts must not be longer than they are.
    """

    def __init__(self, model):
        super().__init__()
        check_unedited(model)
        self.model = getattr(model, "_module", model)

    def inputs(self, ids: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The samples: embeddings [n, seq, width] of ids [n, seq], padded on the right, and positions [n]."""
        if bool((last >= ids.shape[1]).any()) or bool((last < 0).any()):
            raise GimkitError(f"a position is outside the texts, which have {ids.shape[1]} tokens")
        with steady(self.model, gradients=False):
            return self.model.get_input_embeddings()(ids), last

    def forward(self, embeddings, last):
        seq = embeddings.shape[1]
        lowest = torch.finfo(embeddings.dtype).min
        hidden = embeddings.new_full((seq, seq), lowest).triu(1)  # given with four axes, no model changes it
        logits = self.model(inputs_embeds=embeddings, attention_mask=hidden[None, None], use_cache=False).logits
        return logits.gather(1, last[:, None, None].expand(-1, 1, logits.shape[-1]))[:, 0]
