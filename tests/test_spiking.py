"""Credit through spikes: rules against their twins, neurons that fit, and what keeps them alive."""

import copy
import io
import warnings

import pytest
import reference_spiking as reference
import torch
import torch.nn.functional as F
from torch import nn

import attrain
from attrain.errors import AttrainError, CreditError, CreditWarning, InputError
from attrain.methods import METHODS, SPIKING_METHODS, BatchLoss, fitting
from attrain.models import SpikingLeNet, SpikingMLP, build
from attrain.spiking import (
    SecantSpike,
    activity,
    match_activity_,
    record,
    secant_spike,
    warn_of_silence,
)

snn = pytest.importorskip("snntorch", reason="the extra snn is not installed")

STEPS, SAMPLES, WIDTHS = 6, 3, (5, 7, 4)
BETA, THRESHOLD = 0.9, 1.0


@pytest.fixture(autouse=True)
def precise():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Stepwise(nn.Module):
    """A network as snnTorch's users write it: every layer in every step."""

    def __init__(self, rule="pure", beta=BETA, threshold=THRESHOLD, **options):
        super().__init__()
        spikes = [secant_spike(threshold, output=output, rule=rule) for output in (False, True)]
        quantisers = [spike.membrane if rule == "paper" else False for spike in spikes]
        self.fc1 = nn.Linear(WIDTHS[0], WIDTHS[1])
        self.lif1 = snn.Leaky(
            beta, threshold, spike_grad=spikes[0], state_quant=quantisers[0], **options
        )
        self.fc2 = nn.Linear(WIDTHS[1], WIDTHS[2])
        self.lif2 = snn.Leaky(
            beta, threshold, spike_grad=spikes[1], state_quant=quantisers[1], **options
        )

    def forward(self, x):
        """Show x [T, N, I]; return the spikes [T, N, C]."""
        first, second = self.lif1.reset_mem(), self.lif2.reset_mem()
        fired = []
        for current in x:
            spikes, first = self.lif1(self.fc1(current), first)
            spikes, second = self.lif2(self.fc2(spikes), second)
            fired.append(spikes)
        return torch.stack(fired)


class Jelly(nn.Module):
    """The same in SpikingJelly."""

    def __init__(self, rule="pure", beta=BETA, mode="s", decay_input=False, **options):
        super().__init__()
        from spikingjelly.activation_based import layer, neuron

        known = beta if rule == "paper" else None
        settings = {"detach_reset": True, "v_reset": None, "decay_input": decay_input} | options
        self.mode = mode
        self.layers = nn.Sequential()
        for before, after, output in zip(WIDTHS, WIDTHS[1:], (False, True), strict=False):
            spike = secant_spike(THRESHOLD, output=output, rule=rule, beta=known)
            self.layers.append(layer.Linear(before, after, step_mode=mode))
            self.layers.append(
                neuron.LIFNode(1 / (1 - beta), surrogate_function=spike, step_mode=mode, **settings)
            )

    def forward(self, x):
        from spikingjelly.activation_based import functional

        functional.reset_net(self)
        if self.mode == "m":
            return self.layers(x)
        return torch.stack([self.layers(current) for current in x])


def awake(model, factor=3.0):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)
    return model


def shown(seed=0, steps=STEPS):
    return torch.randn(steps, SAMPLES, WIDTHS[0], generator=torch.Generator().manual_seed(seed))


def learned(model, x, arriving, **options):
    """Return the spikes and minus the feedback of each parameter."""
    model.zero_grad()
    with attrain.LFP(model, **options):
        out = model(x)
    out.backward(arriving)
    return out, [parameter.grad.clone() for parameter in model.parameters()]


def epsilons(model):
    return [each.epsilon for each in model.modules() if isinstance(each, SecantSpike)]


