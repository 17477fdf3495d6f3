"""L3D written out: dense directions, loops over samples and subnetworks, sorting for the threshold."""

import torch

LETTERS = "abcdef"


def written_out(factors, which: int) -> torch.Tensor:
    """One subnetwork's part in one tensor: the core times a factor along every axis, as one sum of products."""
    core, *rest = (factor[which] for factor in factors)
    small, large = LETTERS[:core.ndim], LETTERS[:core.ndim].upper()
    inputs = ",".join([small, *(s + b for s, b in zip(small, large))])
    return torch.einsum(f"{inputs}->{large}", core, *rest)


def matrix(directions, n: int) -> torch.Tensor:
    """V, [v, all parameters]."""
    return torch.stack([torch.cat([written_out(factors, which).flatten() for factors in directions])
                        for which in range(n)])


def gradients(module, names, inputs, references, divergence) -> torch.Tensor:
    """[b, all parameters], one backward pass per sample."""
    found = []
    for i, reference in enumerate(references):
        values = [dict(module.named_parameters())[name] for name in names]
        for value in values:
            value.requires_grad_(True)
        output = module(*(part[i:i + 1] for part in inputs))[0]
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(divergence(output, reference), values)]))
    return torch.stack(found)


def kept(h, k: float) -> torch.Tensor:
    """1 for the int(k b v) entries that come first when all are sorted by size, 0 else."""
    places = [(abs(float(h[i, j])), i, j) for i in range(h.shape[0]) for j in range(h.shape[1])]
    mask = torch.zeros_like(h)
    for _, i, j in sorted(places, reverse=True)[:max(1, int(k * len(places)))]:
        mask[i, j] = 1
    return mask


def mse(output, reference):
    return sum((p - r) ** 2 for p, r in zip(output, reference)) / len(output)


def train(module, names, x, encoder, decoder, batches, k, rate, weight_decay, divergence=mse, squared=False):
    """Train copies of the factors on batches of (rows, references, k); returns them and the losses."""
    encoder, decoder = ([[part.detach().clone().requires_grad_(True) for part in factors] for factors in directions]
                        for directions in (encoder, decoder))
    flat = [part for factors in encoder + decoder for part in factors]
    moments = [(torch.zeros_like(part), torch.zeros_like(part)) for part in flat]
    n, losses = len(flat[0]), []
    outputs = module(x).detach()
    for step, (rows, references) in enumerate(batches, 1):
        g = gradients(module, names, (x[rows],), outputs[references], divergence).detach()
        v_in, v_out = matrix(encoder, n), matrix(decoder, n)
        h = g @ v_in.T
        rebuilt = (h * kept(h.detach(), k[step - 1])) @ v_out
        ratio = (g - rebuilt).norm() / g.norm()
        loss = ratio ** 2 if squared else ratio
        losses.append(ratio.item())
        slopes = torch.autograd.grad(loss, flat)
        with torch.no_grad():
            for part, slope, (first, second) in zip(flat, slopes, moments):  # AdamW, from its paper
                first.mul_(0.9).add_(0.1 * slope)
                second.mul_(0.999).add_(0.001 * slope ** 2)
                part.mul_(1 - rate * weight_decay)
                part.sub_(rate * (first / (1 - 0.9 ** step)) / ((second / (1 - 0.999 ** step)).sqrt() + 1e-8))
            size = matrix(decoder, n).norm(dim=1)
            for factors in decoder:
                for part in factors:
                    part.div_((size ** (1 / len(factors))).view(-1, *[1] * (part.ndim - 1)))
    return encoder, decoder, losses
