"""The checks of saturated softmaxes, in notebook 01."""

import torch

from gimkit.notebook.checks.answers import close, exercise, random_numbers, recognise, unwritten


def row_effects(scores, values, i: int = 0, j: int = 1, to=None) -> torch.Tensor:
    """The fall of an attention row's output when score i, j or both are ablated, and the interaction, [4].

    >>> row_effects(torch.tensor([6.0, 6, 0, 0, 0]), torch.tensor([10.0, 10, 0, 0, 0]))
    tensor([0.0348, 0.0348, 1.1607, 0.9400])

    Args:
        scores, values: of the row, [positions].
        i, j: the two positions.
        to: the value of an ablated score; the row's mean when None.
    """
    to = scores.mean() if to is None else to

    def fall(*lowered):
        other = scores.clone()
        other[list(lowered)] = torch.as_tensor(to, dtype=scores.dtype)
        return scores.softmax(-1) @ values - other.softmax(-1) @ values

    single, second, joint = fall(i), fall(j), fall(i, j)
    return torch.stack([single, second, joint, (joint - single - second) / joint])


@exercise
def ablation_effects(answer) -> None:
    """Exercise 01.1: `answer(scores, values, i, j)` is (effect of i, of j, of both, interaction).

    >>> ablation_effects(lambda *given: None)
    Your turn: return four numbers: effect of i, effect of j, effect of both, interaction.
    """
    scores, values, i, j = torch.tensor([3.0, 0.5, 2.5, -1.0, 0.0, 1.0]), random_numbers(6).float() * 4, 2, 0
    result = answer(scores.clone(), values.clone(), i, j)
    if unwritten(result, "return four numbers: effect of i, effect of j, effect of both, interaction."):
        return
    assert isinstance(result, tuple | list | torch.Tensor) and len(result) == 4, (
        "Return four numbers: the effect of i, of j, of both at once, and the interaction.")
    result = torch.tensor([float(number) for number in result])
    right = row_effects(scores, values, i, j)
    single, second, joint, interaction = right
    recognise(result[:3], [
        (-right[:3], "The signs are reversed: an effect is the output before minus the output after, so that it is "
                     "positive when the ablation hurts."),
        (row_effects(scores, values, i, j, 0.0)[:3],
         "You put the scores at 0. Zero is not neutral: a softmax depends on differences only. Use the row's mean."),
        (row_effects(scores, values, i, j, -torch.inf)[:3],
         "You removed the positions (score minus infinity). Here an ablated score is put at the mean of its row."),
        (torch.stack([single, second, single + second]),
         "The joint effect is not the sum of the two single ones: lower both scores in the same softmax. "
         "That difference is what this exercise is about."),
    ])
    assert close(result[:2], right[:2]), (
        "The single effects are off: put one score at scores.mean() (of the intact row), take softmax again, and "
        "subtract the new output from the old one.")
    assert close(result[2], joint), (
        "The joint effect is off: both scores go to the mean of the intact row, not of a row that has already changed.")
    recognise(result[3], [
        ((joint - single - second), "That is the interaction in logits; divide it by the joint effect."),
        ((joint - single - second) / (single + second),
         "Divide by the joint effect, not by the sum of the single ones: 1 then means that only both together matter."),
    ])
    assert close(result[3], interaction), "The interaction is (joint - first - second) / joint."
    toy = answer(torch.tensor([6.0, 6, 0, 0, 0]), torch.tensor([10.0, 10, 0, 0, 0]), 0, 1)
    print("Correct: on the row of this notebook {:.3f} and {:.3f} alone, {:.3f} together; interaction {:.3f}."
          .format(*(float(number) for number in toy)))


@exercise
def softmax_backward(answer) -> None:
    """Exercise 01.2: `answer(scores, g, temperature)` is dL/dscores under the temperature rule, g = dL/dweights.

    >>> softmax_backward(lambda *given: None)
    Your turn: return one gradient per score: the shape of scores.
    """
    scores, g = random_numbers(2, 3, 5) * 3, random_numbers(2, 3, 5, seed=1)
    scores[0, :, 4] = -torch.inf  # masked
    result = answer(scores.clone(), g.clone(), 2.0)
    if unwritten(result, "return one gradient per score: the shape of scores."):
        return
    assert isinstance(result, torch.Tensor) and result.shape == scores.shape, (
        f"The gradient has one number per score: shape {list(scores.shape)}, rows along the last axis.")
    leaf = scores.clone().requires_grad_(True)

    def backward(value):
        return torch.autograd.grad(value, leaf, g)[0]

    def wanted(temperature):
        return temperature * backward((leaf / temperature).softmax(-1))

    soft = (scores / 2).softmax(-1)
    recognise(result, [
        (wanted(1.0), "This is the plain gradient: the temperature is not in it. Take softmax(scores / temperature)."),
        (wanted(2.0) / 2, "Half of what it should be: you kept the chain rule's 1 / T. The rule takes the softmax's "
                          "own formula at temperature T, with no further factor."),
        (soft * g, "The mean is missing: raising one score lowers all other weights, hence g minus sum of p_T * g."),
        (soft * (g - (soft * g).sum()), "The sum runs over the whole tensor; sum each row: sum(-1, keepdim=True)."),
        (soft * (g - g.mean(-1, keepdim=True)), "The mean of g is weighted by the softmax: sum of p_T * g."),
        (soft * (g - (scores.softmax(-1) * g).sum(-1, keepdim=True)),
         "The weighted mean uses the plain softmax; use the one at temperature T in both places."),
    ])
    assert close(result, wanted(2.0)), (
        "Not the gradient at temperature 2. Compare p_T * (g - (p_T * g).sum(-1, keepdim=True)), "
        "p_T = softmax(scores / T, -1).")
    assert close(answer(scores.clone(), g.clone(), 1.0), backward(leaf.softmax(-1))), (
        "Right at T = 2, but at T = 1 it is not autograd's gradient of the softmax: do you use the argument?")
    print("Correct: equal to autograd at T = 1, and to T x autograd of softmax(a / T) at T = 2.")


@exercise
def hidden_from_the_gradient(scores) -> None:
    """Exercise 01.3: five scores where the gradient predicts less than 1% of a joint effect of 0.1 logits or more.

    >>> hidden_from_the_gradient(None)
    Your turn: choose five scores, then run this cell again.
    """
    if unwritten(scores, "choose five scores, then run this cell again."):
        return
    scores = torch.as_tensor(scores, dtype=torch.float64)
    assert scores.shape == (5,), f"Five scores, please, in one list; this has shape {list(scores.shape)}."
    values = torch.tensor([10.0, 10, 0, 0, 0], dtype=torch.float64)
    joint = float(row_effects(scores, values)[2])
    weights = scores.softmax(-1)
    gradient = weights * (values - weights @ values)
    predicted = float((gradient * (scores - scores.mean()))[:2].sum())
    assert joint >= 0.1, (
        f"The joint effect is {joint:.4f} logits: here even lowering both scores hardly matters, so the gradient "
        "is right. The lowered scores (at the row's mean) must lose to the other positions.")
    assert abs(predicted) < 0.01 * joint, (
        f"The gradient predicts {predicted:.4f} of {joint:.3f} logits, {abs(predicted) / joint:.1%}. It is "
        "proportional to the weight that the last three positions still have: make it smaller by raising the first two "
        "scores.")
    print(f"Correct: lowering both costs {joint:.3f} logits, the gradient predicts {predicted:.5f} "
          f"({predicted / joint:.2%}).")
