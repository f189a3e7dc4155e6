"""Which torch function follows which rule: the allow-list of credit."""

from collections.abc import Callable, Iterable
from functools import partial, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from attrain import audit
from attrain.errors import InputError, unknown
from attrain.rules import activation, linear, norm, product, recurrent, shortcut
from attrain.rules.call import Call

Rule = Callable[..., Any]
"""A function of a `Call` that returns what the call returns."""

REGISTRY: dict[Any, Rule] = {}
"""Torch function -> rule."""

_PLACES = (torch, torch.Tensor, F, torch._C._nn, torch.special, torch.linalg, torch.functional)


def _put(rule: Rule, names: str, *, in_place: bool = False) -> None:
    """Register a rule for functions of torch by name, wherever torch keeps them.

    With `in_place` the forms that end in an underscore, and `__i...__` of operators, too.
    """
    for name in names.split():
        for spelling in (name, f"__{name}__"):
            _put_exact(rule, spelling)
        if in_place:
            for spelling in (f"{name}_", f"__i{name}__"):
                _put_exact(partial(rule, in_place=True), spelling)


def _put_exact(rule: Rule, name: str) -> None:
    for place in _PLACES:
        function: Any = getattr(place, name, None)
        if callable(function) and not isinstance(function, type):
            REGISTRY[function] = rule
        elif hasattr(function, "__get__"):  # a property: .T, .mT, .real
            REGISTRY[function.__get__] = rule


def bookkeeping(call: Call) -> Any:
    """What asks or tells about a tensor without computing with its values."""
    return call.run()


def objective(call: Call) -> Any:
    """Losses: objectives by Theorem 1, r = o * (-dL/do). What follows is no part of the network."""
    if call.derived:
        return call.mark_derived(call.run())  # a regulariser
    if not call.activations:
        raise call.refuse(
            "what it judges is made from parameters and buffers alone, so it counts as a weight",
            "Hand inputs to the model as tensors that are no buffers; compute a regulariser after "
            "the context.",
        )
    call.enter()
    return call.finish_objective(call.run())


# Names follow torch; a rule per family.
_put(
    linear.weighted,
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d "
    "_convolution convolution matmul rmatmul mm bmm mv dot vdot inner outer ger addmm addmv addbmm "
    "baddbmm addr einsum tensordot bilinear chain_matmul kron",
)
_put(linear.embedded, "embedding embedding_bag")
_put(linear.summed, "add sub subtract rsub radd where", in_place=True)
_put(linear.blended, "lerp", in_place=True)
_put(linear.reduced, "mean sum nanmean nansum")
_put(
    linear.normed,
    "norm var std var_mean std_mean vector_norm matrix_norm cdist pdist pairwise_distance",
)
_put(
    linear.mixed,
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d interpolate upsample fold unfold cumsum trace diff "
    "scatter_add index_add",
)
_put(linear.thinned, "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout "
     "feature_alpha_dropout", in_place=True)  # fmt: skip
_put(
    linear.passed,
    "reshape view flatten unflatten ravel permute transpose swapaxes swapdims "
    "movedim moveaxis t squeeze unsqueeze expand broadcast_to broadcast_tensors repeat "
    "repeat_interleave tile narrow select slice getitem index_select gather take take_along_dim "
    "masked_select chunk split split_with_sizes tensor_split hsplit vsplit dsplit unbind "
    "iter cat concat concatenate stack hstack vstack dstack column_stack flip fliplr flipud rot90 "
    "roll pad constant_pad_nd diagonal diag diag_embed tril triu pixel_shuffle pixel_unshuffle "
    "channel_shuffle native_channel_shuffle atleast_1d atleast_2d atleast_3d as_strided "
    "T mT H mH real adjoint meshgrid block_diag sort topk kthvalue msort "
    "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices "
    "max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices "
    "adaptive_max_pool3d_with_indices fractional_max_pool2d fractional_max_pool3d max_unpool1d "
    "max_unpool2d max_unpool3d max min amax amin median cummax cummin maximum minimum fmax fmin "
    "masked_scatter scatter index_copy select_scatter slice_scatter "
    "pad_sequence _pack_padded_sequence _pad_packed_sequence",
)
_put(
    linear.passed,
    "squeeze unsqueeze transpose t swapaxes masked_fill index_fill fill_diagonal",
    in_place=True,
)
_put(linear.shaped, "view_as reshape_as expand_as")
_put(
    linear.cast,
    "clone contiguous to type type_as float double half bfloat16 cpu cuda alias positive "
    "pin_memory",
)
_put(linear.written, "setitem")
_put(linear.put, "index_put", in_place=True)
_put(linear.scattered, "scatter_reduce")
for _name in ("copy_", "zero_", "fill_", "scatter_", "masked_scatter_", "index_copy_"):
    _put_exact(linear.overwritten, _name)