def twin_of(model, x, arriving, rule, beta, drop, gain=1.0):
    weights = [parameter.detach() for parameter in model.parameters()]
    layers = [
        reference.Layer(w * gain, b * gain, beta, THRESHOLD, drop)
        for w, b in zip(weights[::2], weights[1::2], strict=True)
    ]
    samples = x.transpose(0, 1).tolist()
    wanted = reference.feedback(layers, samples, arriving, rule, epsilons(model))
    return [each for pair in wanted for each in pair], layers


@pytest.mark.parametrize("rule", ["pure", "paper"])
@pytest.mark.parametrize("beta", [0.3, 0.9, 1.0])
def test_snntorch_equals_the_twin(rule, beta):
    torch.manual_seed(1)
    model, x = awake(Stepwise(rule, beta)), shown()
    with torch.no_grad():
        plain = model(x)
    arriving = torch.randn(plain.shape)
    out, gradients = learned(model, x, arriving)
    assert torch.equal(out, plain) and 0 < out.mean() < 1
    wanted, layers = twin_of(model, x, arriving, rule, beta, THRESHOLD)
    assert torch.tensor(layers[-1].spikes).equal(out[:, -1].detach())
    for gradient, feedback in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, feedback, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", ["pure", "paper"])
@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("decay_input", [False, True])
def test_spikingjelly_equals_the_twin(rule, mode, decay_input):
    pytest.importorskip("spikingjelly", reason="the extra snn is not installed")
    torch.manual_seed(1)
    gain = 1 - BETA if decay_input else 1.0
    model, x = awake(Jelly(rule, mode=mode, decay_input=decay_input), 3.0 / gain), shown()
    with torch.no_grad():
        plain = model(x)
    arriving = torch.randn(plain.shape)
    for _ in range(2):  # a second pass must not remember the first
        out, gradients = learned(model, x, arriving)
    assert torch.equal(out, plain) and 0 < out.mean() < 1
    # The reset of SpikingJelly decays with the membrane; what decays the input scales the weights.
    wanted, _ = twin_of(model, x, arriving, rule, BETA, BETA * THRESHOLD, gain)
    for gradient, feedback in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, feedback, rtol=1e-9, atol=1e-11)


