"""What runs inside a trace: each function puts one rule at one module."""

import torch

from gimkit.errors import GimkitError
from gimkit.interventions.attention import attention_call
from gimkit.interventions.blocked_attention import blocked_attention
from gimkit.interventions.gradients import centre, inverse_scale, scale_grad, with_grad_of
from gimkit.interventions.recomputed import spread, tolerance_of
from gimkit.interventions.weights import scale_of


def freeze_norm(norm, path: str, eps: float, centred: bool):
    """The norm's own output, with the gradient of the same norm whose denominator is a constant."""
    x, y = norm.input, norm.output
    value = x.detach()
    inverse = inverse_scale(centre(value, centred), eps)
    factor = norm_factor(value, y.detach(), *scale_of(norm, eps, y.dtype), path, eps, centred)
    frozen, y = centre(x - value, centred) * inverse, y.detach()  # frozen is zero in value, so y keeps every bit
    if factor is not None and factor.dtype == y.dtype == frozen.dtype:
        norm.output = torch.addcmul(y, frozen, factor)
    else:
        norm.output = y + (frozen if factor is None else frozen * factor).to(y.dtype)


def norm_factor(x, y, weight, bias, path: str, eps: float, centred: bool):
    """Which factor (none, weight, or 1 + weight) reproduces the norm's own output on up to 16 rows, or an error."""
    kept = 1 if weight is None else weight.dim()
    rows, want = (t.reshape(-1, *t.shape[-kept:]) for t in (x, y))
    some = spread(len(rows))
    top = centre(rows[some], centred)
    want = want[some].to(top.dtype)
    if not bool(torch.isfinite(want).all()):
        raise GimkitError(f"{path}: the model's own output is NaN or infinite here; check its weights and its dtype")
    plain = top * inverse_scale(top, eps)
    shift = 0 if bias is None else bias.detach().to(top.dtype)
    tolerance = tolerance_of(y.dtype)
    w = None if weight is None else weight.detach().to(top.dtype)
    for factor in [None] if w is None else [w, 1 + w]:
        error = (plain * (1 if factor is None else factor) + shift - want).abs().max()
        if bool(error <= tolerance * (1 + want.abs().max())):
            return factor
    raise GimkitError(f"{path}: recomputing this norm does not reproduce its output (an unknown norm, or quantised "
                      "weights), so it cannot be frozen; use full-precision weights, or rules with freeze_norm=False")


class Tempered:
    """An attention module whose sinks are divided by the temperature; everything else is the module's."""

    def __init__(self, module, temperature: float):
        self._module, self.sinks = module, module.sinks / temperature

    def __getattr__(self, name):
        return getattr(self._module, name)


def soften_attention(attention, path: str, temperature: float, q_scale: float, k_scale: float, v_scale: float,
                     constant: bool):
    """Scale the gradients of q, k and v, and give the softmax its gradient at another temperature.

    The model's own kernel gives the value. Where it is known how it makes its pattern, the gradient is recomputed in
    blocks in the backward pass; elsewhere the kernel runs a second time.
    """
    kernel, call = attention_call(attention)
    (module, q, k, v, mask, *rest), options = call.inputs
    if constant:
        q_scale = k_scale = 0
    if constant or temperature == 1:
        scaled = (x if a == 1 else scale_grad(x, a) if a else x.detach()
                  for x, a in ((q, q_scale), (k, k_scale), (v, v_scale)))
        call.inputs = ((module, *scaled, mask, *rest), options)
        return
    if options.get("dropout"):
        raise GimkitError(f"{path}: attention dropout is on, so a second softmax would differ; call model.eval() first")
    if not any(x.requires_grad for x in (q, k, v)):
        return
    inputs, scales = call.inputs, (q_scale, k_scale, v_scale)
    call.inputs = ((module, q.detach(), k.detach(), v, mask, *rest), options)
    output, weights = call.output
    softened = None if rest else blocked_attention(output, module, q, k, v, mask, options, temperature, scales)
    if softened is None:
        softened = second_run(kernel, inputs, output, path, temperature, scales)
    call.output = (softened, weights)


def second_run(kernel, inputs: tuple, output, path: str, temperature: float, scales: tuple):
    """A kernel's output with the tempered gradient, from the kernel itself.

    Its first run, with q and k fixed, has the value and the gradient to v; a second one, with scores / T and v fixed,
    has the gradient to q and k. The factor T undoes the chain rule's 1/T.
    """
    (module, q, k, v, mask, *rest), options = inputs
    q_scale, k_scale, v_scale = scales
    soft = dict(options)
    soft["scaling"] = (q.shape[-1] ** -0.5 if options.get("scaling") is None else options["scaling"]) / temperature
    for name in ("softcap", "s_aux", "position_bias"):
        if soft.get(name) is not None:
            soft[name] = soft[name] / temperature
    if isinstance(mask, torch.Tensor) and mask.is_floating_point():
        lowest = torch.finfo(mask.dtype).min  # a row of nothing but -inf, such as padding's, would become NaN
        mask = (mask / temperature).clamp(min=lowest)
    if isinstance(getattr(module, "sinks", None), torch.Tensor):
        module = Tempered(module, temperature)
    # Only v has a gradient in the first run, only q and k in the second: factors on outputs save copies of q, k and v.
    share = q_scale if q_scale == k_scale else 1
    if q_scale != k_scale:
        q, k = scale_grad(q, q_scale), scale_grad(k, k_scale)
    again = kernel(module, q, k, v.detach(), mask, *rest, **soft)[0]
    value = output.detach()
    if temperature < 1 and not bool((again.isfinite() | ~value.isfinite()).all()):
        raise GimkitError(f"{path}: attention scores divided by the temperature {temperature:g} leave the range of "
                          f"{again.dtype}; use a higher temperature, or a wider dtype")
    direct = torch.add(value, output - value, alpha=v_scale)
    return torch.add(direct, again - again.detach(), alpha=temperature * share)


def split_input(module, factor: float):
    """Scale the gradient of a module's first input: at a down projection, of both factors of the gated product."""
    module.input = scale_grad(module.input, factor)


def split_output(module, factor: float):
    """Scale the gradient of a module's output: one branch of a gated product."""
    module.output = scale_grad(module.output, factor)


def linearise_activation(activation):
    """The activation's value, with the gradient of multiplying by the constant act(x) / x."""
    x, y = activation.input, activation.output
    slope = torch.where(x == 0, torch.zeros_like(x), y / x).detach()
    activation.output = with_grad_of(y, x * slope)