for _name in ("index_add_", "scatter_add_"):
    _put_exact(partial(linear.overwritten, adds=True), _name)
_put(product.product, "mul multiply rmul", in_place=True)
_put(product.quotient, "div divide true_divide truediv rdiv rtruediv", in_place=True)
_put(linear.negated, "neg negative", in_place=True)
_put(product.attention, "scaled_dot_product_attention")
_put(product.opened, "multi_head_attention_forward")
for _cell in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
    _put(partial(recurrent.layers, cell=_cell), _cell)
    _put(partial(recurrent.single, cell=_cell), f"{_cell}_cell")
REGISTRY[recurrent.gated] = recurrent.gate
_put(activation.relu, "relu", in_place=True)
_put(activation.homogeneous, "leaky_relu rrelu", in_place=True)
_put(
    activation.nonlinear,
    "elu selu celu gelu silu mish hardswish hardtanh relu6 tanhshrink softsign tanh softshrink "
    "hardshrink erf sin tan asin arcsin atan arctan sinh asinh arcsinh atanh expm1 "
    "log1p sqrt i1 clamp clip clamp_min clamp_max threshold "
    "heaviside pow square nan_to_num sinc frac fmod remainder",
    in_place=True,
)
_put(
    partial(activation.nonlinear, flat=True),
    "sign sgn round trunc fix fake_quantize_per_tensor_affine fake_quantize_per_channel_affine "
    "fused_moving_avg_obs_fake_quant",
    in_place=True,
)
_put(partial(activation.nonlinear, keeps_sign=False, flat=True), "floor ceil", in_place=True)
_put(
    partial(activation.nonlinear, keeps_sign=False),
    "sigmoid expit logsigmoid log_sigmoid softplus hardsigmoid exp exp2 log log2 log10 cos cosh "
    "acos arccos rsqrt reciprocal abs absolute erfc rpow logit digamma lgamma",
    in_place=True,
)
_put(activation.prelu, "prelu")
_put(activation.glu, "glu")
_put(activation.softmax, "softmax log_softmax softmin gumbel_softmax logsumexp _softmax "
     "_log_softmax", in_place=False)  # fmt: skip
_put(
    activation.compared,
    "gt ge lt le eq ne greater greater_equal less less_equal not_equal isclose isnan isinf "
    "isfinite isposinf isneginf signbit logical_and logical_or logical_not logical_xor and or "
    "invert xor bool bitwise_and bitwise_or bitwise_not bitwise_xor all any",
)
for _name in ("__rand__", "__ror__", "__rxor__"):
    _put_exact(activation.compared, _name)
_put(norm.batch_norm, "batch_norm")
_put(norm.layer_norm, "layer_norm")
_put(norm.group_norm, "group_norm")
_put(norm.instance_norm, "instance_norm")
_put(norm.rms_norm, "rms_norm")
_put(norm.normalize, "normalize")
_put(norm.local_response_norm, "local_response_norm")
_put(
    objective,
    "cross_entropy nll_loss binary_cross_entropy binary_cross_entropy_with_logits mse_loss l1_loss "
    "smooth_l1_loss huber_loss kl_div poisson_nll_loss gaussian_nll_loss hinge_embedding_loss "
    "multilabel_margin_loss multilabel_soft_margin_loss multi_margin_loss soft_margin_loss "
    "cosine_embedding_loss margin_ranking_loss triplet_margin_loss "
    "triplet_margin_with_distance_loss ctc_loss linear_cross_entropy",
)
_put(
    bookkeeping,
    "detach detach_ requires_grad_ retain_grad register_hook backward size stride dim numel "
    "nelement is_contiguous is_floating_point is_complex is_tensor element_size data_ptr "
    "storage_offset untyped_storage storage len item tolist numpy "
    "repr format str hash array contains argmax argmin argsort argwhere nonzero count_nonzero "
    "bincount searchsorted bucketize unique unique_consecutive zeros_like ones_like empty_like "
    "full_like rand_like randn_like randint_like bernoulli multinomial new_zeros new_ones "
    "new_empty new_full new_tensor one_hot result_type can_cast is_same_size get_device "
    "allclose equal dim_order is_pinned is_shared is_inference is_conj is_neg data "
    "int long short char byte",
)
for _property in ("shape", "dtype", "device", "ndim", "requires_grad", "grad", "grad_fn", "is_leaf",
                  "layout", "is_cuda", "is_sparse", "is_nested", "is_quantized", "is_meta",
                  "is_mps", "names", "data", "_base", "_version", "itemsize", "nbytes",
                  "is_cpu", "output_nr", "retains_grad"):  # fmt: skip
    _put_exact(bookkeeping, _property)