def test_both_libraries_learn_the_same():
    pytest.importorskip("spikingjelly", reason="the extra snn is not installed")
    torch.manual_seed(2)
    ours, theirs = awake(Stepwise(reset_mechanism="none")), Jelly()
    theirs.load_state_dict(
        dict(zip(theirs.state_dict(), [p.detach() for p in ours.parameters()], strict=True))
    )
    for neuron in theirs.layers[1::2]:
        neuron.v_threshold = THRESHOLD
    x, arriving = shown(steps=1), torch.randn(1, SAMPLES, WIDTHS[-1])
    for a, b in zip(learned(ours, x, arriving)[1], learned(theirs, x, arriving)[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_the_default_epsilon_of_the_context_is_that_of_the_spikes_alone():
    torch.manual_seed(3)
    model, x = awake(Stepwise()), shown()
    arriving = torch.randn(STEPS, SAMPLES, WIDTHS[-1])
    default, zero = (learned(model, x, arriving, rule=rule)[1] for rule in ("epsilon", "zero"))
    assert all(torch.equal(a, b) for a, b in zip(default, zero, strict=True))


def neuron_models():
    linear = nn.Linear(WIDTHS[0], WIDTHS[0])
    yield "synaptic", linear, snn.Synaptic(0.8, 0.9, spike_grad=secant_spike(), init_hidden=True)
    yield "lapicque", linear, snn.Lapicque(beta=0.9, spike_grad=secant_spike(), init_hidden=True)
    yield (
        "rleaky",
        linear,
        snn.RLeaky(0.9, linear_features=5, spike_grad=secant_spike(), init_hidden=True),
    )
    yield (
        "rsynaptic",
        linear,
        snn.RSynaptic(0.8, 0.9, linear_features=5, spike_grad=secant_spike(), init_hidden=True),
    )
    yield (
        "thresholds",
        linear,
        snn.Leaky(
            0.9,
            torch.linspace(0.5, 1, 5),
            spike_grad=secant_spike(torch.linspace(0.5, 1, 5)),
            init_hidden=True,
        ),
    )
    yield (
        "decays",
        linear,
        snn.Leaky(torch.linspace(0.1, 0.9, 5), spike_grad=secant_spike(), init_hidden=True),
    )
    yield (
        "graded",
        linear,
        snn.Leaky(0.9, graded_spikes_factor=0.5, spike_grad=secant_spike(), init_hidden=True),
    )


@pytest.mark.parametrize("index", range(7))
def test_everything_else_in_a_neuron_is_linear(index):
    # Where all but the spikes is linear, feedback is |w| times the gradient through the spikes.
    torch.manual_seed(4)
    name, linear, neuron = list(neuron_models())[index]
    model = awake(nn.Sequential(linear, neuron, nn.Linear(5, 2)))
    x = shown()

    def run():
        neuron.reset_mem()
        return torch.stack([model(current) for current in x])

    arriving = torch.randn(STEPS, SAMPLES, 2)
    run().backward(arriving)
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    with attrain.LFP(model, rule="zero"):
        out = run()
    out.backward(arriving)
    assert neuron.mem is not None, name
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        wanted = parameter.detach().abs() * gradient
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-10, atol=1e-12)


def test_a_learned_decay_is_a_weight_of_the_membrane():
    torch.manual_seed(5)
    spike = secant_spike()
    model = awake(
        nn.Sequential(
            nn.Linear(5, 5),
            snn.Leaky(0.5, learn_beta=True, spike_grad=spike, init_hidden=True),
        ),
        2.0,
    )
    model[1].beta.data.fill_(0.7)
    x, arriving = shown(), torch.randn(STEPS, SAMPLES, 5)

    def run():
        model[1].reset_mem()
        return torch.stack([model(current) for current in x])

    run().backward(arriving)
    gradient = model[1].beta.grad.clone()
    model.zero_grad()
    with attrain.LFP(model):
        out = run()
    out.backward(arriving)
    assert gradient != 0
    torch.testing.assert_close(model[1].beta.grad, 0.7 * gradient, rtol=1e-10, atol=0)


def test_neurons_written_out_by_hand_take_credit():
    torch.manual_seed(6)
    model, x = awake(Stepwise()), shown()
    fire = [secant_spike(), secant_spike(output=True)]
    tensors = list(model.parameters())

    def by_hand():
        membranes, out = [0.0, 0.0], []
        for current in x:
            signal = current
            for layer in range(2):
                weight, bias = tensors[2 * layer : 2 * layer + 2]
                before = membranes[layer]
                reset = (
                    (before > 1.0).to(x.dtype).detach() if isinstance(before, torch.Tensor) else 0.0
                )
                membranes[layer] = BETA * before + F.linear(signal, weight, bias) - reset
                signal = fire[layer](membranes[layer] - 1.0)
            out.append(signal)
        return torch.stack(out)

    arriving = torch.randn(STEPS, SAMPLES, WIDTHS[-1])
    plain, wanted = learned(model, x, arriving)
    model.zero_grad()
    with attrain.LFP(tensors):
        out = by_hand()
    out.backward(arriving)
    assert torch.equal(out, plain)
    for parameter, gradient in zip(tensors, wanted, strict=True):
        # The context's epsilon, 1e-6, is applied to every sum here.
        assert (parameter.grad - gradient).norm() < 1e-4 * gradient.norm()


# The reward ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("steps", [1, 4, 5])
def test_the_reward_of_spike_counts_equals_its_twin(steps, variant):
    torch.manual_seed(7)
    model, x = awake(Stepwise(), 4.0), shown(steps=steps)
    y = torch.tensor([0, 3, 1])
    with attrain.LFP(model):
        spikes = model(x)
    spikes.retain_grad()
    wanted = torch.tensor(reference.spike_count(spikes.tolist(), y.tolist(), variant))
    loss = attrain.rewards.spike_count(spikes, y, variant=variant)
    torch.testing.assert_close(loss.detach(), -wanted.sum() / SAMPLES, rtol=1e-12, atol=0)
    loss.backward()
    torch.testing.assert_close(spikes.grad, -wanted / SAMPLES, rtol=1e-12, atol=0)
    with torch.no_grad():
        options = {"variant": variant}
        each = attrain.rewards.spike_count(spikes, y, reduction="none", **options)
        total = attrain.rewards.spike_count(spikes, y, reduction="sum", **options)
    torch.testing.assert_close(each, -wanted.sum((0, 2)), rtol=1e-12, atol=0)
    torch.testing.assert_close(total, each.sum(), rtol=1e-12, atol=0)


def test_a_reward_that_nothing_can_take_is_refused():
    model, x, y = awake(Stepwise()), shown(), torch.tensor([0, 1, 2])
    with attrain.LFP(model):
        spikes = model(x)
    with pytest.raises(InputError, match=r"spikes of shape \(3, 4\) came: \[time steps, samples"):
        attrain.rewards.spike_count(spikes[0], y)
    with pytest.raises(InputError, match=r"the spike 0\.5 at \[0, 0, 0\] is neither 0 nor 1"):
        attrain.rewards.spike_count(torch.full((2, 3, 4), 0.5, requires_grad=True), y)
    with pytest.raises(InputError, match=r"the label 4 .* outside 0\.\.3"):
        attrain.rewards.spike_count(spikes, torch.tensor([0, 4, 1]))
    with pytest.raises(InputError, match="unknown variant of the reward 'papper'.*paper"):
        attrain.rewards.spike_count(spikes, y, variant="papper")
    with pytest.raises(CreditError, match="past any credit context"):
        attrain.rewards.spike_count(model(x), y)
    model.lif2.spike_grad = secant_spike()
    with attrain.LFP(model):
        spikes = model(x)
    with pytest.raises(InputError, match=r"hidden layers.*secant_spike\(output=True\)"):
        attrain.rewards.spike_count(spikes, y)


# Settings that do not fit -------------------------------------------------------------------------


def leaky(**options):
    return {"beta": 0.9, "spike_grad": secant_spike(), **options}


REFUSED = [
    (lambda: snn.Leaky(0.9), r"layer '1' \(Leaky of snnTorch\) makes its spikes with another"),
    (lambda: snn.Leaky(**leaky(surrogate_disable=True)), "makes its spikes with another function"),
    (lambda: snn.Leaky(**leaky(reset_mechanism="zero")), "'1' .* resets its membrane to zero"),
    (lambda: snn.Leaky(**leaky(reset_delay=False)), "'1' .* its reset is not detached"),
    (lambda: snn.Leaky(**leaky(learn_threshold=True)), "'1' .* learns its threshold"),
    (lambda: snn.Leaky(**leaky(threshold=0.5)), "threshold 0.5, its secant_spike 1: give both"),
    (lambda: snn.Leaky(**leaky(threshold=torch.full((5,), 2.0))), r"of shape \(5,\), its secant"),
    (lambda: snn.Leaky(**leaky(state_quant=torch.round)), "'1' .* quantises its membrane"),
    (
        lambda: snn.Leaky(0.9, spike_grad=secant_spike(rule="paper")),
        "rule='paper' also needs the membrane",
    ),
    (
        lambda: snn.Synaptic(0.9, 0.9, spike_grad=secant_spike(rule="paper")),
        "rule='paper' is defined for Leaky neurons",
    ),
    (
        lambda: snn.Alpha(0.9, 0.8, spike_grad=secant_spike(), reset_mechanism="subtract"),
        r"\(Alpha of snnTorch\): credit has no rule for neurons of this kind, only for Leaky",
    ),
]


@pytest.mark.parametrize("index", range(len(REFUSED)))
def test_neurons_that_do_not_fit_are_refused_by_name(index):
    make, told = REFUSED[index]
    with pytest.raises(CreditError, match=told):
        attrain.LFP(nn.Sequential(nn.Linear(5, 5), make()))


JELLY_REFUSED = [
    ({"detach_reset": False}, r"layer 'layers\.1' \(LIFNode of SpikingJelly\): its reset is not d"),
    ({"v_reset": 0.0}, r"layer 'layers\.1' .* resets its membrane to 0, which no sum"),
    ({"v_threshold": 0.5}, "has the threshold 0.5, its secant_spike 1"),
]


@pytest.mark.parametrize(("options", "told"), JELLY_REFUSED)
def test_settings_of_spikingjelly_that_do_not_fit_are_refused(options, told):
    pytest.importorskip("spikingjelly", reason="the extra snn is not installed")
    with pytest.raises(CreditError, match=told):
        attrain.LFP(Jelly(**options))


def test_neurons_of_spikingjelly_that_have_no_rule_are_refused():
    pytest.importorskip("spikingjelly", reason="the extra snn is not installed")
    from spikingjelly.activation_based import neuron

    linear = nn.Linear(5, 5)
    with pytest.raises(CreditError, match="makes its spikes with another function"):
        attrain.LFP(nn.Sequential(linear, neuron.LIFNode(detach_reset=True, v_reset=None)))
    with pytest.raises(CreditError, match=r"no rule for neurons of this kind, only for LIFNode"):
        attrain.LFP(nn.Sequential(linear, neuron.EIFNode(surrogate_function=secant_spike())))
    spike = secant_spike(rule="paper")
    settings = {"detach_reset": True, "v_reset": None, "surrogate_function": spike}
    with pytest.raises(CreditError, match=r"secant_spike\(rule='paper', beta=0\.9\)"):
        attrain.LFP(nn.Sequential(linear, neuron.LIFNode(10.0, **settings)))


def test_the_papers_rule_keeps_the_membrane_of_one_layer():
    spike = secant_spike(rule="paper")
    neuron = [snn.Leaky(0.9, spike_grad=spike, state_quant=spike.membrane) for _ in range(2)]
    with pytest.raises(CreditError, match="layer '3' .* shares its spike function with layer '1'"):
        attrain.LFP(nn.Sequential(nn.Linear(5, 5), neuron[0], nn.Linear(5, 5), neuron[1]))
    with pytest.raises(CreditError, match="has not seen the membrane of the step before"):
        secant_spike(rule="paper").membrane(torch.zeros(2, requires_grad=True))
    with pytest.raises(CreditError, match=r"membrane\(\) belongs to rule='paper'"):
        secant_spike().membrane(torch.zeros(2))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rule": "papper"}, "unknown rule of spikes 'papper'.*paper"),
        ({"threshold": 0.0}, "threshold=0 is not possible"),
        ({"threshold": torch.tensor([1.0, -1.0])}, "threshold=-1 is not possible"),
        ({"epsilon": -1.0}, "epsilon=-1.0 is not possible"),
        ({"epsilon": 0.0, "output": True}, "above 0, since an output's membrane may be 0"),
        ({"beta": 1.5}, "beta=1.5 is no decay"),
    ],
)
def test_spike_functions_refuse_what_cannot_work(options, told):
    with pytest.raises(AttrainError, match=told):
        secant_spike(**options)


