"""Ablated attention scores, inside a trace: each layer's rows become numbers at once."""

import torch

from gimkit.errors import GimkitError


def score_rows(model, attentions: list, lengths: list, threshold: float):
    """Each attention row with two contributions above the threshold, as numbers [rows, 13]; and the largest second one.

    The columns: example, layer, head, query, i, j, then those of `ablations`. lengths: of the prompts without padding.
    """
    found, largest = [], -torch.inf
    for layer, path in enumerate(attentions):
        attention = model.get(path)
        source = attention.source
        call = getattr(source, [name for name in source.names if name.startswith("attention_interface_")][-1])
        (module, q, k, v, mask, *rest), options = call.inputs
        out = call.output[0]
        for example, length in enumerate(lengths):
            rows, second = one_layer(q[example, :, :length], k[example, :, :length], v[example, :, :length],
                                     mask_of(mask, example, length, options, q.device), options,
                                     out[example, :length].transpose(0, 1), path, threshold)
            labels = torch.tensor([[example, layer]], dtype=rows.dtype, device=rows.device).expand(len(rows), 2)
            found.append(torch.cat([labels, rows], 1).cpu())
            largest = max(largest, second)
    return torch.cat(found), torch.tensor(largest)


def mask_of(mask, example: int, length: int, options: dict, device):
    """One example's mask [1 or heads, S, S] without padding: boolean, or added to the scores; causal where none is."""
    if mask is not None:
        return mask[example if len(mask) > 1 else 0, :, :length, :length]
    place = torch.arange(length, device=device)
    back = place[:, None] - place
    window = options.get("sliding_window") or length
    return ((back >= 0) & (back < window))[None]


def one_layer(q, k, v, mask, options: dict, out, path: str, threshold: float):
    """The kept rows of one example's attention, [rows, 11], and its largest second contribution.

    q: [heads, S, width]; k, v: [key heads, S, width]; out: [heads, S, width] as the model computed it.
    """
    exact = q.dtype in (torch.float32, torch.float64)
    wide = torch.float32 if q.device.type == "mps" else torch.float64
    q, k, v, out = (x.to(wide) for x in (q, k, v, out))
    k, v = (x.repeat_interleave(q.shape[0] // x.shape[0], 0) for x in (k, v))
    scaling = q.shape[-1] ** -0.5 if options.get("scaling") is None else options["scaling"]
    scores = q @ k.transpose(-1, -2) * scaling
    if options.get("softcap") is not None:
        scores = torch.tanh(scores / options["softcap"]) * options["softcap"]
    if mask.dtype == torch.bool:
        hidden = ~mask
    else:
        hidden = mask <= torch.finfo(mask.dtype).min / 2
        scores = scores + mask.masked_fill(hidden, 0).to(wide)
    scores = scores.masked_fill(hidden, -torch.inf)
    sink = options.get("s_aux")
    if sink is not None:
        sink = sink.to(wide).view(-1, 1, 1).expand(*scores.shape[:2], 1)
    z = softmax(scores, sink, 1) @ v
    error = (z - out).abs().max()
    if not bool(error <= (1e-4 if exact else 4e-2) * (1 + out.abs().max())):
        raise GimkitError(f"{path}: recomputing this attention from its q, k, v and mask does not reproduce its output "
                          f"(off by {float(error):.2g}), so its scores cannot be ablated")
    return ablations(scores, z @ v.transpose(-1, -2), sink, threshold)


def softmax(scores: torch.Tensor, sink, temperature: float) -> torch.Tensor:
    """Softmax of rows of scores at a temperature; a sink [..., 1] takes its share and is dropped."""
    row = scores if sink is None else torch.cat([scores, sink], -1)
    return torch.softmax(row / temperature, -1)[..., :scores.shape[-1]]


def ablations(scores: torch.Tensor, worth: torch.Tensor, sink, threshold: float):
    """Ablate the two scores that contribute most to each row: the kept rows' numbers, and the largest second one.

    scores: [heads, S, S], -inf where masked; worth: c_k of each row, the same shape. The columns: head, query, i, j,
    contribution of i and of j, effect of i, of j, of both, gradient sum, the same at temperature 2.
    """
    products = softmax(scores, sink, 1) * worth
    top = products.topk(2, -1)
    head, query = (top.values[..., 1] > threshold).nonzero().unbind(1)
    largest, contributions, chosen = float(top.values[..., 1].max()), top.values[head, query], top.indices[head, query]
    scores, worth, sink = scores[head, query], worth[head, query], None if sink is None else sink[head, query]
    shown = scores > -torch.inf
    mean = scores.masked_fill(~shown, 0).sum(-1, keepdim=True) / shown.sum(-1, keepdim=True)

    def effect(lowered):
        ablated = scores.scatter(-1, lowered, mean.expand(-1, lowered.shape[1]))
        return ((softmax(scores, sink, 1) - softmax(ablated, sink, 1)) * worth).sum(-1)

    def gradient(temperature):
        weights = softmax(scores, sink, temperature)
        output = (weights * worth).sum(-1, keepdim=True)
        return (weights * (worth - output)).gather(-1, chosen).sum(-1)

    effects = [effect(lowered) for lowered in (chosen[:, :1], chosen[:, 1:], chosen)]
    places = torch.stack([head, query, *chosen.unbind(-1)], 1).to(scores.dtype)
    return torch.cat([places, contributions, torch.stack([*effects, gradient(1), gradient(2)], 1)], 1), largest
