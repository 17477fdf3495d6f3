"""The checks of circuits in parameter space, in notebook 06."""

import torch

from gimkit.notebook.checks.answers import close, exercise, random_numbers, recognise, unwritten


def _largest(h, count: int):
    """1 for the `count` largest entries of h, else 0."""
    return (h >= h.flatten().topk(count).values[-1]).to(h.dtype)


@exercise
def sparse_reconstruction(answer) -> None:
    """Exercise 06.1: `answer(gradients, v_in, v_out, k)`, [b, p], from [b, p], [v, p], [v, p] and a share.

    >>> sparse_reconstruction(lambda *given: None)
    Your turn: return one reconstruction per sample: shape [b, p].
    """
    for seed, (b, v, p, k) in enumerate(((6, 5, 7, 0.2), (9, 4, 3, 0.5))):
        gradients, v_in, v_out = (random_numbers(rows, p, seed=3 * seed + i) for i, rows in enumerate((b, v, v)))
        gradients[0] *= 4  # a sample with large gradients, which takes more than its share
        result = answer(*(part.clone() for part in (gradients, v_in, v_out)), k)
        if unwritten(result, "return one reconstruction per sample: shape [b, p]."):
            return
        assert isinstance(result, torch.Tensor) and result.shape == gradients.shape, (
            f"Return a reconstruction of every gradient: shape {list(gradients.shape)}, not "
            f"{list(torch.as_tensor(result).shape)}.")
        count, each = int(k * b * v), max(1, int(k * v))
        h, backwards = gradients @ v_in.T, gradients @ v_out.T
        each_row = torch.stack([_largest(row.abs(), each) for row in h])
        recognise(result, [
            (h @ v_out, "Nothing was left out. Only the share k with the largest |h| may stay."),
            ((h * _largest(h, count)) @ v_out,
             "These are the largest h. A subnetwork works as well backwards: compare |h|."),
            ((h * each_row) @ v_out,
             "This keeps the same number for each sample. The share is of the whole batch: a sample with a large "
             "gradient may use more subnetworks than another."),
            ((backwards * _largest(backwards.abs(), count)) @ v_out,
             "The coefficients come from V_in; V_out only turns them back into parameters."),
            (_largest(h.abs(), count) @ v_out,
             "The mask itself was summed. Multiply it by h: how much of a direction counts, not only whether."),
        ])
        assert close(result, (h * _largest(h.abs(), count)) @ v_out), (
            f"Not the reconstruction from the {count} largest of {b * v} coefficients: h = gradients @ v_in.T, set all "
            "but the largest |h| of the batch to 0, and multiply by v_out.")
    print("Correct: this is L3D's forward pass; training only changes V_in and V_out.")


@exercise
def planted_direction(answer) -> None:
    """Exercise 06.2: `answer(gradients)` is the unit direction [p] along which gradients [n, p] mostly lie.

    >>> planted_direction(lambda gradients: None)
    Your turn: return one direction: shape [p].
    """
    for seed in range(3):
        direction = random_numbers(8, seed=seed)
        direction /= direction.norm()
        gradients = random_numbers(40, 1, seed=10 + seed) * direction + 0.05 * random_numbers(40, 8, seed=20 + seed)
        result = answer(gradients.clone())
        if unwritten(result, "return one direction: shape [p]."):
            return
        assert isinstance(result, torch.Tensor) and result.shape == (8,), (
            f"Return one direction: shape [8] here, not {list(torch.as_tensor(result).shape)}.")
        right, mean = torch.linalg.svd(gradients, full_matrices=False).Vh, gradients.mean(0)
        recognise(result, [
            (mean / mean.norm(), "This is the mean. Gradients point both ways, as references pull the output up or "
                                 "down: they cancel in the mean."),
            (mean, "This is the mean. Gradients point both ways, up or down, and cancel in it."),
            (gradients[0] / gradients[0].norm(), "This is one sample's gradient, with its noise. Use all of them."),
            (right[-1], "This is the direction along which the gradients have least: take the first one."),
            (right[:, 0], "This is a column of V^T. The directions are its rows."),
        ])
        size = float(result.norm())
        assert abs(size - 1) < 1e-4, f"Its norm is {size:.3f}: make it a unit vector."
        cosine = float(abs(result @ right[0]))
        assert cosine > 0.999, (
            f"Its |cosine| with the best direction is {cosine:.3f}: take the first right singular vector of the "
            "gradients, the unit vector v with the largest sum of (g v)^2.")
    print("Correct: the direction that carries most of the gradients' squared length, up to its sign.")