# The models ---------------------------------------------------------------------------------------


def stepwise(model, x):
    """Run a SpikingNet as a loop over time, the usual way."""
    membranes = [None] * len(model.stages)
    out = []
    for _ in range(model.steps):
        signal = x
        for index, (stage, neuron) in enumerate(zip(model.stages, model.neurons, strict=True)):
            current = stage(signal)
            before = membranes[index]
            before = torch.zeros_like(current) if before is None else before
            signal, membranes[index] = neuron(current, before)
        out.append(signal)
    return torch.stack(out)


def spiking_models(**options):
    torch.manual_seed(8)
    yield awake(SpikingMLP(6, (8, 7), 4, steps=5, **options), 2.5), torch.randn(3, 2, 3)
    lenet = SpikingLeNet((1, 8, 8), 4, (2, 3), 6, steps=4, **options)
    yield awake(lenet, 2.0), torch.randn(3, 1, 8, 8)


@pytest.mark.parametrize("rule", ["pure", "paper"])
@pytest.mark.parametrize("which", [0, 1])
def test_layer_by_layer_is_step_by_step(rule, which):
    model, x = list(spiking_models(rule=rule))[which]
    y = torch.tensor([0, 1, 3])
    found = []
    for run in (lambda: model(x, per_step=True), lambda: stepwise(model, x)):
        model.zero_grad()
        with attrain.LFP(model):
            spikes = run()
        attrain.rewards.spike_count(spikes, y).backward()
        found.append((spikes.detach(), [p.grad.clone() for p in model.parameters()]))
    assert torch.equal(found[0][0], found[1][0]) and 0 < found[0][0].mean() < 1
    assert all(gradient.any() for gradient in found[0][1])
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_models_hand_out_counts_and_can_be_copied_and_stored():
    model, x = next(spiking_models())
    with attrain.LFP(model):
        spikes = model(x, per_step=True)
    attrain.rewards.spike_count(spikes, torch.tensor([0, 1, 2])).backward()
    assert torch.equal(model(x), spikes.sum(0))
    twin = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(twin(x), model(x))
    built = build("mlp-snn", (1, 4, 4), 3, seed=0)
    assert built(torch.zeros(2, 1, 4, 4)).shape == (2, 3)
    assert build("lenet-snn", (1, 28, 28), 10, seed=0).stages[2][1].in_features == 1024


