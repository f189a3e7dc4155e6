"""The rule of weights that are made from others by a function without a useful derivative.

A network of quantised weights q = Q(w) learns the latent weights w. Q' is 0 almost everywhere, so
a gradient says nothing about them. Reward does: like an activation, the quantiser is one function
of one number and hands its reward on unchanged, r_w = r_q (Weber et al., arXiv:2308.12053,
equations 1 to 3). By equation 4 the feedback of w is sign(w) r_w, and with r_q = q g, where g is
the gradient that reaches q,

    d_w = sign(w) q g, which is |q| g where Q keeps the sign.

That is |w| times the secant slope Q(w) / w, times g: weights of -1 and 1 get g itself.
"""

from typing import Any

import torch
from torch import Tensor

from attrain.rules.call import Call


class HandedOn(torch.autograd.Function):
    """`value` forward; on the way back what is there, turned where w and value differ in sign.

    The factor |q| is the scaling that every weight meets where it is used.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, value: Tensor, turns: bool) -> Tensor:
        ctx.scaled = ()
        ctx.dtype = weight.dtype
        ctx.save_for_backward(*((weight, value) if turns else ()))
        return value.detach()

    @staticmethod
    def backward(ctx: Any, feedback: Tensor) -> Any:
        if ctx.saved_tensors:
            weight, value = ctx.saved_tensors
            feedback = torch.where(weight * value < 0, -feedback, feedback)
        return feedback.to(ctx.dtype), None, None


def handed_on(call: Call, keeps_sign: bool) -> Tensor:
    """Return a function of one weight that hands its feedback on to it."""
    if len(call.parameters) > 1:
        raise call.refuse(
            "it makes a weight from several parameters, and which of them the feedback belongs to "
            "is not defined",
            "detach() all but the latent weight.",
        )
    with torch.no_grad():
        value = call.run()
    turns = not keeps_sign and call.settings.opposite_sign == "keep"
    handed: Tensor = HandedOn.apply(call.parameters[0], value, turns)
    return handed