for _name in ("len", "bool", "float", "int", "index", "repr", "format", "hash", "contains", "array",
              "deepcopy", "reduce_ex"):  # fmt: skip
    _put_exact(bookkeeping, f"__{_name}__")

SHORTCUTS: dict[Any, shortcut.Shortcut] = {}
"""Torch function -> what is tried before its rule."""

for _names, _shortcut in (
    ("linear conv1d conv2d conv3d", shortcut.layer),
    ("relu", shortcut.relu),
    (
        "flatten reshape view permute transpose squeeze unsqueeze max_pool1d max_pool2d max_pool3d",
        shortcut.move,
    ),
):
    for _name in _names.split():
        for _place in _PLACES:
            if hasattr(_place, _name):
                SHORTCUTS[getattr(_place, _name)] = _shortcut

for _function in (torch.autograd.backward, torch.autograd.grad):
    REGISTRY[_function] = bookkeeping

_CATEGORIES: dict[str, Rule] = {
    "linear": linear.weighted,
    "sum": linear.summed,
    "pass": linear.passed,
    "nonlinear": activation.nonlinear,
    "product": product.product,
    "objective": objective,
    "no credit": bookkeeping,
}


def register(op: Any, rule: Rule | str) -> None:
    """Teach credit a torch function, or an autograd.Function whose backward is a rule already.

    op: a function that torch's overrides see, or a subclass of torch.autograd.Function.
    rule: a function of an `attrain.rules.Call` that returns the op's result; or the name of a
    family: "linear", "sum" (each branch receives the credit), "pass" (moves and selections),
    "nonlinear" (secant slope), "product" (half to each factor), "objective" (a loss),
    "no credit"; for an autograd.Function: "native".

    Raises InputError for an op that cannot be called or an unknown family.
    """
    if isinstance(op, type) and issubclass(op, torch.autograd.Function):
        if rule != "native":
            raise InputError(
                f"{op.__name__} is an autograd.Function: torch shows its backward, not its "
                f"forward, to credit, so its rule can only be 'native', got {rule!r}. Write the "
                "rule as its backward, in credit per unit of activation."
            )
        audit.REGISTERED.add(f"{op.__name__}Backward")
        return
    if not callable(op):
        raise InputError(f"a rule belongs to a function, got {op!r}. Register the function itself.")
    if isinstance(rule, str):
        if rule not in _CATEGORIES:
            raise unknown("family of rules", rule, _CATEGORIES)
        rule = _CATEGORIES[rule]
    SHORTCUTS.pop(op, None)
    REGISTRY[op] = rule


def elementwise(
    function: Callable[..., Tensor], *, keeps_sign: bool = True
) -> Callable[..., Tensor]:
    """Return `function` as an activation with the secant rule: phi(z) / (z + sign(z) epsilon).

    function: maps a tensor to one of the same shape, each value by itself; it needs no derivative.
    keeps_sign: whether phi(z) has the sign of z (3.4 of the paper); where not, credit warns.
    On a weight, a quantiser say, it hands the feedback of its result on to that weight.
    Outside a context the result calls `function` as it is, on values without gradient only.
    """

    @wraps(function)
    def applied(z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if has_torch_function_unary(z):
            out: Tensor = handle_torch_function(applied, (z,), z, *args, **kwargs)
            return out
        return function(z, *args, **kwargs)

    REGISTRY[applied] = partial(activation.nonlinear, keeps_sign=keeps_sign, flat=True)
    return applied


def families() -> Iterable[str]:
    """Return the names of the families that `register` knows."""
    return _CATEGORIES.keys()