def test_a_model_goes_from_secants_to_a_surrogate_and_back():
    torch.set_default_dtype(torch.float32)  # snnTorch's surrogates know no other
    model, x = next(spiking_models())
    y = torch.tensor([0, 1, 2])
    before = model(x)
    batch_loss = BatchLoss(SPIKING_METHODS["surrogate"], model)
    assert model.spikes == "surrogate"
    loss, counts = batch_loss(x, y)
    spikes = model(x, per_step=True)
    wanted = sum(F.cross_entropy(each, y) for each in spikes) / len(spikes)
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    assert torch.equal(counts, before)
    loss.backward()
    assert all(parameter.grad.any() for parameter in model.parameters())
    BatchLoss(SPIKING_METHODS["lfp"], model)
    assert model.spikes == "secant" and torch.equal(model(x), before)
    with pytest.raises(InputError, match="unknown way back through spikes 'secent'.*secant"):
        model.spike_by("secent")


def test_methods_fit_the_model_or_say_so():
    model, _ = next(spiking_models())
    plain = nn.Linear(2, 2)
    assert fitting(METHODS["lfp"], model) is SPIKING_METHODS["lfp"]
    assert fitting(METHODS["lfp"], plain) is METHODS["lfp"]
    with pytest.raises(InputError, match="'sgd' cannot train a spiking model.*lfp, surrogate"):
        fitting(METHODS["sgd"], model)
    with pytest.raises(InputError, match="'surrogate' is for spiking models"):
        fitting(METHODS["surrogate"], plain)
    with pytest.raises(InputError, match="steps of at least 1, beta in 0..1 and a"):
        SpikingMLP(4, (3,), 2, steps=0)
    with pytest.raises(InputError, match="'lenet-snn' needs pictures"):
        build("lenet-snn", (4,), 2)


# An output that the surrogate's steep slope leaves silent stays so: two classes of three.
@pytest.mark.parametrize(("method", "reached"), [("lfp", 0.9), ("surrogate", 0.6)])
def test_both_methods_learn(method, reached):
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    centres = torch.randn(3, 12)
    y = torch.arange(240) % 3
    x = centres[y] + 0.5 * torch.randn(240, 12)
    model = SpikingMLP(12, (40,), 3, steps=8)
    match_activity_(model, x)
    batch_loss = BatchLoss(SPIKING_METHODS[method], model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        batch_loss(x, y)[0].backward()
        attrain.optim.adaptive_clip_grad_(model.parameters(), 0.02)
        optimizer.step()
    assert (model(x).argmax(1) == y).double().mean() > reached


# Activity -----------------------------------------------------------------------------------------


def test_activity_counts_spikes_and_the_connections_they_reach():
    torch.manual_seed(9)
    model, x = awake(SpikingLeNet((1, 8, 8), 4, (2, 3), 6, steps=4), 2.0), torch.randn(3, 1, 8, 8)
    found = activity(model, x)
    layers = record(model, x)
    assert [layer.name for layer in found.layers] == [f"neurons.{i}" for i in range(4)]
    spikes = [torch.stack(layer.spikes) for layer in layers]
    assert found.spikes == pytest.approx(float(sum(s.sum() for s in spikes)) / 3)
    for layer, fired in zip(found.layers, spikes, strict=True):
        assert layer.rate == pytest.approx(float(fired.mean()))
        assert layer.neurons == fired[0, 0].numel()
        assert layer.silent == pytest.approx(float((fired.sum((0, 1)) == 0).double().mean()))
    # Convolution 2 has 5x5 kernels and padding 2; its 3 channels are reached from 4x4 maps.
    operations = 0
    for _, _, _, row, column in spikes[0].nonzero().tolist():
        for a in range(4):
            for b in range(4):
                operations += 3 * (abs(a - row) <= 2 and abs(b - column) <= 2)
    operations += int(spikes[1].sum()) * 6 + int(spikes[2].sum()) * 4
    assert found.synaptic_operations == pytest.approx(operations / 3)
    assert found.multiplications > 0 and not found.dead


def test_activity_of_spikingjelly():
    pytest.importorskip("spikingjelly", reason="the extra snn is not installed")
    for mode in "sm":
        torch.manual_seed(1)
        model, x = awake(Jelly(mode=mode)), shown()
        with torch.no_grad():
            out = model(x)
        found = activity(model, x, batch_dim=1)
        assert [layer.neurons for layer in found.layers] == list(WIDTHS[1:])
        assert found.layers[-1].rate == pytest.approx(float(out.mean()))
        assert len(record(model, x)[0].spikes) == STEPS


def test_a_dead_layer_is_named_with_its_remedy():
    torch.manual_seed(10)
    model, x = SpikingMLP(6, (8, 7), 4, steps=5, beta=0.3), torch.randn(16, 6)
    with torch.no_grad():
        model.stages[1].weight.mul_(0.01)
    with pytest.warns(CreditWarning, match=r"^layer 'neurons\.1' never fired for these 16 samples"):
        found = warn_of_silence(model, x)
    assert found.dead == ("neurons.1", "neurons.2")  # the outputs are silent, but not cut off
    factors = match_activity_(model, x, 0.2)
    assert list(factors) == ["stages.0.1", "stages.1", "stages.2"] and factors["stages.1"] > 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = warn_of_silence(model, x)
    assert all(0.1 < layer.rate < 0.35 for layer in found.layers)


def test_activity_that_cannot_be_is_refused():
    model, x = SpikingMLP(6, (8,), 4, steps=5), torch.randn(4, 6)
    with pytest.raises(InputError, match="rate=0 is no firing rate"):
        match_activity_(model, x, 0)
    with pytest.raises(InputError, match="Linear has no spiking neurons"):
        activity(nn.Linear(2, 2), x)
    with torch.no_grad():
        for parameter in model.stages[1].parameters():
            parameter.copy_(-parameter.abs())
    start = model.stages[1].weight.detach().clone()
    with pytest.raises(InputError, match=r"layer 'neurons\.1' stays silent whatever the size"):
        match_activity_(model, x)
    assert torch.equal(model.stages[1].weight, start)


def test_looking_leaves_no_hooks_behind():
    model, x = next(spiking_models())
    for look in (activity, record, match_activity_):
        look(model, x)
    assert not any(module._forward_hooks for module in model.modules())
